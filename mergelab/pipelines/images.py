"""Images from seeds, one at a time or several in one batch."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mergelab.errors import LayerError
from mergelab.pipelines.opening import Pipeline

_ONE_FOR_EACH = re.compile(r"(negative_)?prompt(_\d)?")


def generate_image(pipeline: Pipeline, prompt: str, seed: int, keywords: Mapping[str, Any]) -> Tensor:
    """One image, uint8 (3, h, w): `generate_images` of one."""
    return generate_images(pipeline, [(prompt, seed)], keywords)[0]


def generate_images(pipeline: Pipeline, units: Sequence[tuple[str, int]], keywords: Mapping[str, Any]) -> list[Tensor]:
    """Images, uint8 (3, h, w), in one call: each has its own CPU generator, seeded by its seed alone.

    So an image starts from the same noise in every batch; the kernels of a larger one may sum in another order, which
    can change the last bits of what they compute.

    Args:
        pipeline: of diffusers, with whatever adapters are active.
        units: (prompt, seed of the initial noise) of each.
        keywords: any others of a call of the pipeline: steps, guidance, size.

    Raises:
        LayerError: the pipeline returned NaN.
    """
    prompts, generators = [prompt for prompt, _ in units], [torch.Generator("cpu").manual_seed(s) for _, s in units]
    if len(units) == 1:
        call: dict[str, Any] = {**keywords, "prompt": prompts[0], "generator": generators[0]}
    else:
        repeated = {
            k: [v] * len(units) for k, v in keywords.items() if _ONE_FOR_EACH.fullmatch(k) and isinstance(v, str)
        }
        call = {**keywords, **repeated, "prompt": prompts, "generator": generators}
    images = [image.detach().float().cpu() for image in pipeline(output_type="pt", **call).images]
    if not all(torch.isfinite(image).all() for image in images):
        raise LayerError("the pipeline returned NaN; float16 overflows in some models: try dtype: bfloat16 or float32")
    return [image.clamp(0, 1).mul(255).round().to(torch.uint8) for image in images]
