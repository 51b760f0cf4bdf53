"""One image from one seed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from mergelab.errors import LayerError
from mergelab.pipelines.opening import Pipeline


def generate_image(pipeline: Pipeline, prompt: str, seed: int, keywords: Mapping[str, Any]) -> Tensor:
    """One image, uint8 (3, h, w): its own CPU generator, seeded by its seed alone, and no other image beside it.

    Args:
        pipeline: of diffusers, with whatever adapters are active.
        prompt: its prompt.
        seed: of the initial noise.
        keywords: any others of a call of the pipeline: steps, guidance, size.

    Raises:
        LayerError: the pipeline returned NaN.
    """
    generator = torch.Generator("cpu").manual_seed(seed)
    image = pipeline(prompt, generator=generator, output_type="pt", **keywords).images[0].detach().float().cpu()
    if not torch.isfinite(image).all():
        raise LayerError("the pipeline returned NaN; float16 overflows in some models: try dtype: bfloat16 or float32")
    return image.clamp(0, 1).mul(255).round().to(torch.uint8)
