"""One budget of ranks for a whole adapter."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral

import torch
from torch import Tensor

from mergelab.checks import short_repr
from mergelab.errors import OptionError


@dataclass(frozen=True)
class RankBudget:
    """One budget for a whole adapter, spent on the largest singular values wherever they are.

    Args:
        mean: ranks per layer on average; `mean * number of layers` singular values are kept in all. A layer may get
            none: it is then left out, with a row of the report.
        max: most that one layer gets; default: as many as it can hold.

    Example:
        >>> RankBudget(mean=1).spend([torch.tensor([9.0, 8.0]), torch.tensor([1.0])])
        [2, 0]
    """

    mean: int
    max: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "mean", whole_number("RankBudget(mean)", self.mean))
        if self.max is not None:
            object.__setattr__(self, "max", whole_number("RankBudget(max)", self.max))
            if self.max < self.mean:
                raise OptionError(f"RankBudget: max={short_repr(self.max)} is below mean={short_repr(self.mean)}")

    def searched(self, input_ranks: Sequence[int], limit: int) -> int:
        """How many singular values of a dense merge are computed, where all `limit` of them would cost too much.

        Example:
            >>> RankBudget(mean=16).searched([8, 8], 1280), RankBudget(mean=16, max=20).searched([8, 8], 1280)
            (64, 20)
        """
        return min(max(4 * self.mean, sum(input_ranks)), limit, self.max or limit)

    def spend(self, singular_values: Sequence[Tensor]) -> list[int]:
        """How many of each layer's (descending) singular values to keep."""
        layer = torch.cat([torch.full((len(s),), i) for i, s in enumerate(singular_values)])
        order = torch.argsort(torch.cat(list(singular_values)), descending=True, stable=True)
        kept = layer[order[: self.mean * len(singular_values)]]
        return torch.bincount(kept, minlength=len(singular_values)).tolist()


def whole_number(name: str, value: object) -> int:
    """An integer of at least 1, or `OptionError`."""
    if isinstance(value, bool) or not isinstance(value, Integral) or int(value) < 1:
        raise OptionError(f"{name}={short_repr(value)}: expected an integer of at least 1")
    return int(value)
