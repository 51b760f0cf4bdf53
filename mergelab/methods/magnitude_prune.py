"""The sum of the largest entries of each change: PEFT's `magnitude_prune`."""

from __future__ import annotations

from dataclasses import dataclass

from mergelab.methods.linear import WeightedSum
from mergelab.methods.sparsify import Scope, Sparsifier, Trim


@dataclass(frozen=True)
class MagnitudePrune(WeightedSum):
    """`sum_i w_i topk(delta_i)`: the weighted sum of the largest entries of each change.

    Args:
        density: share of entries kept, in (0, 1].
        scope: "layer": the largest of each layer; "adapter": of all layers of an adapter together.

    Source: PEFT's `magnitude_prune` (in space "factors") and `magnitude_prune_svd` (in space "delta").

    Example:
        >>> MagnitudePrune(density=0.3).density
        0.3
    """

    density: float = 0.5
    scope: Scope = "layer"

    @property
    def sparsifier(self) -> Sparsifier:
        """The trim."""
        return Trim(self.density, self.scope)
