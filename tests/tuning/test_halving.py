"""The search by halving, on a bench whose scores are known."""

from __future__ import annotations

import math
from statistics import fmean
from typing import Any

import pandas as pd
import pytest

import mergelab as ml
from mergelab.tuning.anchors import best_of, measured_anchors, tuned_sums
from mergelab.tuning.candidate import Candidate, Scene
from mergelab.tuning.config import Balance, TuneConfig
from mergelab.tuning.halving import ranked, search_blocks
from mergelab.tuning.scenes import Asked, halves, in_order, rounds
from mergelab.tuning.scoring import Scored, scored
from tests.tuning.measured_frames import SHARE, HandBench

PROMPTS = [
    *(Asked(f"both {n}", frozenset({"ghost", "day"})) for n in range(6)),
    *(Asked(f"{name} {n}", frozenset({name})) for name in ("ghost", "day") for n in range(2)),
    *(Asked(f"plain {n}", frozenset()) for n in range(2)),
]


def config(*more: dict[str, Any], **keys: Any) -> TuneConfig:
    """Of a search that draws nothing; with more adapters than two."""
    loras = [{"path": name, "name": name} for name in ("ghost", "day")] + list(more)
    return TuneConfig(pipeline="none", loras=loras, prompts=["a"], score="judge", **keys)  # type: ignore[arg-type]


def found(bench: HandBench, settings: TuneConfig) -> Any:
    """What a search finds there, with all its trials as they ended."""
    adapters = {name: ml.load(f"miniature/sdxl/{name}") for name in ("ghost", "day")}
    first, second = rounds(PROMPTS, [0, 1, 2, 3], settings.images, settings.more, settings.balance)
    anchors, _ = measured_anchors(settings, bench, first + second)
    ended: list[Any] = []

    def score(frame: pd.DataFrame, scenes: Any) -> dict[str, Scored]:
        return scored(frame, anchors, scenes, SHARE, settings.balance)

    result = search_blocks(settings, adapters, bench, score, (first, second), ended.append)
    return result, ended, tuned_sums(settings, bench, score, first + second)


def strength(candidate: Candidate) -> float:
    """The mean of all its weights."""
    weights = candidate.weights.values()
    return fmean(fmean(w.values()) if isinstance(w, dict) else w for w in weights) if candidate.weights else 0.0  # type: ignore[arg-type]


def test_the_best_setting_wins_and_the_best_are_drawn_on_more() -> None:
    """Of a score that falls with the strength: the lowest wins; the later settings lie around the best before them."""
    bench = HandBench(lambda candidate: 1 / (1 + strength(candidate)))
    result, ended, sums = found(bench, config(settings=24, images=3, keep=4, more=8))
    assert len(result.trials) == 24 and [trial.number for trial in result.trials] == list(range(24))
    complete = [trial.number for trial in result.trials if trial.state == "complete"]
    assert len(complete) == 4 and len(ended) == 24 + 4
    lowest = min(result.trials, key=lambda trial: strength(trial.candidate))
    assert result.winner == lowest and result.best == (lowest.number,)
    means = [fmean(strength(trial.candidate) for trial in result.trials[start : start + 8]) for start in (0, 8, 16)]
    assert means[0] > means[1] > means[2]
    of_settings = [count for label, count in bench.asked if label.startswith("setting")]
    assert of_settings == [3 + 3 + 2] * 24 + [3 + 3 + 2 + 8 + 8 + 4] * 4
    assert best_of(sums).candidate.label == "sum 0.7"  # type: ignore[union-attr]


def test_the_plain_sum_goes_on_too() -> None:
    """At the best of its strengths, where other settings are better on the first scenes."""
    bench = HandBench(lambda candidate: 0.5 if len(set(candidate.weights.values())) == 1 else 0.6)  # type: ignore[type-var]
    result, *_ = found(bench, config(settings=8, groups="none", keep=2))
    assert [trial.number for trial in result.trials if trial.state == "complete"] == [0, 4, 5]


def test_an_adapter_for_few_steps_keeps_its_weight() -> None:
    """In every setting, and in the plain sums."""
    bench = HandBench(lambda candidate: 1 / (1 + strength(candidate)))
    few = {"path": "turbo", "name": "turbo", "always": True, "weight": 0.9}
    result, _, sums = found(bench, config(few, settings=9, keep=2, more=0))
    settings, usual = ([trial.candidate.weights for trial in trials] for trials in (result.trials, sums))
    assert {weights["turbo"] for weights in settings + usual} == {0.9}
    assert len({weights["ghost"] for weights in usual}) == 6 and not any("turbo" in t.parameters for t in result.trials)


def test_it_is_the_same_again() -> None:
    """And other settings for another seed; a shorter search begins as a longer one."""
    bench = HandBench(lambda candidate: 1 / (1 + strength(candidate)))
    first, again, short = (found(bench, config(settings=n, keep=2, more=0))[0] for n in (12, 12, 9))
    assert first == again and [t.candidate for t in short.trials] == [t.candidate for t in first.trials[:9]]
    assert found(bench, config(settings=12, keep=2, more=0, seed=1))[0].trials[8:] != first.trials[8:]


def test_one_weight_for_each_adapter() -> None:
    """With `groups: none`."""
    result, *_ = found(HandBench(lambda candidate: 1 / (1 + strength(candidate))), config(groups="none", settings=10))
    assert all(isinstance(weight, float) for trial in result.trials for weight in trial.candidate.weights.values())


def test_settings_that_fail_take_no_others_with_them() -> None:
    """They say why; where all fail the search says so."""
    bench = HandBench(lambda candidate: math.nan if candidate.label == "setting 3" else 0.5)
    result, *_ = found(bench, config(settings=8, keep=2, more=0))
    failed = [trial for trial in result.trials if trial.state == "failed"]
    assert [(trial.number, trial.error) for trial in failed] == [(3, "LayerError: no such layer")]
    with pytest.raises(ml.OutputError, match="every setting failed: LayerError: no such layer"):
        found(HandBench(lambda one: math.nan if one.label.startswith("setting") else 0.5), config(settings=8, keep=2))


def test_ranks_by_the_score() -> None:
    """Of equals the first stays first."""
    result, *_ = found(HandBench(lambda candidate: 0.5), config(settings=8, keep=2, more=0))
    assert [trial.number for trial in ranked(result.trials)] == list(range(8)) and result.winner.number == 0


def test_scenes() -> None:
    """The first ones differ in prompt and seed, none is there twice, and the rounds do not share any."""
    scenes = in_order(PROMPTS, [0, 1, 2])
    assert len(set(scenes)) == len(scenes) == 3 * len(PROMPTS)
    first, second = rounds(PROMPTS, [0, 1], 3, 8, Balance())
    assert not set(first) & set(second)
    assert {scene.calls for scene in first if scene.part == "own"} == {frozenset({"ghost"}), frozenset({"day"})}
    assert len({scene.prompt for scene in first if scene.part == "joint"}) == 3
    only, _ = rounds(PROMPTS, [0], 3, 0, Balance(joint=1, own=0, plain=0))
    assert {scene.part for scene in only} == {"joint"}
    with pytest.raises(ml.OptionError, match="none calls no adapter"):
        rounds(PROMPTS[:-2], [0], 3, 8, Balance())


def test_half_of_each_kind_is_held_out() -> None:
    """No prompt is in both halves, but for a kind of one."""
    first, second = halves([*PROMPTS, Asked("alone", frozenset({"x"}))])
    assert {one.text for one in first} & {one.text for one in second} == {"alone"}
    assert [len([one for one in half if len(one.calls) == 2]) for half in (first, second)] == [3, 3]
    assert Scene("a", frozenset(), 0).part == "plain"
