"""Denoising loops written out by hand: each score with the base weights of its own, guided, and then averaged."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

import mergelab as ml
from mergelab import miniature
from tests.live import PROMPT, changed_by_hand

Weights = Sequence[Mapping[str, float]]
"""Of each adapter: pattern of layer names -> weight."""


@torch.no_grad()
def by_hand(
    pipe: Any,
    name: str,
    adapters: Sequence[ml.Adapter],
    plan: Callable[[int, int], Sequence[Weights]],
    steps: int,
    text: Weights | None = None,
) -> Tensor:
    """The last latents, where the score of a step is the mean of the guided scores at the weights that are planned."""
    with changed_by_hand(pipe, adapters if text else [], text or []):
        score, latents = (_sdxl if name == "sdxl" else _flux)(pipe, steps)
    for i, t in enumerate(pipe.scheduler.timesteps):
        scores = []
        for weights in plan(i, steps):
            with changed_by_hand(pipe, adapters, weights):
                scores.append(score(latents, t))
        latents = pipe.scheduler.step(torch.stack(scores).mean(0), t, latents, return_dict=False)[0]
    return latents.float()


def _sdxl(pipe: Any, steps: int) -> tuple[Callable[[Tensor, Tensor], Tensor], Tensor]:
    scale = miniature.settings("sdxl")["guidance_scale"]
    positive, negative, pooled, negative_pooled = pipe.encode_prompt(PROMPT)
    pipe.scheduler.set_timesteps(steps)
    shape = (1, pipe.unet.config.in_channels, *[pipe.unet.config.sample_size] * 2)
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * pipe.scheduler.init_noise_sigma
    side = float(shape[-1] * pipe.vae_scale_factor)
    times = torch.tensor([[side, side, 0.0, 0.0, side, side]])

    def predicted(given: Tensor, t: Tensor, states: Tensor, embeds: Tensor) -> Tensor:
        added = {"text_embeds": embeds, "time_ids": times}
        return pipe.unet(given, t, encoder_hidden_states=states, added_cond_kwargs=added, return_dict=False)[0]

    def score(latents: Tensor, t: Tensor) -> Tensor:
        given = pipe.scheduler.scale_model_input(latents, t)
        without = predicted(given, t, negative, negative_pooled)
        return without + scale * (predicted(given, t, positive, pooled) - without)

    return score, noise


def _flux(pipe: Any, steps: int) -> tuple[Callable[[Tensor, Tensor], Tensor], Tensor]:
    settings = miniature.settings("flux")
    length, scale = settings["max_sequence_length"], settings["true_cfg_scale"]
    texts = [pipe.encode_prompt(text, None, max_sequence_length=length) for text in (PROMPT, "")]
    channels = pipe.transformer.config.in_channels // 4
    generator = torch.Generator().manual_seed(0)
    noise, ids = pipe.prepare_latents(1, channels, 48, 48, torch.float32, torch.device("cpu"), generator)
    pipe.scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / steps, steps), mu=1.0)
    pipe.scheduler.set_begin_index(0)

    def score(latents: Tensor, t: Tensor) -> Tensor:
        guided, without = (
            pipe.transformer(
                hidden_states=latents,
                timestep=t.expand(1) / 1000,
                pooled_projections=pooled,
                encoder_hidden_states=states,
                txt_ids=text_ids,
                img_ids=ids,
                return_dict=False,
            )[0]
            for states, pooled, text_ids in texts
        )
        return without + scale * (guided - without)

    return score, noise
