"""What a newcomer runs first: two adapters of a miniature model, five ways to merge them, and a report."""

from __future__ import annotations

import os
from typing import Any

from mergelab import miniature
from mergelab.evaluation.result import Result
from mergelab.evaluation.run import evaluate

PAIR = ("ghost", "day")
"""The subject and the style that are merged."""


def config(pipeline: str) -> dict[str, Any]:
    """The configuration of the demo, as a user would write it.

    Raises:
        OptionError: there is no such miniature pipeline.
    """
    known = {adapter.name: adapter for adapter in miniature.adapters(pipeline)}
    subject, style = (known[name] for name in PAIR)
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
            *(f"a {size}{subject.trigger} on a {ground} background {style.prompt}"
              for size, ground in (("", "gray"), ("large ", "navy"), ("small ", "white"))),
            "a blue circle on a white background",
            "a small yellow star on a navy background",
        ],
        "seeds": 4,
        "generation": {"steps": 12, "batch": 4},
        "metrics": ["judge", "clip_text", "clip_image", "lpips"],
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
        'Best by the adapter that suffers most, on these prompts and seeds: cat keeps ...'
    """
    return evaluate(config(pipeline), out, progress=progress)
