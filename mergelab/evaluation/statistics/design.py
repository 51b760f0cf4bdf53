"""What a design can tell: the least p value, the difference that would have been seen, and metrics that are blind."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from scipy.optimize import brentq
from scipy.special import stdtrit
from scipy.stats import nct

from mergelab.evaluation.statistics.moments import moments
from mergelab.evaluation.statistics.tests import EXACT, FLIPS
from mergelab.evaluation.statistics.units import ENOUGH, Array, Units


def least_p(count: int) -> float:
    """The least p value that `sign_flip` can give with so many clusters.

    Example:
        >>> least_p(5), least_p(6)
        (0.0625, 0.03125)
    """
    if count < 1:
        return 1.0
    return 2 / 2**count if count <= EXACT else max(1 / (FLIPS + 1), 2 / 2**count)


def resolvable(differences: Array, units: Units, power: float = 0.8) -> float:
    """The difference that this design would have told from zero with the given power, at 5 %, two-sided.

    Args:
        differences: (n,), of two variants, image by image.
        units: of the images.
        power: share of the runs in which the interval would not hold zero.

    Returns:
        NaN below five clusters, and where nothing differs.

    Example:
        >>> round(resolvable(np.array([0.1, 0.3, 0.2, 0.0, 0.4, 0.2]), Units("abcdef")), 3)
        0.203
    """
    error, df, _ = moments(units.means(differences), units) if units.count >= ENOUGH else (0.0, 0.0, 0.0)
    return error * _noncentrality(round(df, 1), power) if error else float("nan")


def resolvable_with(deviation: float, count: int, power: float = 0.8) -> float:
    """The same before anything is drawn, with a deviation of the differences known from elsewhere.

    Args:
        deviation: standard deviation of the difference between clusters.
        count: clusters.
        power: share of the runs in which the interval would not hold zero.

    Example:
        >>> round(resolvable_with(0.25, 12), 3)
        0.222
    """
    return deviation / float(np.sqrt(count)) * _noncentrality(count - 1, power) if count >= ENOUGH else float("nan")


@lru_cache(maxsize=512)
def _noncentrality(df: float, power: float) -> float:
    """How many standard errors a difference has to be, by the noncentral t distribution."""
    reach = float(stdtrit(df, 0.975))
    return float(brentq(lambda shift: nct.sf(reach, df, shift) - power, 0.0, 3 * reach + 10))


def is_blind(floor: Array, ceiling: Array, units: Units, *, higher_is_better: bool = True) -> bool:
    """Whether a metric does not tell the adapter alone from the base model, so that nothing it says counts.

    It is blind unless Student's interval of `ceiling - floor`, over the clusters, or over the images where there are
    fewer than five clusters, lies on the better side of zero. Fewer than five images cannot tell: there it is blind
    only where the adapter alone is not above the base model.

    Args:
        floor, ceiling: (n,), scores of the base model and of the adapter alone, image by image.
        units: of the images.
        higher_is_better: of the metric.

    Example:
        >>> is_blind(np.zeros(6), np.array([0.1, -0.1, 0.2, 0.0, -0.1, 0.1]), Units("aabbcc"))
        True
    """
    gains = (ceiling - floor) * (1 if higher_is_better else -1)
    if units.count < ENOUGH:
        units = Units(range(len(gains)))
    mean = float(units.weights @ units.means(gains))
    if units.count < ENOUGH:
        return mean <= 0
    error, df, _ = moments(units.means(gains), units)
    return not mean > float(stdtrit(df, 0.975)) * error
