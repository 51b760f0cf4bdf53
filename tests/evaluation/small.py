"""A small evaluation on the miniature SDXL, which the tests vary."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from torch import Tensor

from mergelab.evaluation import grid
from mergelab.pipelines.images import generate_image

PROMPTS = ["a qrv on a gray background in vtx style", "a large qrv in vtx style", "a red square on a white background"]
SMALL: dict[str, Any] = {
    "pipeline": "miniature/sdxl",
    "loras": [{"path": "miniature/sdxl/fish"}, {"path": "miniature/sdxl/stripes"}],
    "merges": [{"method": "cat"}, {"method": "ties", "rank": 8}],
    "prompts": PROMPTS,
    "seeds": 2,
    "metrics": ["judge", "clip_text", "clip_image", "lpips"],
    "generation": {"steps": 4},
}


def counted(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """Records every image that is drawn from now on."""
    drawn: list[tuple[str, int]] = []

    def counting(pipe: Any, prompt: str, seed: int, keywords: Mapping[str, Any]) -> Tensor:
        drawn.append((prompt, seed))
        return generate_image(pipe, prompt, seed, keywords)

    monkeypatch.setattr(grid, "generate_image", counting)
    return drawn
