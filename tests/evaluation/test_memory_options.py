"""What makes a large model fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import mergelab as ml
from mergelab.evaluation.store import Store
from tests.evaluation.small import PROMPTS, SMALL

TINY = SMALL | {"seeds": 1, "prompts": PROMPTS[:1], "metrics": ["judge"], "merges": [], "generation": {"steps": 2}}
ON_GPU = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> ml.evaluation.Result:
    """Without any of them."""
    return ml.evaluate(TINY, tmp_path_factory.mktemp("plain"))


@pytest.mark.parametrize(
    "memory",
    [
        {"vae_tiling": True},
        {"compile": True},
        pytest.param({"offload": "model"}, marks=ON_GPU),
        pytest.param({"offload": "sequential"}, marks=ON_GPU),
    ],
)
def test_memory_options(memory: dict[str, Any], plain: ml.evaluation.Result, tmp_path: Path) -> None:
    """Each draws the same picture as without it, up to rounding."""
    other = ml.evaluate(TINY | {"memory": memory}, tmp_path)
    assert not other.failures
    stores = [Store(result.folder) for result in (plain, other)]
    for a, b in zip(plain.scores.image.unique(), other.scores.image.unique()):
        images = [store.load_image(name.removesuffix(".png")) for store, name in zip(stores, (a, b))]
        assert (images[0] - images[1]).abs().max() <= 2 / 255


def test_offload_needs_a_gpu(tmp_path: Path) -> None:
    """It says so instead of failing somewhere in accelerate."""
    with pytest.raises(ml.OptionError, match="moves layers to a GPU, and device is 'cpu'"):
        ml.evaluate(SMALL | {"memory": {"offload": "model"}, "device": "cpu"}, tmp_path)


def test_half_precision(plain: ml.evaluation.Result) -> None:
    """bfloat16 is a dtype of the pipeline, and another request, in the same folder too."""
    second = ml.evaluate(TINY | {"dtype": "bfloat16"}, plain.folder)
    assert not second.failures and not set(plain.scores.image) & set(second.scores.image)
