"""The bootstrap interval of a statistic of means."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import t as student

from mergelab.evaluation.quantities import ratio
from mergelab.evaluation.statistics import cluster_means, interval


@pytest.mark.parametrize("prompts", [3, 6, 20])
def test_intervals_of_a_mean_cover_the_truth(prompts: int) -> None:
    """1,500 runs with prompts that differ, seeds that differ less, and a known effect: 93 to 97 % of them hold it."""
    random = np.random.default_rng(prompts)
    effect, held, runs = 0.3, 0, 1500
    labels = np.repeat(np.arange(prompts), 4)
    for run in range(runs):
        values = effect + random.normal(0, 0.2, prompts)[labels] + random.normal(0, 0.3, len(labels))
        found = interval(cluster_means(values, labels.tolist()), resamples=600, seed=run)
        held += found.low <= effect <= found.high
    assert 0.93 <= held / runs <= 0.97


def test_intervals_of_a_recovery_cover_the_truth() -> None:
    """A ratio of differences, of scores between 0 and 1, with 10 prompts."""
    random = np.random.default_rng(0)
    held, runs, truth = 0, 1500, 0.6
    labels = np.repeat(np.arange(10), 4)
    for run in range(runs):
        base = 0.1 + random.normal(0, 0.03, 40)
        span = (0.6 + random.normal(0, 0.08, 10))[labels]
        share = (truth + random.normal(0, 0.15, 10))[labels]
        scores = np.stack([base + share * span + random.normal(0, 0.05, 40), base, base + span], axis=1)
        found = interval(cluster_means(scores, labels.tolist()), ratio, resamples=600, seed=run)
        held += found.low <= truth <= found.high
    assert 0.93 <= held / runs <= 0.97


def test_intervals_over_several_sets_cover_the_truth() -> None:
    """Where several sets of LoRAs were run, what varies is the set."""
    random = np.random.default_rng(1)
    held, runs = 0, 1500
    sets, prompts = np.repeat(np.arange(6), 20), np.tile(np.repeat(np.arange(5), 4), 6)
    for run in range(runs):
        values = 0.5 + random.normal(0, 0.1, 6)[sets] + random.normal(0, 0.2, 30)[sets * 5 + prompts]
        values = values + random.normal(0, 0.3, len(sets))
        found = interval(cluster_means(values, prompts.tolist(), sets.tolist()), resamples=600, seed=run)
        held += found.low <= 0.5 <= found.high
    assert 0.93 <= held / runs <= 0.97


def test_the_interval_of_a_mean_is_students() -> None:
    """The bootstrap's standard error is s / sqrt(n) up to the number of resamples."""
    values = np.array([0.2, 0.5, 0.9, 0.4, 0.7])
    found = interval(values, resamples=200_000)
    reach = student.ppf(0.975, 4) * values.std(ddof=1) / np.sqrt(5)
    assert found.estimate == pytest.approx(values.mean())
    assert found.high - found.estimate == pytest.approx(reach, rel=0.01)


def test_one_cluster_has_no_interval() -> None:
    """One prompt says nothing about other prompts."""
    found = interval(np.array([0.5]))
    assert found.estimate == 0.5 and np.isnan(found.low) and np.isnan(found.high)


def test_the_same_data_give_the_same_interval() -> None:
    """The draws are seeded."""
    assert interval(np.array([1.0, 2.0, 4.0])) == interval(np.array([1.0, 2.0, 4.0]))
