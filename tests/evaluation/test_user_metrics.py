"""Metrics of the user's own."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

import mergelab as ml
from mergelab.evaluation.metrics import registry
from tests.evaluation.small import PROMPTS, SMALL


def test_a_metric_of_ones_own(pipeline: Any, tmp_path: Path) -> None:
    """A function and one line; it may give one number or one for each reference."""

    @ml.register_metric("brightness")
    def brightness(image: Tensor, prompt: str, references: Mapping[str, Tensor]) -> float:
        return float(image.mean())

    @ml.register_metric("distance", higher_is_better=False)
    def distance(image: Tensor, prompt: str, references: Mapping[str, Tensor]) -> dict[str, float]:
        return {key: float((image - other).abs().mean()) for key, other in references.items()}

    small = SMALL | {"seeds": 1, "prompts": PROMPTS[:1], "merges": [], "metrics": ["brightness", "distance"]}
    result = ml.evaluate(small, tmp_path, pipeline=pipeline)
    scores = result.scores
    assert "brightness" in str(result)
    assert '<button type="button">brightness</button>' in (tmp_path / "report.html").read_text()
    means = scores[scores.metric == "brightness"].groupby("variant").value.mean()
    found = {f.variant: f.interval.estimate for f in result.findings if f.metric == "brightness"}
    assert found == pytest.approx(means.to_dict())
    assert scores[scores.metric == "brightness"].value.between(0, 1).all()
    assert set(scores[scores.metric == "distance"].reference) == {"base", "single:fish", "single:stripes", "stack"}
    for name in ("brightness", "distance"):
        del registry._REGISTERED[name]
    with pytest.raises(ml.OptionError, match="comes with mergelab"):
        ml.register_metric("lpips")(brightness)


def test_a_metric_is_scored_again_when_its_version_changes(pipeline: Any, tmp_path: Path) -> None:
    """What the function relies on is not in its own text."""
    factor = 1.0

    def register(version: str) -> float:
        @ml.register_metric("scaled", version=version)
        def scaled(image: Tensor, prompt: str, references: Mapping[str, Tensor]) -> float:
            return factor * float(image.mean())

        small = SMALL | {"seeds": 1, "prompts": PROMPTS[:1], "merges": [], "metrics": ["scaled"]}
        return float(ml.evaluate(small, tmp_path, pipeline=pipeline).scores.value.iloc[0])

    first, factor = register("1"), 2.0
    assert register("1") == first and register("2") == pytest.approx(2 * first)
    del registry._REGISTERED["scaled"]
