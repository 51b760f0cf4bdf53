"""Standard error and skewness of a weighted mean of clusters, and the bounds that follow from them."""

from __future__ import annotations

import numpy as np
from scipy.special import stdtrit

from mergelab.evaluation.statistics.units import Array, Units

MOST_SKEWED = 0.5
"""Skewness of a mean that is believed; an exponential variable has .82 with six clusters and .41 with 24."""


def student(means: Array, units: Units) -> tuple[float, float]:
    """Student's bounds of a weighted mean of clusters.

    With several sets the variance is the sum of the variances within the sets, with the degrees of freedom of Welch and
    Satterthwaite.

    Args:
        means: of the clusters.
        units: of the images.
    """
    error, df, _ = moments(means, units)
    centre, reach = float(units.weights @ means), float(stdtrit(df, 0.975)) * error
    return centre - reach, centre + reach


def hall(means: Array, units: Units) -> tuple[float, float]:
    """Hall's bounds, which know of skewness; with few and very skewed clusters they are far away.

    The transformation of the studentised mean is a cubic whose inverse is exact (Hall, Journal of the Royal Statistical
    Society B 54, 1992). A mean that is more skewed than `MOST_SKEWED` is taken to be as skewed as that: few clusters
    with a long tail do not tell how long it is.

    Args:
        means: of the clusters.
        units: of the images.
    """
    error, df, skewness = moments(means, units)
    skew = float(np.clip(skewness, -MOST_SKEWED, MOST_SKEWED))
    if abs(skew) <= 1e-9:
        return student(means, units)
    centre, reach = float(units.weights @ means), float(stdtrit(df, 0.975))
    below, above = (float(3 / skew * (np.cbrt(1 + skew * (x - skew / 6)) - 1)) for x in (-reach, reach))
    return centre - above * error, centre - below * error


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
