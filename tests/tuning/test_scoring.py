"""The score of a candidate, by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from mergelab.evaluation.metrics.metric import Description
from mergelab.tuning.candidate import BASE, Scene, alone
from mergelab.tuning.config import Balance
from mergelab.tuning.scoring import anchors_needed, scale_of, scored
from tests.tuning.measured_frames import BOTH, COSINE, DAY, GHOST, PLAIN, SCENES, SHARE, frame_of

BASE_PLAIN = {(BASE, PLAIN): {"ghost": 0.0, "day": 0.1, "": 0.9}}


def test_shares_are_taken_as_they_are() -> None:
    """The least concept of a composed scene, the mean of the own ones, of plain ones what is lost and what leaks."""
    frame = frame_of("judge", {
        ("a", BOTH): {"ghost": 0.8, "day": 0.6, "": 0.5},
        ("a", GHOST): {"ghost": 0.9, "day": 0.3},
        ("a", DAY): {"ghost": 0.0, "day": 0.7},
        ("a", PLAIN): {"ghost": 0.05, "day": 0.3, "": 0.8},
    })  # fmt: skip
    found = scored(frame, frame_of("judge", BASE_PLAIN), SCENES, SHARE, Balance())["a"]
    assert found.joint == pytest.approx(0.6)
    assert found.own == pytest.approx((0.9 + 0.7) / 2)
    assert found.plain == pytest.approx(1 - (0.9 - 0.8) - (0.3 - 0.1))
    assert found.total == pytest.approx((0.6 + 0.8 + 0.5 * 0.7) / 2.5)
    assert found.recovery == {"ghost": pytest.approx(0.8), "day": pytest.approx(0.6)}
    assert found.images == 4


def test_the_balance_weighs_the_parts_that_have_scenes() -> None:
    """A part without scenes is NaN and counts nothing; nor does one of weight zero."""
    frame = frame_of("judge", {("a", BOTH): {"ghost": 0.8, "day": 0.4}, ("a", GHOST): {"ghost": 1.0, "day": 0.0}})
    found = scored(frame, frame_of("judge", {}), [BOTH, GHOST], SHARE, Balance(joint=1, own=3, plain=1))["a"]
    assert math.isnan(found.plain) and found.total == pytest.approx((0.4 + 3 * 1.0) / 4)
    only = scored(frame, frame_of("judge", {}), [BOTH, GHOST], SHARE, Balance(joint=1, own=0, plain=0))["a"]
    assert only.total == pytest.approx(0.4)


def test_cosines_go_from_the_base_model_to_the_adapter_alone() -> None:
    """Each adapter on its own scale; a loss of the own prompt in the mean unit of those scales."""
    anchors = frame_of("clip_text", {
        (BASE, BOTH): {"ghost": 0.10, "day": 0.20},
        (BASE, GHOST): {"ghost": 0.10, "day": 0.20},
        (BASE, DAY): {"ghost": 0.10, "day": 0.20},
        (BASE, PLAIN): {"ghost": 0.10, "day": 0.20, "": 0.30},
        (alone("ghost"), BOTH): {"ghost": 0.20},
        (alone("ghost"), GHOST): {"ghost": 0.20},
        (alone("day"), BOTH): {"day": 0.40},
        (alone("day"), DAY): {"day": 0.60},
        (alone("day"), GHOST): {"day": 0.90},  # does not call it, and counts nothing
    })  # fmt: skip
    ends = scale_of(anchors, COSINE).ends
    assert ends["ghost", "joint"] == pytest.approx((0.10, 0.10)) and ends["day", "joint"] == pytest.approx((0.20, 0.20))
    assert ends["ghost", "own"] == pytest.approx((0.10, 0.10)) and ends["day", "own"] == pytest.approx((0.20, 0.40))
    frame = frame_of("clip_text", {
        ("a", BOTH): {"ghost": 0.19, "day": 0.30},
        ("a", GHOST): {"ghost": 0.20, "day": 0.2},
        ("a", DAY): {"ghost": 0.1, "day": 0.56},
        ("a", PLAIN): {"ghost": 0.11, "day": 0.10, "": 0.27},
    })  # fmt: skip
    found = scored(frame, anchors, SCENES, COSINE, Balance())["a"]
    assert found.joint == pytest.approx(0.5)
    assert found.own == pytest.approx((1.0 + 0.9) / 2)
    assert found.plain == pytest.approx(1 - 0.03 / 0.25 - 0.01 / 0.10)


def test_a_unit_is_at_least_half_of_that_on_the_other_scenes() -> None:
    """Where an adapter gains next to nothing on composed ones, a difference there is not blown up."""
    anchors = frame_of("clip_text", {
        (BASE, BOTH): {"day": 0.20}, (BASE, DAY): {"day": 0.10},
        (alone("day"), BOTH): {"day": 0.21}, (alone("day"), DAY): {"day": 0.50},
    })  # fmt: skip
    ends = scale_of(anchors, COSINE).ends
    assert ends["day", "joint"] == pytest.approx((0.20, 0.20)) and ends["day", "own"] == pytest.approx((0.10, 0.40))


def test_a_concept_that_the_metric_does_not_see_is_left_out() -> None:
    """Where the adapter alone is no better than the base model."""
    anchors = frame_of("clip_text", {
        (BASE, BOTH): {"ghost": 0.1, "day": 0.2}, (BASE, GHOST): {"ghost": 0.1, "day": 0.2},
        (alone("ghost"), BOTH): {"ghost": 0.3}, (alone("ghost"), GHOST): {"ghost": 0.3},
        (alone("day"), BOTH): {"day": 0.2},
    })  # fmt: skip
    assert scale_of(anchors, COSINE).blind == ("day",)
    frame = frame_of("clip_text", {("a", BOTH): {"ghost": 0.2, "day": -1.0}})
    assert scored(frame, anchors, [BOTH], COSINE, Balance())["a"].joint == pytest.approx(0.5)


def test_one_number_for_an_image_is_maximised_as_it_is() -> None:
    """Of a metric that compares with nothing; where less is better, its negative."""
    sharp = Description("sharp")
    frame = frame_of("sharp", {("a", BOTH): {"": 3.0}, ("a", PLAIN): {"": 5.0}})
    found = scored(frame, frame_of("sharp", {}), SCENES, sharp, Balance(joint=1, own=0, plain=1))["a"]
    assert (found.joint, found.plain, found.total, found.recovery) == (3.0, 5.0, 4.0, {})
    assert scored(frame, frame, SCENES, replace(sharp, higher_is_better=False), Balance())["a"].joint == -3.0


def test_images_that_are_missing_count_nothing() -> None:
    """A candidate without any score is not there; a concept that has none makes no joint score."""
    frame = frame_of("judge", {("a", BOTH): {"ghost": 0.8}, ("b", Scene("other", frozenset(), 0)): {"": 1.0}})
    found = scored(frame, frame_of("judge", BASE_PLAIN), SCENES, SHARE, Balance())
    assert set(found) == {"a"} and found["a"].images == 1


def test_a_scale_needs_the_base_model_and_each_adapter_where_it_is_called() -> None:
    """Shares need the base model on plain scenes alone; one number needs nothing."""
    needed = anchors_needed(["ghost", "day"], SCENES, COSINE)
    assert needed == {BASE: SCENES, "ghost alone": [BOTH, GHOST], "day alone": [BOTH, DAY]}
    assert anchors_needed(["ghost", "day"], SCENES, SHARE) == {BASE: [PLAIN]}
    assert anchors_needed(["ghost", "day"], SCENES, Description("sharp")) == {}
    assert anchors_needed(["ghost"], [BOTH], SHARE) == {}
