"""What a rule gets to see of each change: trim and drop.

`density` is the share that is KEPT, everywhere.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from mergelab.checks import check_choice, is_number, short_repr
from mergelab.errors import OptionError
from mergelab.linalg.draws import EntryDraws

Scope = Literal["layer", "adapter"]
SCOPES = get_args(Scope)

# Share -> for each matrix (or adapter) the magnitude of the smallest of that share of its largest entries: infinity
# where that is none, 0 where it is all.
Thresholds = Callable[[float], Sequence[float]]


def check_density(density: object) -> None:
    """Raise unless `0 < density <= 1`."""
    if not is_number(density) or not 0 < density <= 1:  # type: ignore[operator]
        raise OptionError(
            f"density is the share of entries kept, expected 0 < density <= 1, found {short_repr(density)}"
        )


@dataclass(frozen=True)
class Sparsifier(ABC):
    """Sets some entries of each change to zero, and may rescale the others.

    What must be known of whole matrices is found once, by `prepare`; then blocks of rows are treated one by one, in any
    order and by any thread.

    Args:
        density: share of the entries that is kept, in (0, 1].
        scope: over what `prepare` looks: "layer", the entries of one layer; "adapter", of all layers of an adapter.
    """

    density: float
    scope: Scope = "layer"

    def __post_init__(self) -> None:
        check_density(self.density)
        check_choice("scope", self.scope, SCOPES)

    @property
    def shares(self) -> tuple[float, ...]:
        """For which `prepare` will ask, as far as that is known: several methods are then served by one look."""
        return ()

    def prepare(self, thresholds: Thresholds) -> Sequence[Any] | None:
        """What `apply` must know, for each matrix (or, in scope "adapter", for each adapter); None: nothing."""
        return None

    @abstractmethod
    def apply(self, x: Tensor, prepared: Any, draws: EntryDraws, rows: slice) -> Tensor:
        """Treat some rows of one matrix, float32 `(rows, columns)`, in place or not, and return them.

        Args:
            x: the rows.
            prepared: of this matrix, from `prepare`.
            draws: the random numbers of this matrix.
            rows: which they are.
        """

    @abstractmethod
    def as_peft(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """Treat one factor as PEFT does, to the last bit and with the draws of the generator."""


@dataclass(frozen=True)
class Trim(Sparsifier):
    """Keep the `floor(density * n)` entries of largest magnitude; entries equal to the smallest kept are all kept.

    Variant: n counts the entries of one layer, or with scope "adapter" of all layers together, as in the TIES paper
    (arXiv 2306.01708).

    Example:
        >>> Trim(0.5).apply(torch.tensor([[1.0, -3.0], [2.0, 0.5]]), 2.0, EntryDraws(0), slice(0, 2))
        tensor([[ 0., -3.],
                [ 2.,  0.]])
    """

    @property
    def shares(self) -> tuple[float, ...]:
        """The density."""
        return (self.density,)

    def prepare(self, thresholds: Thresholds) -> Sequence[float]:
        """One threshold for each matrix."""
        return thresholds(self.density)

    def apply(self, x: Tensor, prepared: float, draws: EntryDraws, rows: slice) -> Tensor:
        """Zero where `|x|` is below the threshold."""
        if prepared <= 0:
            return x
        # hardshrink keeps what is larger than its parameter, in one pass.
        below = float(np.nextafter(np.float32(prepared), np.float32(0)))
        return torch.ops.aten.hardshrink.out(x, below, out=x)

    def as_peft(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """Keep exactly `floor(density * n)` entries, ties resolved as `torch.topk` does."""
        if self.density >= 1:
            return x
        mask = torch.zeros(x.numel(), dtype=x.dtype, device=x.device)
        mask[torch.topk(x.abs().reshape(-1), k=int(self.density * x.numel())).indices] = 1
        return x * mask.reshape(x.shape)


@dataclass(frozen=True)
class Drop(Sparsifier):
    """Keep every entry with probability `density`, and divide what is kept by `density`.

    Variant: DARE as published (arXiv 2311.03099) with its rescaling, `m * x / density`, m ~ Bernoulli(density).

    Example:
        >>> Drop(0.5).apply(torch.ones(1, 6), None, EntryDraws(0), slice(0, 1)).unique()
        tensor([0., 2.])
    """

    def apply(self, x: Tensor, prepared: None, draws: EntryDraws, rows: slice) -> Tensor:
        """The draw of an entry depends on its place alone."""
        return draws.keep_(x, self.density, rows).mul_(1 / self.density)

    def as_peft(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """`rand < density` on the CPU is what `torch.bernoulli` gives, in a third of the time."""
        if self.density >= 1:
            return x
        uniform = torch.rand(x.shape, generator=generator, dtype=torch.float32)
        return torch.mul(x, torch.lt(uniform, self.density, out=uniform).to(x.device)).div_(self.density)
