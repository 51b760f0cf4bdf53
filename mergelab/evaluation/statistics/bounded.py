"""Means of scores that sit at an end of their range: what no image has shown yet, but some could.

Twelve images that all score 1 do not say that every image does. `plausible` is the bound of Gaffke: the clusters are
drawn with Dirichlet weights, as in a Bayesian bootstrap, together with one more observation at the end of the range.
For scores of 0 and 1 it is the interval of Clopper and Pearson, for values between it is narrower, and it needs no
estimate of a variance.

Sources: Gaffke, "Three test statistics for a nonparametric one-sided hypothesis on the mean of a nonnegative variable",
2005; Learned-Miller and Thomas, arXiv 1905.06208; Zou and Donner, Statistics in Medicine 27, 2008 (`difference`).
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from mergelab.evaluation.statistics.units import Array

DRAWS = 4_000
_TAIL = DRAWS // 40  # 2.5 %


def plausible(means: Array, weights: Array, low: float, high: float) -> tuple[float, float]:
    """A 95 % interval of the mean of a variable between low and high; an infinite end gives an infinite bound.

    Args:
        means: of the clusters.
        weights: of the clusters; they sum to one.
        low, high: least and most that the variable can be.

    Example:
        >>> [round(bound, 3) for bound in plausible(np.ones(12), np.full(12, 1 / 12), 0.0, 1.0)]
        [0.735, 1.0]
    """
    order = np.argsort(means, kind="stable")
    draws = _dirichlet(tuple(weights[order].tolist()))
    inner, outer = draws[:, :-1] @ means[order], draws[:, -1]
    below = _between(inner + outer * low, _TAIL) if np.isfinite(low) else low
    above = _between(inner + outer * high, DRAWS - _TAIL) if np.isfinite(high) else high
    return below, above


def _between(draws: Array, rank: int) -> float:
    """A quantile: half way between the draws before and after."""
    return float(np.partition(draws, (rank - 1, rank))[rank - 1 : rank + 1].mean())


def difference(means: Array, weights: Array, span: float) -> tuple[float, float]:
    """A 95 % interval of a mean difference: gains and losses are bounded apart, and the bounds put together.

    Losses that were not seen are as plausible as `plausible` says, so it does not shrink to a point where no image
    differs. The two distances are added in squares (MOVER).

    Args:
        means: differences of the clusters.
        weights: of the clusters.
        span: the most that two scores can differ.
    """
    gains, losses = np.maximum(means, 0), np.maximum(-means, 0)
    gain, loss = float(weights @ gains), float(weights @ losses)
    least_gain, most_gain = plausible(gains, weights, 0.0, span)
    least_loss, most_loss = plausible(losses, weights, 0.0, span)
    below = float(np.hypot(gain - least_gain, most_loss - loss))
    above = float(np.hypot(most_gain - gain, loss - least_loss))
    return gain - loss - below, gain - loss + above


@lru_cache(maxsize=64)
def _dirichlet(weights: tuple[float, ...]) -> Array:
    """Weights of the clusters, and of one more in the last column; a cluster that counts twice as much is drawn so.

    The last column runs evenly through its quantiles, which makes bounds exact where all clusters are equal.
    """
    counts = np.array(weights)
    alphas = counts / np.square(counts).sum()
    random = np.random.default_rng(0)
    inner = random.gamma(alphas, size=(DRAWS, len(counts)))
    levels = (random.permutation(DRAWS) + 0.5) / DRAWS
    outer = 1 - levels ** (1 / alphas.sum())
    return np.column_stack([inner / inner.sum(1, keepdims=True) * (1 - outer)[:, None], outer])
