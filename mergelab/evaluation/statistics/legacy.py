"""Intervals, tests and win rates over prompts and seeds: pure functions of arrays.

The unit of every score is (set of LoRAs, prompt, seed). Seeds of one prompt are alike, so they are averaged first; what
is then drawn at random, the cluster, is the prompt, or the whole set of LoRAs where there are several.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t as student

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Interval:
    """An estimate with its confidence interval; NaN bounds where one cluster alone cannot tell."""

    estimate: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.estimate:.3f} [{self.low:.3f}, {self.high:.3f}]"


def cluster_means(values: Array, prompts: Sequence[Hashable], sets: Sequence[Hashable] | None = None) -> Array:
    """One row for each cluster: the mean over seeds, then, where there are several sets, over the prompts of a set.

    Args:
        values: (n,) or (n, k), one row for each image.
        prompts: the prompt of each row.
        sets: the set of LoRAs of each row; None for one set.

    Example:
        >>> cluster_means(np.array([1.0, 3.0, 10.0]), ["a", "a", "b"]).tolist()
        [2.0, 10.0]
    """
    labels = list(zip(sets if sets is not None else [None] * len(prompts), prompts))
    inner = {label: values[[other == label for other in labels]].mean(0) for label in dict.fromkeys(labels)}
    outer = list(dict.fromkeys(label[0] for label in inner))
    if len(outer) == 1:
        return np.array(list(inner.values()))
    return np.array([np.mean([mean for label, mean in inner.items() if label[0] == one], axis=0) for one in outer])


def interval(
    clusters: Array,
    statistic: Callable[[Array], Array] = lambda means: means,
    *,
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Interval:
    """Cluster bootstrap: the statistic of the mean of the clusters, plus and minus Student's t standard errors.

    Clusters are drawn with replacement; the standard error is the deviation of the statistic over the resamples, times
    `sqrt(n / (n - 1))`, which makes it unbiased for a mean. With the few prompts of a usual run, percentiles of the
    resamples cannot leave the range of the data and cover far less than they promise (75 % at best with three);
    Student's quantile with n - 1 degrees of freedom does not have that fault.

    Args:
        clusters: (n,) or (n, k) means of the clusters.
        statistic: of a stack of means, (..., k) or (...,), to (...,): a difference of columns, a ratio.
        confidence: share of the intervals that should hold the truth.
        resamples: draws.
        seed: of the draws.

    Example:
        >>> interval(np.array([1.0, 2.0, 3.0]), resamples=20000)
        Interval(estimate=2.0, low=-0.4..., high=4.4...)
    """
    estimate = float(statistic(clusters.mean(0)))
    count = len(clusters)
    if count < 2:
        return Interval(estimate, float("nan"), float("nan"))
    picks = np.random.default_rng(seed).integers(count, size=(resamples, count))
    draws = np.asarray(statistic(clusters[picks].mean(1)))
    draws = draws[np.isfinite(draws)]
    error = float(draws.std(ddof=1)) * float(np.sqrt(count / (count - 1))) if len(draws) > 1 else float("nan")
    reach = float(student.ppf(0.5 + confidence / 2, count - 1)) * error
    return Interval(estimate, estimate - reach, estimate + reach)


def sign_flip(differences: Array, *, flips: int = 10000, seed: int = 0) -> float:
    """p value of the paired test that differences are symmetric around zero: how often random signs reach as far.

    All sign patterns are tried where there are at most 2^12; the smallest p value of n clusters is 2 / 2^n.

    Args:
        differences: (n,), one for each cluster.
        flips: random patterns tried where there are more clusters.
        seed: of the patterns.

    Example:
        >>> sign_flip(np.array([1.0, 2.0, 0.5]))
        0.25
    """
    count = len(differences)
    if not np.isfinite(differences).all():
        return 1.0
    if not count or not np.any(differences):
        return 1.0
    exact = count <= 12
    if exact:
        signs = np.array(list(product((1.0, -1.0), repeat=count)))
    else:
        signs = np.random.default_rng(seed).choice([1.0, -1.0], size=(flips, count))
    reached = np.abs(signs @ differences) >= abs(differences.sum()) * (1 - 1e-12)
    return float(reached.mean()) if exact else float((reached.sum() + 1) / (flips + 1))


def holm(p: Sequence[float]) -> list[float]:
    """p values corrected for the number of tests (Holm, 1979).

    Example:
        >>> holm([0.01, 0.04, 0.03])
        [0.03, 0.06, 0.06]
    """
    corrected = [1.0] * len(p)
    largest = 0.0
    for rank, index in enumerate(np.argsort(p)):
        largest = max(largest, min(1.0, (len(p) - rank) * p[index]))
        corrected[index] = largest
    return corrected


def win_rate(first: Array, second: Array, *, higher_is_better: bool = True) -> float:
    """Share of the paired images in which the first is better; a tie counts half.

    Example:
        >>> win_rate(np.array([1.0, 2.0]), np.array([0.0, 2.0]))
        0.75
    """
    gain = np.sign(first - second) * (1 if higher_is_better else -1)
    return float((gain > 0).mean() + 0.5 * (gain == 0).mean())
