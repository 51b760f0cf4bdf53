"""Draws with a miniature pipeline: prompts with seeds, adapters fused at strengths."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from typing import Any

import torch
from diffusers import DiffusionPipeline
from torch import Tensor
from tqdm import tqdm

from mergelab import miniature
from mergelab.miniature.world import BACKGROUNDS, COLORS, SHAPES, SIZES, Scene, caption, sample

BATCH = 12


def opened(name: str) -> DiffusionPipeline:
    """The pipeline that ships, silent."""
    pipeline = miniature.pipeline(name)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def generate(
    name: str, pipeline: DiffusionPipeline, prompts: Sequence[str], label: str, *, first: int = 0, turbo: bool = False
) -> Tensor:
    """Images (n, 3, 48, 48) in [0, 1]; the i-th prompt with seed `first + i`."""
    images = []
    for start in tqdm(range(0, len(prompts), BATCH), desc=label, mininterval=10, disable=not label):
        chunk = list(prompts[start : start + BATCH])
        options: dict[str, Any] = miniature.settings(name, turbo=turbo)
        if "negative_prompt" in options:
            options["negative_prompt"] = [options["negative_prompt"]] * len(chunk)
        seeds = [torch.Generator().manual_seed(first + start + i) for i in range(len(chunk))]
        images.append(pipeline(chunk, generator=seeds, output_type="pt", **options).images)
    return torch.cat(images).float()


def held_out(count: int) -> list[tuple[Scene, str]]:
    """Scenes of held-out combinations with their prompts: every size, then the prompts that name none."""
    scenes = [
        Scene(shape, color, ground, size)
        for size, shape, color, ground in product(SIZES, SHAPES, COLORS, BACKGROUNDS)
        if Scene(shape, color, ground).held_out
    ]
    pairs = [(scene, caption(scene)) for scene in scenes]
    pairs += [(scene, caption(scene, size=False)) for scene in scenes if scene.size == "large"]
    return pairs[:count]


def calling(adapter: miniature.MiniatureAdapter, count: int) -> list[Scene]:
    """Scenes of a subject over sizes and grounds, or of a style over all shapes, colours and grounds."""
    if adapter.kind == "subject":
        return sample(count, 11, objects=(adapter.shows,), held_out=None)
    scenes = sample(count, 11, held_out=None)
    return [replace(scene, object=tuple(SHAPES)[i % 6], style=adapter.shows) for i, scene in enumerate(scenes)]
