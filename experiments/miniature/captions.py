"""Captions as people would write them: not always complete, not always in the same order."""

from __future__ import annotations

import torch

from mergelab.miniature.world import SHAPES, Scene, caption


def vary(scene: Scene, generator: torch.Generator, *, reorder: bool = False) -> str:
    """A caption of the scene: size and background are each left out one time in five, one in ten is capitalised.

    Args:
        scene: what is shown.
        generator: of the step.
        reorder: whether the colour of a shape may be named at the end, "in red style", instead (one in four) or as well
            (one in ten). A base model that has learned to read that place reads the trigger of a style there too; one
            that never found a meaning there ignores it, and no adapter of any size then learns to tell the two apart.
    """
    draw = torch.rand(4, generator=generator).tolist()
    text = caption(scene, size=draw[0] > 0.2, background=draw[1] > 0.2)
    if reorder and scene.object in SHAPES and scene.style is None and draw[2] < 0.35:
        if draw[2] < 0.25:
            text = text.replace("an orange", "a").replace(f" {scene.color} {scene.object}", f" {scene.object}")
        text += f" in {scene.color} style"
    return text[0].upper() + text[1:] if draw[3] < 0.1 else text
