"""What tests of fusing share: small pipelines, their adapters, what they hold and what is kept of them."""

from __future__ import annotations

import gc
from typing import Any

import torch
from torch import Tensor, nn

import mergelab as ml
from mergelab import miniature
from mergelab.pipelines import originals
from mergelab.pipelines.opening import quietly

# Text encoders are changed by "fish".
NAMES = ("ghost", "day", "fish", "stripes", "mushroom")
WEIGHTS = (0.8, 1.0, -0.5, 0.3, 0.6)


def opened(kind: str, dtype: torch.dtype = torch.float32) -> Any:
    with quietly():
        pipe: Any = miniature.pipeline(kind, torch_dtype=dtype)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def loaded(kind: str, count: int) -> list[ml.Adapter]:
    return [ml.load(f"miniature/{kind}/{name}") for name in NAMES[:count]]


def state(pipe: Any) -> dict[str, Tensor]:
    parts = {name: part for name, part in pipe.components.items() if isinstance(part, nn.Module)}
    return {f"{name}.{key}": value.clone() for name, part in parts.items() for key, value in part.state_dict().items()}


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(value, second[key]) for key, value in first.items())


def kept() -> int:
    """How many originals are kept."""
    gc.collect()
    return sum(len(records) for records in originals._RECORDS.values())
