"""Trains a base model: `python -m experiments.miniature.base sdxl` or `flux`."""

from __future__ import annotations

import sys
from collections.abc import Callable

import torch
from diffusers import DiffusionPipeline
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from experiments.miniature import flux, rare, sdxl, vae
from experiments.miniature.captions import vary
from experiments.miniature.training import DEVICE, RUNS, fit
from mergelab.miniature.world import Scene, draw, sample

KINDS = {"sdxl": sdxl, "flux": flux}
PICTURES = 24000


def trained(pipeline: DiffusionPipeline) -> nn.ModuleDict:
    """The networks that a base model trains; the autoencoder is finished before."""
    names = ("unet", "transformer", "text_encoder", "text_encoder_2")
    return nn.ModuleDict({name: getattr(pipeline, name) for name in names if hasattr(pipeline, name)})


def latents_of(scenes: list[Scene], autoencoder: nn.Module, drawn: Callable[[list[Scene]], Tensor] = draw) -> Tensor:
    """Latents (n, 8, 12, 12) of the scenes."""
    return torch.cat([vae.encode(autoencoder, drawn(scenes[i : i + 500])) for i in range(0, len(scenes), 500)])


def train(name: str) -> DiffusionPipeline:
    """Trains the base model, or loads it where it is finished."""
    folder = RUNS / name
    if folder.exists():
        return DiffusionPipeline.from_pretrained(folder)
    kind, autoencoder = KINDS[name], vae.train()
    scenes = sample(PICTURES, seed=2)
    cached = RUNS / "latents.pt"
    if not cached.exists():
        torch.save(latents_of(scenes, autoencoder), cached)
    latents = torch.load(cached)
    pipeline = kind.build(autoencoder)
    pipeline.set_progress_bar_config(disable=True)

    def loss(generator: torch.Generator) -> Tensor:
        picks = torch.randint(len(scenes), (kind.BATCH,), generator=generator)
        captions = [vary(scenes[pick], generator, reorder=True) for pick in picks.tolist()]
        return mse_loss(*kind.predict(pipeline, latents[picks].to(DEVICE), captions, generator))

    fit(name, trained(pipeline), loss, steps=kind.STEPS, lr=kind.LR)
    rare.separate(name, pipeline, scenes, kind.SHARPNESS)
    pipeline.save_pretrained(folder)
    return pipeline


if __name__ == "__main__":
    train(sys.argv[1])
