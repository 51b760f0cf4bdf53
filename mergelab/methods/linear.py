"""The weighted sum: task arithmetic (arXiv 2212.04089), in any space, and exactly from the factors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from mergelab.errors import OptionError
from mergelab.linalg.lowrank import Factors, stack
from mergelab.methods.method import EntryWise, LayerWise, Part
from mergelab.ranks import Rank, rank_repr
from mergelab.spaces import SPACES

_TWICE = {"twice": "a sum of two equals is twice as much"}


def weighted_sum(changes: Float[Tensor, " n *shape"], weights: Float[Tensor, " n"]) -> Float[Tensor, "*shape"]:
    """`sum_i weights[i] * changes[i]`.

    Args:
        changes: stacked changes.
        weights: one per change, any sign.

    Example:
        >>> import torch
        >>> weighted_sum(torch.tensor([[1.0, 2.0], [3.0, -4.0]]), torch.tensor([2.0, 0.5]))
        tensor([3.5000, 2.0000])
    """
    return (changes * weights.view(-1, *[1] * (changes.dim() - 1))).sum(dim=0)


@dataclass(frozen=True)
class WeightedSum(EntryWise):
    """Base of the methods that add what their sparsifier leaves."""

    is_sum: ClassVar[bool] = True
    breaks: ClassVar[Mapping[str, str]] = _TWICE

    def rule(self, changes: Float[Tensor, " n *shape"], weights: Float[Tensor, " n"]) -> Float[Tensor, "*shape"]:
        """The weighted sum."""
        return weighted_sum(changes, weights) if self.rule_weighs else changes.sum(dim=0)


@dataclass(frozen=True)
class Linear(WeightedSum):
    """The weighted sum `sum_i w_i delta_i`, truncated to the rank asked for; in any space.

    In space "factors" it is PEFT's `linear`: `A = sum sgn(w s) sqrt|w s| A_i` and `B = sum sqrt|w s| B_i`, whose
    product has cross terms.

    Source: task arithmetic, arXiv 2212.04089.

    Example:
        >>> Linear()
        Linear(space='delta', basis='changes')
    """


@dataclass(frozen=True)
class ExactSum(LayerWise):
    """Base of the methods that add the changes exactly; the sum is the same in every space that keeps sums."""

    is_sum: ClassVar[bool] = True
    spaces: ClassVar[tuple[str, ...]] = tuple(name for name, space in SPACES.items() if space.keeps_sums)
    breaks: ClassVar[Mapping[str, str]] = _TWICE

    def __post_init__(self) -> None:
        if self.space in SPACES and not self.acts_in.keeps_sums:
            raise OptionError(
                f"{type(self).__name__} is the exact sum of the changes, which space={self.space!r} is not; "
                f"for PEFT's sum of factors use method='linear', space={self.space!r}"
            )
        super().__post_init__()

    def combine(self, parts: Sequence[Part]) -> Factors:
        """The factors side by side."""
        return stack([part.weighted for part in parts])


@dataclass(frozen=True)
class Cat(ExactSum):
    """The exact weighted sum at the sum of the ranks: the factors side by side.

    Source: PEFT's `cat`.

    Example:
        >>> Cat()
        Cat(space='delta', basis='changes')
    """

    default_rank: ClassVar[Rank] = "sum"
    stores_factors: ClassVar[bool] = True

    def checked_rank(self, rank: Rank) -> Rank:
        """Any other rank is another method's."""
        if rank != self.default_rank:
            raise OptionError(
                f"cat keeps the sum of the ranks; for rank={rank_repr(rank)} use method='svd', the same sum truncated"
            )
        return super().checked_rank(rank)


@dataclass(frozen=True)
class Svd(ExactSum):
    """The exact weighted sum, truncated optimally (Eckart-Young) to the rank asked for.

    Source: PEFT's `svd`, by Gram matrices of the factors instead of a dense decomposition.

    Example:
        >>> Svd()
        Svd(space='delta', basis='changes')
    """
