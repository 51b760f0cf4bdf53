"""95 % intervals of a mean, of a paired difference and of a recovery, over what is drawn at random.

Every interval holds Student's. It is widened where Student's is known to promise too much: towards the longer tail of
skewed scores (Hall's transformation), and by what was not seen where scores sit at an end of their range (`bounded`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import stdtrit

from mergelab.evaluation.statistics import bounded
from mergelab.evaluation.statistics.moments import moments, spread
from mergelab.evaluation.statistics.units import ENOUGH, Array, Units

_NEAR, _SHARE, _FEW = 0.01, 0.25, 3.0


@dataclass(frozen=True)
class Interval:
    """An estimate with its confidence interval; NaN bounds where there are too few clusters to tell."""

    estimate: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.estimate:.3f} [{self.low:.3f}, {self.high:.3f}]"


@dataclass(frozen=True)
class Range:
    """What a score can be.

    Attributes:
        low, high: by definition.
        least, most: over all variants of the run, where that says more: a cosine can be -1, but that of two images of a
            run never is. What has not been seen yet is thought to lie between them.

    Example:
        >>> Range(-1, 1, least=0.6, most=1.0).span
        0.4
    """

    low: float = -np.inf
    high: float = np.inf
    least: float = -np.inf
    most: float = np.inf

    @property
    def ends(self) -> tuple[float, float]:
        """Between which the scores lie."""
        return max(self.low, self.least), min(self.high, self.most)

    @property
    def span(self) -> float:
        """The most by which two scores differ."""
        return self.ends[1] - self.ends[0]

    def saturated(self, *values: Array) -> bool:
        """Whether a quarter of the clusters sit at an end of the range: within a hundredth of the span.

        Example:
            >>> Range(0, 1).saturated(np.array([1.0, 0.999, 0.4])), Range(0, 1).saturated(np.array([0.9, 0.8, 0.4]))
            (True, False)
        """
        every = np.concatenate(values)
        near = _NEAR * self.span
        if not np.isfinite(near):
            return False
        return bool(np.mean((every <= self.low + near) | (every >= self.high - near)) >= _SHARE)


_ANY = Range()


def mean_interval(values: Array, units: Units, range: Range = _ANY) -> Interval:
    """Of the mean score of a variant.

    Student's and Hall's intervals over the clusters, the wider end of each; for saturated scores also the bounds of
    `bounded.plausible`.

    Args:
        values: (n,), one for each image.
        units: of the images.
        range: of the score; bounds outside of it are cut off.

    Example:
        >>> print(mean_interval(np.array([0.2, 0.5, 0.9, 0.4, 0.7]), Units("abcde"), Range(0, 1)))
        0.540 [0.205, 0.907]
        >>> print(mean_interval(np.ones(12), Units("abcdefghijkl"), Range(0, 1)))
        1.000 [0.735, 1.000]
    """
    means, weights = units.means(values), units.weights
    estimate = float(weights @ means)
    if units.count < ENOUGH:
        return Interval(estimate, float("nan"), float("nan"))
    low, high = spread(means, units)
    if range.saturated(means):
        below, above = bounded.plausible(means, weights, *range.ends)
        low, high = min(low, below), max(high, above)
    return Interval(estimate, max(low, range.low), min(high, range.high))


def difference_interval(first: Array, second: Array, units: Units, range: Range = _ANY) -> Interval:
    """Of the mean of `first - second`, paired.

    Student's and Hall's intervals over the differences of the clusters, the wider end of each. Of saturated scores
    most pairs are equal and a few differ by much: where the differences weigh no more than three that are alike, the
    interval also holds `bounded.difference`.

    Args:
        first, second: (n,), the scores of two variants, image by image.
        units: of the images.
        range: of the score.

    Example:
        >>> print(difference_interval(np.array([0.5, 0.7, 0.6, 0.9, 0.8]), np.array([0.4, 0.5, 0.5, 0.6, 0.6]),
        ...                           Units("abcde"), Range(0, 1)))
        0.180 [0.076, 0.323]
    """
    differences = units.means(first - second)
    estimate = float(units.weights @ differences)
    if units.count < ENOUGH:
        return Interval(estimate, float("nan"), float("nan"))
    low, high = spread(differences, units)
    if range.saturated(units.means(first), units.means(second)) and _few(differences, units.weights):
        below, above = bounded.difference(differences, units.weights, range.span)
        low, high = min(low, below), max(high, above)
    return Interval(estimate, low, high)


def recovery_interval(variant: Array, base: Array, single: Array, units: Units, range: Range = _ANY) -> Interval:
    """Of the recovery (variant - base) / (single - base), a ratio of means.

    Fieller's interval, and that of the mean of the linearised ratio, `(variant - base - R (single - base)) /
    mean(single - base)`, which knows skewness where Fieller's does not: the wider end of each. For saturated scores it
    also holds what `difference_interval` says of what was lost against the single and of what was won against the base,
    in units of that mean.

    Args:
        variant, base, single: (n,), scores, image by image.
        units: of the images.
        range: of the score.

    Returns:
        No bounds where single and base cannot be told apart (`is_blind`), as they could then be anything.

    Example:
        >>> single, base = np.array([0.9, 0.8, 1.0, 0.9, 0.8]), np.full(5, 0.1)
        >>> print(recovery_interval(np.array([0.6, 0.4, 0.7, 0.5, 0.4]), base, single, Units("abcde"), Range(0, 1)))
        0.538 [0.379, 0.743]
    """
    won, whole, weights = units.means(variant - base), units.means(single - base), units.weights
    size = float(weights @ whole)
    if abs(size) < 1e-12:
        return Interval(float("nan"), float("nan"), float("nan"))
    ratio = float(weights @ won) / size
    bounds = _fieller(won, whole, units) if units.count >= ENOUGH else None
    if bounds is None:
        return Interval(ratio, float("nan"), float("nan"))
    ends = [*bounds, *(ratio + end for end in spread((won - ratio * whole) / size, units))]
    if range.saturated(units.means(variant), units.means(single)):
        for differences, offset in ((won - whole, 1.0), (won, 0.0)):
            if _few(differences, weights):
                ends += [offset + end / size for end in bounded.difference(differences, weights, range.span)]
    return Interval(ratio, min(ends), max(ends))


def _fieller(above: Array, below: Array, units: Units) -> tuple[float, float] | None:
    """Bounds of a ratio of means (Fieller, 1954); None where the denominator may be zero."""
    size = float(units.weights @ below)
    ratio = float(units.weights @ above) / size
    rest, df, _ = moments(above - ratio * below, units)
    reach = float(stdtrit(df, 0.975))
    first, second, apart = (moments(means, units)[0] ** 2 for means in (above, below, above - below))
    doubt = reach**2 * second / size**2
    if doubt >= 1:
        return None
    if second == 0:
        return ratio - reach * rest / abs(size), ratio + reach * rest / abs(size)
    both = (first + second - apart) / 2
    inner = first - 2 * ratio * both + ratio**2 * second - doubt * (first - both**2 / second)
    width = reach / abs(size) * np.sqrt(max(0.0, inner))
    centre = ratio - doubt * both / second
    return (centre - width) / (1 - doubt), (centre + width) / (1 - doubt)


def _few(differences: Array, weights: Array) -> bool:
    """Whether the differences weigh no more than three that are alike, or are none at all."""
    parts = np.abs(differences) * weights
    return bool(parts.sum() ** 2 <= _FEW * (1 + 1e-9) * np.square(parts).sum())
