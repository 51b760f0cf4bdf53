"""Metrics of the user's own."""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import mergelab as ml
from mergelab import miniature
from mergelab.evaluation.metrics import registry
from mergelab.evaluation.metrics.judge import Judge, Verdicts
from mergelab.evaluation.metrics.metric import Asked, Picture
from tests.evaluation.small import PROMPTS, SMALL

CONCEPTS = {"fish": ("a qrv",), "stripes": ("in vtx style",)}


@pytest.fixture(autouse=True)
def registered() -> Iterator[None]:
    """What a test registers is gone after it."""
    yield
    registry._REGISTERED.clear()


def scored_again(run: ml.evaluation.Result, folder: Path, pipeline: Any, metrics: list[str]) -> ml.evaluation.Result:
    """The images of a run, scored with these metrics as well."""
    shutil.copytree(run.folder, folder)
    return ml.evaluate(SMALL | {"metrics": [*SMALL["metrics"], *metrics]}, folder, pipeline=pipeline)


def said_of(result: ml.evaluation.Result, metric: str) -> list[tuple[Any, ...]]:
    """Every finding and every range of a metric; NaN as None."""
    rows = [(f.quantity, f.variant, f.reference, *vars(f.interval).values(), f.p) for f in result.findings
            if f.metric == metric]  # fmt: skip
    rows += [(a.reference, a.floor, a.ceiling, a.noise, a.blind) for a in result.anchors if a.metric == metric]
    return [tuple(None if isinstance(v, float) and math.isnan(v) else v for v in row) for row in rows]


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


def test_one_between_images_is_treated_as_those_that_come_with_mergelab(
    run: ml.evaluation.Result, pipeline: Any, tmp_path: Path
) -> None:
    """LPIPS under another name, told from its values alone: the same findings, wins, floor, ceiling and noise."""
    network = miniature.perceptual()

    @ml.register_metric("mine", higher_is_better=False)
    @torch.no_grad()
    def mine(image: Tensor, prompt: str, references: Mapping[str, Tensor]) -> dict[str, float]:
        return {name: float(network(image[None], other[None], normalize=True)) for name, other in references.items()}

    result = scored_again(run, tmp_path / "run", pipeline, ["mine"])
    assert said_of(result, "mine") == said_of(result, "lpips") and len(said_of(result, "mine")) > 20
    ours = next(description for description in result.metrics if description.name == "mine")
    assert (ours.compares_with, ours.range, ours.higher_is_better) == ("images", (0.0, math.inf), False)
    page = (result.folder / "report.html").read_text()
    assert "mine to fish: distance from the image of fish alone" in page
    assert "Lower is better: lpips (miniature), mine." in page
    assert "clip_image to fish: likeness to the image of fish alone" in page and "mine to fish" in str(result)


def test_the_direction_decides_who_wins(run: ml.evaluation.Result, pipeline: Any, tmp_path: Path) -> None:
    """A distance and a likeness that is its negative: the same wins; the likeness has no ceiling unless it says so."""

    def distance(image: Tensor, prompt: str, references: Mapping[str, Tensor]) -> dict[str, float]:
        return {name: float((image - other).square().mean()) for name, other in references.items()}

    def likeness(image: Tensor, prompt: str, references: Mapping[str, Tensor]) -> dict[str, float]:
        return {name: -value for name, value in distance(image, prompt, references).items()}

    ml.register_metric("distance", higher_is_better=False)(distance)
    ml.register_metric("likeness")(likeness)
    ml.register_metric("bounded", range=(-1, 0))(likeness)
    result = scored_again(run, tmp_path / "run", pipeline, ["distance", "likeness", "bounded"])
    wins = {metric: [(c.first, c.second, c.quantity, c.reference, c.wins) for c in result.contrasts
                     if c.metric == metric] for metric in ("distance", "likeness", "bounded")}  # fmt: skip
    assert wins["distance"] == wins["likeness"] == wins["bounded"]
    frame = result.scores
    rows = frame[(frame.metric == "distance") & (frame.reference == "single:fish") & (frame.prompt == PROMPTS[3])]
    rows = rows.set_index("variant")
    merge, stack = (rows.value[name].to_numpy() for name in ("merge:ties rank=8", "stack"))
    by_hand = (merge < stack).mean() + (merge == stack).mean() / 2
    assert ("merge:ties rank=8", "stack", "likeness", "single:fish", by_hand) in wins["distance"]
    ranges = {a.metric: a for a in result.anchors if a.reference == "single:fish"}
    assert ranges["distance"].ceiling == ranges["bounded"].ceiling == 0 and math.isnan(ranges["likeness"].ceiling)
    assert ranges["distance"].blind == ranges["bounded"].blind and not ranges["likeness"].blind


@pytest.mark.parametrize("higher_is_better", [True, False])
def test_one_of_concepts_is_asked_for_recovery(
    higher_is_better: bool, run: ml.evaluation.Result, pipeline: Any, tmp_path: Path
) -> None:
    """The judge, or how sure it is of the contrary, declared to compare with words: the same recovery and verdict."""

    @ml.register_metric("mine", higher_is_better=higher_is_better, compares_with="words", range=(0, 1))
    def mine(image: Tensor, prompt: str, references: Mapping[str, Tensor]) -> dict[str, float]:
        assert not references
        values = Judge(Verdicts()).score(Picture("", image), Asked(prompt, concepts=CONCEPTS))
        return {name: value if higher_is_better else 1 - value for name, value in values.items()}

    shutil.copytree(run.folder, tmp_path / "run")
    result = ml.evaluate(SMALL | {"metrics": ["mine"]}, tmp_path / "run", pipeline=pipeline)
    for quantity in ("recovery", "leakage", "preservation") if higher_is_better else ("recovery",):
        mine_rows, judge_rows = ({(f.variant, f.reference, f.prompts): f.interval.estimate for f in r.findings
                                  if (f.metric, f.quantity) == (name, quantity)}
                                 for r, name in ((result, "mine"), (run, "judge")))  # fmt: skip
        assert mine_rows == pytest.approx(judge_rows, nan_ok=True, abs=1e-6) and mine_rows
    for quantity in ("joint", "concept", "preservation"):
        mine_rows, judge_rows = ({(c.first, c.second, c.reference, c.prompts): c.interval.estimate for c in r.contrasts
                                  if (c.metric, c.quantity) == (name, quantity)}
                                 for r, name in ((result, "mine"), (run, "judge")))  # fmt: skip
        assert mine_rows == pytest.approx(judge_rows, abs=1e-6) and mine_rows
    assert result.verdict[0] == run.verdict[0].replace("judge", "mine")
    blind = {(name, a.reference): a.blind for r, name in ((result, "mine"), (run, "judge")) for a in r.anchors
             if a.metric == name}  # fmt: skip
    assert all(blind["mine", f"single:{name}"] == blind["judge", f"single:{name}"] for name in CONCEPTS)


def test_what_a_metric_declares_is_held_against_its_scores(pipeline: Any, tmp_path: Path) -> None:
    """A score outside the range is a failed cell; what cannot be declared is one sentence; the last function counts."""

    @ml.register_metric("bright", range=(0, 0.001))
    def bright(image: Tensor, prompt: str, references: Mapping[str, Tensor]) -> float:
        return float(image.mean())

    small = SMALL | {"seeds": 1, "prompts": PROMPTS[:1], "merges": [], "metrics": ["bright", "judge"]}
    result = ml.evaluate(small, tmp_path, pipeline=pipeline)
    assert len(result.failures) == 4 and "is outside of the metric's range, 0 to 0.001" in result.failures[0]["error"]

    @ml.register_metric("bright", higher_is_better=False, compares_with="nothing")
    def darker(image: Tensor, prompt: str, references: Mapping[str, Tensor]) -> float:
        assert not references
        return float(image.mean())

    again = ml.evaluate(small, tmp_path, pipeline=pipeline)
    assert (
        not again.failures
        and "bright: mean over all prompts; lower is better" in (tmp_path / "report.html").read_text()
    )
    with pytest.raises(ml.OptionError, match="compares_with='text': expected one of 'words', 'images', 'nothing'"):
        ml.register_metric("other", compares_with="text")  # type: ignore[arg-type]
    assert ml.register_metric("other", range=(0, math.inf))(darker) is darker
    for wrong in ((1, 0), 5, ("a", "b"), "ab", (0, 1, 2), (0, math.nan), (0, None), (False, True), (0, 10**400)):
        with pytest.raises(ml.OptionError, match=r"'other': range=.*: expected the lowest and the highest value"):
            ml.register_metric("other", range=wrong)  # type: ignore[arg-type]
