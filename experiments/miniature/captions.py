"""Captions as people would write them: not always complete, sometimes with a word that means nothing."""

from __future__ import annotations

from dataclasses import replace

import torch

from experiments.miniature.tokens import RARE
from mergelab.miniature.world import TRIGGERS, Scene, caption


def vary(scene: Scene, generator: torch.Generator, *, rare: bool = False) -> str:
    """A caption of the scene: size and background are each left out one time in five, one in ten is capitalised.

    Args:
        scene: what is shown.
        generator: of the step.
        rare: whether a meaningless word may take the place of a style (one in ten) or of colour and shape (one in
            twenty), so that the base models have seen words that mean nothing.
    """
    draw = torch.rand(5, generator=generator).tolist()
    text = caption(scene, size=draw[0] > 0.2, background=draw[1] > 0.2)
    if rare:
        word = RARE[int(torch.randint(len(RARE), (1,), generator=generator))]
        if draw[2] < 0.1:
            text += f" in {word} style"
        if draw[3] < 0.05:
            stranger = caption(replace(scene, object="ghost"), size=draw[0] > 0.2, background=draw[1] > 0.2)
            text = stranger.replace(TRIGGERS["ghost"], word)
    return text[0].upper() + text[1:] if draw[4] < 0.1 else text
