"""95 % intervals of a mean, of a paired difference and of a recovery, over what is drawn at random.

Every interval holds Student's. It is widened where Student's is known to promise too much: towards the longer tail of
skewed scores (Hall's transformation), and by what was not seen where scores sit at an end of their range (`bounded`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import stdtrit

from mergelab.evaluation.statistics import bounded
from mergelab.evaluation.statistics.moments import hall, moments, student
from mergelab.evaluation.statistics.units import ENOUGH, Array, Units

_ALIKE = 1e-5
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
        if not np.isfinite(self.high - self.low):
            return False
        return bool(np.mean((every <= self.low + near) | (every >= self.high - near)) >= _SHARE)

    def same(self, first: Array, second: Array) -> bool:
        """Whether two variants are scored alike in every image, three of which at least sit at no end of the range.

        Example:
            >>> soft = np.array([0.3, 0.62, 0.87, 1.0])
            >>> Range(0, 1).same(soft, soft), Range(0, 1).same(np.ones(4), np.ones(4))
            (True, False)
        """
        for near, apart in ((_NEAR * self.span, _ALIKE * self.span), (0.0, 0.0)):
            inside = (first > self.low + near) & (first < self.high - near)
            if np.abs(first - second).max() <= apart and inside.sum() >= _FEW:
                return True
        return False


_ANY = Range()


def mean_interval(values: Array, units: Units, range: Range = _ANY) -> Interval:
    """Of the mean score of a variant.

    Student's interval over the clusters and, the wider end of each, Hall's as far as it lies within
    `bounded.plausible`; where scores are saturated, all that is plausible.

    Args:
        values: (n,), one for each image.
        units: of the images.
        range: of the score; bounds outside of it are cut off.

    Example:
        >>> print(mean_interval(np.array([0.2, 0.5, 0.9, 0.4, 0.7]), Units("abcde"), Range(0, 1)))
        0.540 [0.205, 0.875]
        >>> print(mean_interval(np.ones(12), Units("abcdefghijkl"), Range(0, 1)))
        1.000 [0.735, 1.000]
    """
    means, weights = units.means(values), units.weights
    estimate = float(weights @ means)
    if units.count < ENOUGH:
        return Interval(estimate, float("nan"), float("nan"))
    plausible = bounded.plausible(means, weights, *range.ends)
    seen = plausible if range.saturated(means) else _within(hall(means, units), plausible)
    low, high = _wider(student(means, units), seen)
    return Interval(estimate, max(low, range.low), min(high, range.high))


def difference_interval(first: Array, second: Array, units: Units, range: Range = _ANY) -> Interval:
    """Of the mean of `first - second`, paired.

    Student's interval over the differences of the clusters and, the wider end of each, Hall's as far as it lies within
    `bounded.difference`. Of saturated scores most pairs are equal and a few differ by much: where the differences weigh
    no more than three that are alike, the interval holds all of `bounded.difference`. Unless the two are the same:
    every image is scored alike, and some are at no end of the range, where that is no coincidence.

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
    plausible = bounded.difference(differences, units.weights, range.span)
    ends = _wider(student(differences, units), _within(hall(differences, units), plausible))
    saturated = range.saturated(units.means(first), units.means(second))
    if saturated and _few(differences, units.weights) and not range.same(first, second):
        ends = _wider(ends, plausible)
    most = range.high - range.low
    return Interval(estimate, max(ends[0], -most), min(ends[1], most))


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
    ends = _wider(bounds, _shifted(ratio, student((won - ratio * whole) / size, units)))
    changes = [(won - whole, 1.0), (won, 0.0)]  # against the single, whose recovery is 1, and against the base
    plausible = [_shifted(at, bounded.difference(one / size, weights, range.span / abs(size))) for one, at in changes]
    skewed = _shifted(ratio, hall((won - ratio * whole) / size, units))
    ends = _wider(ends, _within(skewed, _wider(*plausible)))
    if range.saturated(units.means(variant), units.means(single)) and not range.same(variant, single):
        ends = _wider(ends, *(one for (change, _), one in zip(changes, plausible) if _few(change, weights)))
    return Interval(ratio, *ends)


def _wider(*bounds: tuple[float, float]) -> tuple[float, float]:
    """The lowest and the highest."""
    return min(low for low, _ in bounds), max(high for _, high in bounds)


def _within(bounds: tuple[float, float], others: tuple[float, float]) -> tuple[float, float]:
    """No further out than others."""
    return max(bounds[0], others[0]), min(bounds[1], others[1])


def _shifted(by: float, bounds: tuple[float, float]) -> tuple[float, float]:
    return by + bounds[0], by + bounds[1]


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
