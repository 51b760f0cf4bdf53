"""What a newcomer runs first: two adapters of a miniature model, five ways to merge them, and a report."""

from __future__ import annotations

import os
from typing import Any

from mergelab import miniature
from mergelab.evaluation.result import Result
from mergelab.evaluation.run import evaluate

PAIRS = {"sdxl": ("ghost", "stripes"), "flux": ("house", "stripes")}
"""The subject and the style that are merged: pairs that conflict, so that methods differ."""
PLACES = [(size, ground) for size in ("large ", "small ") for ground in ("gray", "navy", "white", "sand")]
"""Size and ground of the pictures that call both: prompts are what varies, and eight of them can tell something."""


def config(pipeline: str) -> dict[str, Any]:
    """The configuration of the demo, as a user would write it.

    Raises:
        OptionError: there is no such miniature pipeline.
    """
    known = {adapter.name: adapter for adapter in miniature.adapters(pipeline)}
    subject, style = (known[name] for name in PAIRS[pipeline])
    things = [f"{size}{subject.trigger} on a {ground} background" for size, ground in PLACES]
    return {
        "pipeline": f"miniature/{pipeline}",
        "loras": [{"path": f"miniature/{pipeline}/{adapter.name}"} for adapter in (subject, style)],
        "merges": [
            {"method": "cat"},
            {"method": "svd", "rank": 16},
            {"method": "ties", "density": 0.5, "rank": 16, "space": ["delta", "core"]},
            {"method": "dare", "density": 0.5, "rank": 16},
        ],
        "prompts": [
            *(f"a {thing} {style.prompt}" for thing in things),
            *(f"a {thing}" for thing in things[:3]),
            *(f"a {thing} {style.prompt}" for thing in ("red square", "large green star", "small blue circle")),
            "a blue circle on a white background",
            "a small yellow star on a navy background",
            "a large red cross on a sand background",
            "a green ring on a black background",
        ],
        "seeds": 1,
        "generation": {"steps": 12, "batch": 4},
        "metrics": ["nearness", "judge", "clip_text", "clip_image", "lpips"],
    }  # fmt: skip


def demo(pipeline: str = "sdxl", out: str | os.PathLike[str] = "mergelab-demo", progress: bool | None = None) -> Result:
    """Merges a subject and a style of a miniature model in five ways, generates, scores, and writes a report.

    Args:
        pipeline: "sdxl" or "flux".
        out: the run folder; its `report.html` is what to look at.
        progress: a progress bar; None shows one on a terminal.

    Raises:
        OptionError: there is no such miniature pipeline.
        OutputError: the folder is in use, or is none; or every single cell failed.

    Example:
        >>> demo("flux", "demo").verdict[0]  # doctest: +SKIP
        'ties ... over the stack by ...'
    """
    return evaluate(config(pipeline), out, progress=progress)
