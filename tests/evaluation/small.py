"""A small evaluation on the miniature SDXL, which the tests vary."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from torch import Tensor

from mergelab.evaluation.executors import worker
from mergelab.pipelines.images import generate_images

PROMPTS = [
    "a qrv on a gray background in vtx style",
    "a large qrv in vtx style",
    "a red square on a white background",
    "a qrv on a white background",
    "a red circle in vtx style",
]
"""Two that call both adapters, one that calls none, and one for each alone."""
SMALL: dict[str, Any] = {
    "pipeline": "miniature/sdxl",
    "loras": [{"path": "miniature/sdxl/fish"}, {"path": "miniature/sdxl/stripes"}],
    "merges": [{"method": "cat"}, {"method": "ties", "rank": 8}],
    "prompts": PROMPTS,
    "seeds": 2,
    "metrics": ["judge", "clip_text", "clip_image", "lpips"],
    "generation": {"steps": 4, "batch": 4},
}


def counted(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """Records every image that is drawn from now on."""
    drawn: list[tuple[str, int]] = []

    def counting(pipe: Any, units: Sequence[tuple[str, int]], keywords: Mapping[str, Any]) -> list[Tensor]:
        drawn.extend(units)
        return generate_images(pipe, units, keywords)

    monkeypatch.setattr(worker, "generate_images", counting)
    return drawn
