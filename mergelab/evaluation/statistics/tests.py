"""Sign flips, Holm's correction and win rates."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import product

import numpy as np

from mergelab.evaluation.statistics.units import Array, Units

EXACT = 12
"""Up to so many clusters all 2^n patterns of signs are tried."""
FLIPS = 10_000
"""Patterns that are tried where there are more."""


def sign_flip(differences: Array, units: Units | None = None) -> float:
    """p value of the paired test that differences are symmetric around zero: how often random signs reach as far.

    Args:
        differences: (n,), one for each cluster; or one for each image, with their units.
        units: of the images.

    Example:
        >>> sign_flip(np.array([1.0, 2.0, 0.5]))
        0.25
    """
    parts = differences if units is None else units.means(differences) * units.weights
    if not np.isfinite(parts).all() or not np.any(parts):
        return 1.0
    signs = _signs(len(parts))
    reached = np.abs(signs @ parts) >= abs(parts.sum()) * (1 - 1e-9)
    return float(reached.mean()) if len(parts) <= EXACT else float((reached.sum() + 1) / (len(signs) + 1))


@lru_cache(maxsize=16)
def _signs(count: int) -> Array:
    """All patterns of signs, or random ones; the same for every test of as many clusters."""
    if count <= EXACT:
        return np.array(list(product((1.0, -1.0), repeat=count)))
    return np.random.default_rng(0).choice([1.0, -1.0], size=(FLIPS, count))


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
