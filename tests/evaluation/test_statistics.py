"""Clusters, tests and designs, checked against counting by hand and against simulation."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from scipy.stats import t as student

from mergelab.evaluation.statistics import (
    Units,
    holm,
    is_blind,
    least_p,
    resolvable,
    resolvable_with,
    sign_flip,
    win_rate,
)


def test_one_set_has_prompts_and_five_sets_are_the_clusters() -> None:
    """Seeds are averaged before prompts, prompts before sets, whatever the order and the number of rows."""
    values = np.array([1.0, 3.0, 10.0, 4.0])
    assert Units(["a", "a", "b", "c"]).means(values).tolist() == [2.0, 10.0, 4.0]
    sets = [*"vwxyz", "v", "v"]
    units = Units([*"aaaaa", "a", "b"], sets)
    assert (units.kind, units.count) == ("sets", 5)
    assert units.means(np.array([1.0, 2.0, 3.0, 4.0, 5.0, 3.0, 8.0])).tolist() == [5.0, 2.0, 3.0, 4.0, 5.0]
    assert units.weights.tolist() == [0.2] * 5


def test_few_sets_count_alike_and_are_no_sample() -> None:
    """The same prompt in two sets is two clusters; a set with more prompts counts no more than the other."""
    units = Units(["a", "b", "a", "a"], ["x", "x", "y", "y"])
    assert (units.kind, units.count) == ("prompts of these sets", 3)
    means = units.means(np.array([1.0, 3.0, 5.0, 7.0]))
    assert means.tolist() == [1.0, 3.0, 6.0] and units.weights @ means == 4.0
    assert units.strata.tolist() == [0, 0, 1]


def test_sign_flips_by_counting() -> None:
    """All 2^n patterns; and random ones come to the same whatever the sign."""
    values = np.random.default_rng(0).normal(0.4, 1, 9)
    sums = [abs(np.dot(signs, values)) for signs in product((1, -1), repeat=9)]
    assert sign_flip(values) == np.mean([s >= abs(values.sum()) - 1e-12 for s in sums])
    many = np.random.default_rng(1).normal(0.2, 1, 30)
    assert sign_flip(many) == sign_flip(-many)
    assert sign_flip(np.zeros(3)) == sign_flip(np.array([1.0, np.nan])) == 1.0


def test_sign_flips_of_images_are_those_of_their_clusters() -> None:
    """Seeds of one prompt are flipped together; prompts of a small set weigh more."""
    units = Units([*"aabbccdd"])
    values = np.arange(8.0) - 2
    assert sign_flip(values, units) == sign_flip(units.means(values))
    uneven = Units([*"abcdab"], [*"xxxxyy"])
    values = np.array([1.0, 2.0, 1.5, 0.5, -1.0, 3.0])
    assert sign_flip(values, uneven) == sign_flip(values / [4, 4, 4, 4, 2, 2])


def test_sign_flips_keep_their_level() -> None:
    """Without an effect, 5 % of the tests reach 0.05."""
    random = np.random.default_rng(2)
    p = [sign_flip(random.normal(0, 1, 8)) for _ in range(1000)]
    assert 0.02 <= np.mean(np.array(p) <= 0.05) <= 0.07


@pytest.mark.parametrize("count", [1, 2, 5, 6, 12, 13, 20])
def test_the_least_p_is_that_of_differences_that_are_all_alike(count: int) -> None:
    """No pattern but their own reaches as far."""
    assert sign_flip(np.ones(count)) == pytest.approx(least_p(count), rel=0.9 if count > 12 else 1e-12)
    assert least_p(count) <= sign_flip(np.ones(count)) + 1e-12


def test_holm_and_wins_by_hand() -> None:
    """Steps of 3, 2, 1 times the sorted p values, never falling, never above one."""
    assert holm([0.03, 0.01, 0.04]) == pytest.approx([0.06, 0.03, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []
    assert win_rate(np.array([1.0, 2.0, 3.0]), np.array([2.0, 2.0, 1.0])) == 0.5
    assert win_rate(np.array([1.0]), np.array([2.0]), higher_is_better=False) == 1.0


@pytest.mark.parametrize("count", [6, 12, 24])
def test_the_resolvable_difference_is_seen_four_times_in_five(count: int) -> None:
    """20,000 runs with that true difference; Student's interval excludes zero in 80 % of them."""
    shift = resolvable_with(0.3, count)
    drawn = np.random.default_rng(count).normal(shift, 0.3, (20_000, count))

    reach = student.ppf(0.975, count - 1) * drawn.std(1, ddof=1) / np.sqrt(count)
    assert np.mean(np.abs(drawn.mean(1)) > reach) == pytest.approx(0.8, abs=0.01)
    values = drawn[0]
    assert resolvable(values, Units(range(count))) == pytest.approx(resolvable_with(values.std(ddof=1), count))


def test_designs_that_can_tell_nothing_say_so() -> None:
    """Below five clusters, and where nothing differs, no difference could have been seen or missed."""
    assert np.isnan(resolvable(np.array([0.1, 0.2, 0.3, 0.5]), Units([*"abcd"])))
    assert np.isnan(resolvable(np.full(6, 0.3), Units([*"abcdef"])))
    assert np.isnan(resolvable_with(0.1, 4))
    assert resolvable_with(0.1, 12, power=0.9) > resolvable_with(0.1, 12) > resolvable_with(0.1, 24)


def test_a_metric_is_blind_unless_the_interval_is_on_the_better_side() -> None:
    """Student's 97.5 % quantile, with few clusters over images, with the sign of the metric."""
    floor = np.zeros(6)
    ceiling = np.array([0.3, 0.1, 0.2, 0.4, 0.2, 0.3])
    six = Units([*"abcdef"])
    assert not is_blind(floor, ceiling, six) and is_blind(ceiling, floor, six)
    assert not is_blind(ceiling, floor, six, higher_is_better=False)
    assert is_blind(floor, np.array([2.0, -1.0, 1.5, -0.5, 1.0, 0.1]), six)
    assert not is_blind(floor, ceiling, Units([*"aabbcc"])), "three prompts, but six images"
    assert is_blind(floor, floor, six) and not is_blind(floor, np.ones(6), six)
    assert not is_blind(np.zeros(2), np.array([0.1, 0.2]), Units([*"ab"])), "two images cannot tell"
    assert is_blind(np.zeros(2), np.array([0.1, -0.2]), Units([*"ab"]))
