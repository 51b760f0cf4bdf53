"""Intervals: hand-computed cases, laws, and coverage in simulation (experiments/evaluation/STATISTICS.md has all)."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import beta
from scipy.stats import t as student

from experiments.evaluation.coverage import CASES, Layout, coverage
from experiments.evaluation.power import shares
from mergelab.evaluation.statistics import (
    Interval,
    Range,
    Units,
    difference_interval,
    is_blind,
    mean_interval,
    recovery_interval,
)

SIX, TWELVE = Units(range(6)), Units(range(12))
SHARE = Range(0, 1)


def bounds(interval: Interval) -> list[float]:
    """Low and high."""
    return [interval.low, interval.high]


def test_without_skewness_the_interval_is_students() -> None:
    """s / sqrt(n) times the quantile; of two sets the variances added, with the degrees of freedom of Welch."""
    values = np.array([0.1, 0.2, 0.3, 0.5, 0.6, 0.7])
    reach = student.ppf(0.975, 5) * values.std(ddof=1) / np.sqrt(6)
    assert bounds(mean_interval(values, SIX)) == pytest.approx([0.4 - reach, 0.4 + reach])
    units = Units([*"abcabc"], [*"xxxyyy"])
    errors = np.array([0.1**2 / 3, 0.4**2 / 3]) / 4
    df = errors.sum() ** 2 / (errors**2 / 2).sum()
    reach = student.ppf(0.975, df) * np.sqrt(errors.sum())
    found = mean_interval(np.array([0.1, 0.2, 0.3, 1.0, 1.4, 1.8]), units)
    assert bounds(found) == pytest.approx([0.8 - reach, 0.8 + reach])


def test_the_longer_tail_gets_the_longer_arm() -> None:
    """Never shorter than Student's, longer where the values trail off, mirrored when they are."""
    values = np.array([0.1, 0.1, 0.2, 0.3, 0.4, 1.9])
    found, mirrored = mean_interval(values, SIX), mean_interval(-values, SIX)
    reach = student.ppf(0.975, 5) * values.std(ddof=1) / np.sqrt(6)
    assert found.low == pytest.approx(0.5 - reach) and found.high > 0.5 + 1.2 * reach
    assert bounds(mirrored) == pytest.approx([-found.high, -found.low])


@pytest.mark.parametrize("hits", [0, 1, 6, 11, 12])
def test_scores_of_zero_and_one_have_clopper_and_pearsons_interval(hits: int) -> None:
    """Or Student's, where that is wider; ends of the range are never passed."""
    values = np.arange(12) < hits
    found = mean_interval(values.astype(float), TWELVE, SHARE)
    low = beta.ppf(0.025, hits, 13 - hits) if hits else 0.0
    high = beta.ppf(0.975, hits + 1, 12 - hits) if hits < 12 else 1.0
    assert found.low <= low + 0.01 and found.high >= high - 0.01
    assert found.low >= 0 and found.high <= 1
    if hits in (0, 12):
        assert bounds(found) == pytest.approx([low, high], abs=1e-3)


def test_what_was_never_drawn_bounds_what_was_not_seen() -> None:
    """Cosines of 1: without the run's least value they could be -1, with it .7; in the middle nothing is added."""
    ones = np.ones(12)
    assert mean_interval(ones, TWELVE, Range(-1, 1)).low == pytest.approx(2 * 0.735 - 1, abs=1e-3)
    assert mean_interval(ones, TWELVE, Range(-1, 1, 0.7, 1.0)).low == pytest.approx(0.7 + 0.3 * 0.735, abs=1e-3)
    middle = np.linspace(0.31, 0.35, 12)
    assert mean_interval(middle, TWELVE, Range(-1, 1)) == mean_interval(middle, TWELVE)
    assert bounds(mean_interval(np.zeros(12), TWELVE, Range(0, most=0.5))) == [0, 0], "a distance of 0 is no end"


def test_pairs_that_do_not_differ() -> None:
    """At an end of the range a difference may not have been seen yet; in the middle the images are the same."""
    ones, middle = np.ones(12), np.full(12, 0.4)
    unseen = difference_interval(ones, ones, TWELVE, SHARE)
    assert bounds(unseen) == pytest.approx([-0.265, 0.265], abs=1e-3)
    assert bounds(difference_interval(middle, middle, TWELVE, SHARE)) == [0.0, 0.0]


def test_a_difference_turned_round_is_its_negative() -> None:
    """To the last bit but rounding, whatever the scores."""
    random = np.random.default_rng(0)
    for first in (random.normal(size=12), random.random(12) < 0.9, random.beta(4, 0.2, 12)):
        second = random.random(12) < 0.7
        found = difference_interval(first.astype(float), second.astype(float), TWELVE, SHARE)
        turned = difference_interval(second.astype(float), first.astype(float), TWELVE, SHARE)
        assert bounds(turned) == pytest.approx([-found.high, -found.low])


def test_below_five_clusters_there_are_no_bounds() -> None:
    """Four prompts, however many seeds; the estimates remain."""
    units, values = Units([*"aabbccdd"]), np.linspace(0.1, 0.8, 8)
    found = [
        mean_interval(values, units, SHARE),
        difference_interval(values, values / 2, units, SHARE),
        recovery_interval(values, np.zeros(8), np.ones(8), units, SHARE),
    ]
    assert np.isnan([bounds(interval) for interval in found]).all()
    assert [interval.estimate for interval in found] == pytest.approx([0.45, 0.225, 0.45])


def test_a_recovery_of_constant_span_is_the_mean_rescaled() -> None:
    """Base 0.1 and single 0.6 everywhere: the interval of the variant's mean, less 0.1, doubled."""
    values = np.array([0.1, 0.2, 0.3, 0.5, 0.6, 0.8])
    mean = mean_interval(values, SIX)
    found = recovery_interval(values, np.full(6, 0.1), np.full(6, 0.6), SIX)
    assert bounds(found) == pytest.approx([2 * (mean.low - 0.1), 2 * (mean.high - 0.1)])


def test_a_recovery_has_bounds_exactly_where_the_metric_is_not_blind() -> None:
    """Fieller's interval is bounded where the span lies on one side of zero."""
    random = np.random.default_rng(1)
    for _ in range(200):
        base, single = random.normal(0, 1, 6), random.normal(0.8, 1, 6)
        found = recovery_interval(random.normal(0.4, 1, 6), base, single, SIX)
        assert np.isfinite(found.low) == (not (is_blind(base, single, SIX) and is_blind(single, base, SIX)))


def test_fieller_by_inversion() -> None:
    """At its bounds R, the mean of (variant - base) - R (single - base) is just Student's reach away from zero."""
    base = np.zeros(6)
    single, variant = np.array([0.5, 0.7, 0.9, 1.1, 1.3, 1.5]), np.array([0.5, 0.3, 0.4, 0.6, 0.9, 0.3])
    found = recovery_interval(variant, base, single, SIX)
    for bound in bounds(found):
        rest = variant - bound * single
        assert abs(rest.mean()) >= student.ppf(0.975, 5) * rest.std(ddof=1) / np.sqrt(6) * (1 - 1e-9)


COVERED = [
    ("mean", "exponential", Layout(1, 6, 2)),
    ("mean", "0/1 at 0.03", Layout(1, 6, 2)),
    ("mean", "0/1 at 0.97", Layout(1, 12, 1)),
    ("mean", "0/1 at 0.97", Layout(5, 6, 1)),
    ("mean", "beta(4, 0.2)", Layout(3, 6, 1)),
    ("difference", "Gaussian, .2 apart", Layout(2, 6, 1)),
    ("difference", "exponential, means 1.5 and 1", Layout(1, 6, 2)),
    ("difference", "0/1 at 0.97 and 0.9", Layout(1, 12, 1)),
    ("difference", "0/1 at 0.2 and 0.03", Layout(3, 6, 1)),
    ("difference", "beta(4, 0.2) and beta(4, 0.5)", Layout(5, 6, 1)),
    ("recovery", "exponential, .5", Layout(1, 12, 1)),
    ("recovery", "0/1 at 0.9 between .03 and .97", Layout(1, 6, 1)),
    ("recovery", "beta(4, 0.5) between (.2, 4) and (4, .2)", Layout(2, 6, 1)),
]


@pytest.mark.parametrize(("kind", "name", "layout"), COVERED, ids=str)
def test_intervals_hold_the_truth(kind: str, name: str, layout: Layout) -> None:
    """At least 93 % of 400 runs, seeds fixed."""
    case = next(case for case in CASES if (case.kind, case.name) == (kind, name))
    assert coverage(case, layout, 400)[0] >= 0.93


def test_saturated_scores_are_where_students_intervals_fail() -> None:
    """What the widening is for: without it most intervals of 0/1 scores near .97 miss the truth."""
    case = next(case for case in CASES if case.name == "0/1 at 0.97")
    assert coverage(case, Layout(1, 12, 1), 400)[1] < 0.6


def test_pairs_tell_apart_what_marginal_intervals_do_not() -> None:
    """12 prompts that differ among themselves far more than two variants do, in scores that sit at both ends."""
    random = np.random.default_rng(0)
    level = random.normal(0, 2.0, 400)
    first, second = (1 / (1 + np.exp(-(level + shift + random.normal(0, 0.6, 400)))) for shift in (1.2, 0.0))
    told, significant, overlap = shares(first, second, np.argsort(random.random((400, 400)))[:, :12])
    assert told >= 0.85 and significant >= 0.85 and overlap >= 0.77
