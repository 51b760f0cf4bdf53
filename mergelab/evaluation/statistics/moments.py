"""Standard error and skewness of a weighted mean of clusters, and the bounds that follow from them."""

from __future__ import annotations

import numpy as np
from scipy.special import stdtrit

from mergelab.evaluation.statistics.units import Array, Units


def spread(means: Array, units: Units) -> tuple[float, float]:
    """The wider of Student's and Hall's bounds of a weighted mean of clusters.

    With several sets the variance is the sum of the variances within the sets, with the degrees of freedom of Welch and
    Satterthwaite. Hall's transformation of the studentised mean is a cubic whose inverse is exact (Hall, Journal of the
    Royal Statistical Society B 54, 1992).

    Args:
        means: of the clusters.
        units: of the images.
    """
    error, df, skew = moments(means, units)
    centre = float(units.weights @ means)
    reach = float(stdtrit(df, 0.975))
    low, high = -reach, reach
    if abs(skew) > 1e-9:
        below, above = (float(3 / skew * (np.cbrt(1 + skew * (x - skew / 6)) - 1)) for x in (-reach, reach))
        low, high = min(low, -above), max(high, -below)
    return centre + low * error, centre + high * error


def moments(means: Array, units: Units) -> tuple[float, float, float]:
    """Standard error of the weighted mean of clusters, its degrees of freedom, and its skewness.

    A set with one prompt says nothing about its own variance; all prompts then vary around their common mean, which
    makes the error larger, not smaller.
    """
    sizes = np.bincount(units.strata)
    strata = units.strata if sizes.min() > 1 else np.zeros_like(units.strata)
    sizes = np.bincount(strata)
    centres = np.bincount(strata, weights=means) / sizes
    rest = (means - centres[strata]) * units.weights
    n = sizes.astype(float)
    parts = np.bincount(strata, weights=rest**2) * n / (n - 1)
    variance = float(parts.sum())
    if variance <= (1e-12 * float(np.abs(means).max())) ** 2:
        return 0.0, float((n - 1).sum()), 0.0
    df = variance**2 / float((parts**2 / (n - 1)).sum())
    thirds = np.bincount(strata, weights=rest**3) * np.divide(
        n**2, (n - 1) * (n - 2), out=np.zeros_like(n), where=n > 2
    )
    return float(np.sqrt(variance)), df, float(thirds.sum()) / variance**1.5
