"""Trains the adapter that draws in four steps without guidance what the base model draws in sixteen with it.

It learns the leaps of the guided model: from where that is after 0, 4, 8 and 12 steps to where it is four steps later.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from torch import Tensor
from torch.nn.functional import mse_loss
from tqdm import tqdm

from experiments.miniature import base
from experiments.miniature.captions import vary
from experiments.miniature.factors import Recipe, attach, path_of, save
from experiments.miniature.training import DEVICE, RUNS, fit
from mergelab import miniature
from mergelab.miniature.world import sample

NAME, LEAPS, STEPS = "turbo", 4, 16
RECIPE = Recipe(NAME, 16, 16, "diffusers")
PICTURES, TOGETHER, TRAINING, BATCH, LR = 1536, 64, 700, 24, 2e-3


@torch.no_grad()
def paths(name: str, pipeline: DiffusionPipeline) -> tuple[list[str], Tensor]:
    """Captions, and where the guided model is (n, 5, ...) after each leap on its way from noise; kept in `RUNS`."""
    scenes, generator = sample(PICTURES, seed=7), torch.Generator().manual_seed(7)
    captions = [vary(scene, generator, reorder=True) for scene in scenes]
    cached = RUNS / f"{name}-{NAME}-paths.pt"
    if not cached.exists():
        starts = base.KINDS[name].noise(PICTURES, generator)
        pipeline.to(DEVICE)
        torch.save(
            torch.cat([
                _path(name, pipeline, captions[i : i + TOGETHER], starts[i : i + TOGETHER])
                for i in tqdm(range(0, PICTURES, TOGETHER), desc=f"{name}: paths", mininterval=10)
            ]),
            cached,
        )  # fmt: skip
    return captions, torch.load(cached)


def _path(name: str, pipeline: DiffusionPipeline, captions: list[str], start: Tensor) -> Tensor:
    options: dict[str, Any] = miniature.settings(name) | {"num_inference_steps": STEPS, "output_type": "latent"}
    if "negative_prompt" in options:
        options["negative_prompt"] = [options["negative_prompt"]] * len(captions)
    pipeline.scheduler.set_timesteps(STEPS)
    found = [start * getattr(pipeline.scheduler, "init_noise_sigma", 1.0)]

    def after(_: DiffusionPipeline, step: int, __: int, state: dict[str, Tensor]) -> dict[str, Tensor]:
        if (step + 1) % (STEPS // LEAPS) == 0:
            found.append(state["latents"].cpu())
        return {}

    pipeline(captions, latents=start.to(DEVICE), callback_on_step_end=after, **options)
    return torch.stack(found, 1)


def train(name: str) -> Path:
    """Trains it, or returns its file where it is finished."""
    path = path_of(name, RECIPE)
    if path.exists():
        return path
    kind, pipeline = base.KINDS[name], base.train(name)
    pipeline.set_progress_bar_config(disable=True)
    captions, points = paths(name, pipeline)
    parts = base.trained(pipeline).requires_grad_(False)
    attach(name, parts, RECIPE)

    def loss(generator: torch.Generator) -> Tensor:
        picks = torch.randint(PICTURES, (BATCH,), generator=generator)
        place = torch.randint(LEAPS, (BATCH,), generator=generator)
        start, end = (points[picks, place + i].to(DEVICE) for i in (0, 1))
        return mse_loss(*kind.leap(pipeline, start, end, place, LEAPS, [captions[pick] for pick in picks.tolist()]))

    fit(f"{name}-{NAME}", parts, loss, steps=TRAINING, lr=LR, average=0.98, warmup=20)
    save(parts, RECIPE, path, {})
    return path
