"""Means over prompts or sets, and the bootstrap interval of a statistic of them."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence

import numpy as np
from scipy.stats import t as student

from mergelab.evaluation.statistics.intervals import Interval
from mergelab.evaluation.statistics.units import Array


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
