"""What an adapter is held against in words: one prompt or several, of the configuration."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

import mergelab as ml
from mergelab.evaluation.metrics import encoders, judge, lpips
from mergelab.evaluation.metrics.clip import ClipText
from mergelab.evaluation.metrics.metric import Asked, Metric
from tests.evaluation.small import PROMPTS, SMALL

ONE = SMALL | {"seeds": 1, "prompts": PROMPTS[:1], "merges": [], "generation": {"steps": 2}}


def with_concept(concept: Any) -> dict[str, Any]:
    return ONE | {"loras": [{"path": "miniature/sdxl/fish", "concept": concept}, "miniature/sdxl/stripes"]}


def test_several_in_a_run(pipeline: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The mean of two runs with one each; with another concept, metrics of images are not asked again."""
    scored: list[str] = []

    def count(cls: type[Metric], name: str) -> None:
        own = cls.score

        def score(self: Any, picture: Any, asked: Asked) -> Mapping[str, float]:
            scored.append(self.description.name)
            return own(self, picture, asked)

        monkeypatch.setattr(cls, name, score)

    for cls in (ClipText, encoders.ImageSimilarity, judge.Judge, lpips.Lpips):
        count(cls, "score")
    means = []
    for concept in ("a qrv", "a large qrv", ["a qrv", "a large qrv"]):
        scored.clear()
        result = ml.evaluate(with_concept(concept), tmp_path, pipeline=pipeline)
        rows = result.scores[(result.scores.metric == "clip_text") & (result.scores.reference == "single:fish")]
        means.append(rows.set_index("variant").value)
        expected = {"judge", "clip_text"} if len(means) > 1 else set(ONE["metrics"])
        assert set(scored) == expected and len(scored) == 4 * len(expected)
    assert means[2].to_dict() == pytest.approx(((means[0] + means[1]) / 2).to_dict(), abs=1e-6)
    assert (means[0] != means[1]).all()
    assert result.config.loras[0].concepts == ("a qrv", "a large qrv")
    scored.clear()
    ml.evaluate(with_concept(["a qrv", "a large qrv"]), tmp_path, pipeline=pipeline)
    assert not scored


def test_what_is_no_concept() -> None:
    """Is named by its key; none at all is fine."""
    read = ml.evaluation.read
    for wrong in (3, [3], {"a": "b"}):
        with pytest.raises(ml.OptionError, match=r"loras\.0\.concept: expected a prompt, or a list of several, got"):
            read(with_concept(wrong))
    assert read(with_concept([]) | {"loras": [{"path": "x", "concept": []}]}).loras[0].concepts == ()
