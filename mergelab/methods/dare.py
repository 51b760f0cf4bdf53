"""DARE: drop entries at random and rescale what is left (Yu et al., arXiv 2311.03099), by itself and before TIES."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from mergelab.methods.linear import WeightedSum
from mergelab.methods.sparsify import Drop, Sparsifier
from mergelab.methods.ties import Elect

_DRAWS = {"seed": "what is dropped is drawn"}


@dataclass(frozen=True)
class Dare(WeightedSum):
    """DARE: drop entries at random, rescale what is left by 1 / density, and sum.

    Args:
        density: probability with which an entry is kept, in (0, 1]. The draw of an entry is a function of the `seed` of
            `merge`, the layer, the place of the adapter's change among those of the layer, row and column.

    Source: Yu et al., arXiv 2311.03099 (whose p is the share dropped, 1 - density).

    Example:
        >>> Dare(density=0.9).density
        0.9
    """

    density: float = 0.5

    breaks: ClassVar[Mapping[str, str]] = {**WeightedSum.breaks, **_DRAWS}

    @property
    def sparsifier(self) -> Sparsifier:
        """The drop."""
        return Drop(self.density)


@dataclass(frozen=True)
class DareTies(Elect):
    """DARE's drop and rescale in the place of the trim, then the vote and the average of TIES.

    Args:
        density, majority_sign, lam, variant: as for `Dare` and `Ties`.

    Source: arXiv 2311.03099 with arXiv 2306.01708.

    Example:
        >>> DareTies(density=0.7).majority_sign
        'total'
    """

    breaks: ClassVar[Mapping[str, str]] = {**Elect.breaks, **_DRAWS}

    @property
    def sparsifier(self) -> Sparsifier:
        """The drop."""
        return Drop(self.density)
