"""The contract of a method: what it says of itself as data, and the one function that it is.

A method is a frozen dataclass of hyper-parameters that derives from one of three levels, the smallest that will do:
`EntryWise`, `MatrixWise`, `LayerWise`. The rank of the result is an argument of `merge`, no part of a method.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from mergelab.errors import OptionError
from mergelab.linalg.lowrank import Factors
from mergelab.methods.sparsify import Sparsifier
from mergelab.ranks import Rank, rank_repr
from mergelab.spaces import BASES, PLAIN_SPACE, SPACES, Merged, Space, checked_space


class Level(Enum):
    """What a method has to see at a time: entries in any blocks, a whole matrix, or a layer as factors."""

    ENTRIES = "entries"
    MATRIX = "matrix"
    LAYER = "layer"


class Part(NamedTuple):
    """One adapter's part in a layer.

    Attributes:
        change: its low-rank change, without the weight; perhaps in the memory of a file, so not to be written to.
        weight: its weight in this layer, not zero.
        adapter: which it is, in the list that `merge` was given.
        place: which it is among the adapters that have the layer, by their changes alone: draws go by it.
    """

    change: Factors
    weight: float
    adapter: int
    place: int = 0

    @property
    def weighted(self) -> Factors:
        """The change times its weight."""
        return self.change.scaled(self.weight)


@dataclass(frozen=True)
class Strategy(ABC):
    """Base of every method; derive from `EntryWise`, `MatrixWise` or `LayerWise`.

    Args:
        space: where the rule acts: "delta" (the dense changes), "core" (small cores in a common basis, lossless),
            "knots" (`Sigma V_i.T` of the joint SVD), "factors" (lora_A and lora_B separately: what PEFT's `linear`,
            `ties`, ... do, which is not the merge of the changes).
        basis: of space "core": "changes" (singular vectors of the stacked changes, which depend on nothing but the
            changes, as long as the singular values differ: among equal ones a basis is arbitrary) or "factors" (those
            of the stacked lora_B and lora_A, as the published code takes them).

    The rest is said as data, by class attributes:
        level: what the rule has to see at a time.
        spaces: in which the method exists.
        default_rank: of the result where `merge` is given none.
        stores_factors: its result is stored as it is, at the rank that it has.
        is_sum: its result is the weighted sum of what its sparsifier, if it has one, leaves of the changes.
        breaks: laws that it does not obey -> why; the contract test holds it to both.

    Raises:
        OptionError: a value out of its range.
    """

    space: str = field(default=PLAIN_SPACE, kw_only=True)
    basis: str = field(default=BASES[0], kw_only=True)

    level: ClassVar[Level]
    spaces: ClassVar[tuple[str, ...]] = tuple(SPACES)
    default_rank: ClassVar[Rank] = "max"
    stores_factors: ClassVar[bool] = False
    is_sum: ClassVar[bool] = False
    breaks: ClassVar[Mapping[str, str]] = {}

    def __init_subclass__(cls) -> None:
        """A class with a rule of its own is a sum only if it says so itself."""
        super().__init_subclass__()
        if {"rule", "combine"} & vars(cls).keys() and "is_sum" not in vars(cls):
            cls.is_sum = False

    def __post_init__(self) -> None:
        checked_space(self.space, self.basis, self.spaces)

    @property
    def acts_in(self) -> Space:
        """The space of that name."""
        return SPACES[self.space]

    @property
    def sparsifier(self) -> Sparsifier | None:
        """Which entries of each change the rule gets to see; None: all."""
        return None

    @property
    def output_scale(self) -> float:
        """Multiplies the merged change."""
        return 1.0

    @property
    def is_exact_sum(self) -> bool:
        """Is the result the weighted sum of the changes as they are? Nothing dense need then be formed."""
        return self.is_sum and self.sparsifier is None and self.output_scale == 1 and self.acts_in.keeps_sums

    @property
    def forms_changes(self) -> bool:
        """Does its rule see dense changes, as large as the layer? Else all is as small as the ranks, or their rows."""
        return self.level is not Level.LAYER and not self.is_exact_sum and self.acts_in.is_dense

    def checked_rank(self, rank: Rank) -> Rank:
        """The rank, or `OptionError` where the method cannot store a result at it."""
        if self.stores_factors and rank != self.default_rank:
            raise OptionError(
                f"{type(self).__name__} stores its factors at the rank that they have, "
                f"rank={self.default_rank!r}: found rank={rank_repr(rank)}"
            )
        return rank

    def for_layer(self, generator: Callable[[], torch.Generator]) -> Strategy:
        """The method as it is for one layer; only a rule of a user's own that draws asks for the generator."""
        return self


@dataclass(frozen=True)
class MatrixWise(Strategy):
    """A method that has to see a whole matrix of its space at a time."""

    level: ClassVar[Level] = Level.MATRIX

    def __post_init__(self) -> None:
        super().__post_init__()
        sparsifier = self.sparsifier  # which checks its own options
        if sparsifier is not None and not isinstance(sparsifier, Sparsifier):
            raise OptionError(
                f"{type(self).__name__}.sparsifier: expected a Sparsifier or None, found {sparsifier!r:.60}"
            )
        if sparsifier is not None and sparsifier.scope != "layer" and self.acts_in.acts_on_factors:
            raise OptionError(
                f"scope={sparsifier.scope!r} trims whole changes; in space={self.space!r} only scope='layer' exists"
            )

    @property
    def weights_before_rule(self) -> bool:
        """Are changes multiplied by their weights before sparsifier and rule see them? (Their weights are then 1.)"""
        return True

    @property
    def rule_weighs(self) -> bool:
        """Is it left to the rule to multiply by the weights? Else they are 1 where it sees them."""
        return self.acts_in.acts_on_factors or not self.weights_before_rule

    @abstractmethod
    def rule(self, changes: Float[Tensor, " n *shape"], weights: Float[Tensor, " n"]) -> Float[Tensor, "*shape"]:
        """Combine n stacked matrices, float32 of this call's own that may be overwritten, into one."""


@dataclass(frozen=True)
class EntryWise(MatrixWise):
    """A method whose rule treats every entry by itself: the engine may apply it to any blocks, of any shape.

    Example: the largest entry of all.
        >>> @dataclass(frozen=True)
        ... class Largest(EntryWise):
        ...     def rule(self, changes, weights):
        ...         return (changes * weights.view(-1, *[1] * (changes.dim() - 1))).amax(dim=0)
        >>> Largest().rule(torch.tensor([[1.0, -2.0], [3.0, -4.0]]), torch.ones(2))
        tensor([ 3., -2.])
    """

    level: ClassVar[Level] = Level.ENTRIES


@dataclass(frozen=True)
class LayerWise(Strategy):
    """A method that works on the low-rank changes of one layer, and never needs them dense."""

    level: ClassVar[Level] = Level.LAYER
    spaces: ClassVar[tuple[str, ...]] = (PLAIN_SPACE,)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.sparsifier is not None:
            raise OptionError(
                f"{type(self).__name__} sees whole layers as factors, of which nothing can be dropped beforehand: "
                "expected no sparsifier; derive from MatrixWise, or drop within combine()"
            )

    @abstractmethod
    def combine(self, parts: Sequence[Part]) -> Merged:
        """Merge one layer: into factors, a core between orthonormal bases, or a dense `(out, in)`.

        Args:
            parts: of the adapters that have the layer at a weight that is not zero, in an order that depends on
                their weighted changes alone; in the order given, for a method that stores its factors.
        """


def unfinished(method: type[Strategy]) -> str:
    """What a class lacks of the contract, in words; "" for a whole one.

    Example:
        >>> @dataclass(frozen=True)
        ... class Slip(EntryWise):
        ...     def rul(self, changes, weights): ...
        >>> unfinished(Slip)
        'Slip has no rule(), which its base class asks for'
    """
    if not issubclass(method, (MatrixWise, LayerWise)):
        return f"{method.__name__} has no level: derive it from EntryWise, MatrixWise or LayerWise"
    if lacking := sorted(method.__abstractmethods__):
        return f"{method.__name__} has no {', '.join(f'{n}()' for n in lacking)}, which its base class asks for"
    if vars(method).get("__annotations__") and "__dataclass_fields__" not in vars(method):
        return f"{method.__name__} has options and is no dataclass: put @dataclass(frozen=True) above it"
    return ""
