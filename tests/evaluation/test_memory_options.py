"""What makes a large model fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import mergelab as ml
from mergelab.evaluation.store import Store
from tests.evaluation.small import PROMPTS, SMALL

ON_GPU = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]


@pytest.mark.parametrize(
    "memory",
    [
        {"vae_tiling": True},
        {"compile": True},
        pytest.param({"offload": "model"}, marks=ON_GPU),
        pytest.param({"offload": "sequential"}, marks=ON_GPU),
    ],
)
def test_memory_options(memory: dict[str, Any], tmp_path: Path) -> None:
    """Each draws the same picture as without it, up to rounding."""
    small = SMALL | {"seeds": 1, "prompts": PROMPTS[:1], "metrics": ["judge"], "merges": [], "generation": {"steps": 2}}
    plain = ml.evaluate(small, tmp_path / "plain")
    other = ml.evaluate(small | {"memory": memory}, tmp_path / "other")
    assert not other.failures
    stores = [Store(result.folder) for result in (plain, other)]
    for a, b in zip(plain.scores.image.unique(), other.scores.image.unique()):
        images = [store.load_image(name.removesuffix(".png")) for store, name in zip(stores, (a, b))]
        assert (images[0] - images[1]).abs().max() <= 2 / 255


def test_offload_needs_a_gpu(tmp_path: Path) -> None:
    """It says so instead of failing somewhere in accelerate."""
    with pytest.raises(ml.OptionError, match="moves layers to a GPU, and device is 'cpu'"):
        ml.evaluate(SMALL | {"memory": {"offload": "model"}, "device": "cpu"}, tmp_path)


def test_half_precision(tmp_path: Path) -> None:
    """bfloat16 is a dtype of the pipeline, and another request."""
    small = SMALL | {"seeds": 1, "prompts": PROMPTS[:1], "metrics": ["judge"], "merges": [], "generation": {"steps": 2}}
    first = ml.evaluate(small, tmp_path)
    second = ml.evaluate(small | {"dtype": "bfloat16"}, tmp_path)
    assert not second.failures and not set(first.scores.image) & set(second.scores.image)
