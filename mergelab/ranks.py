"""How a result is stored: the choice of rank."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields
from numbers import Integral
from typing import Any

import torch
from torch import Tensor

from mergelab.checks import did_you_mean, plain_number, short_repr
from mergelab.errors import OptionError
from mergelab.linalg.lowrank import Spectrum
from mergelab.tables import counted


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
        object.__setattr__(self, "mean", _positive("RankBudget(mean)", self.mean))
        if self.max is not None:
            object.__setattr__(self, "max", _positive("RankBudget(max)", self.max))
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


Rank = int | float | str | RankBudget
_MEAN = "mean="


def check_rank(rank: object) -> Rank:
    """Return a valid rank, or raise `OptionError` with what is expected.

    A mapping is a budget as `rank_record` writes it.

    Example:
        >>> check_rank("sum"), check_rank(8), check_rank(0.9), check_rank("mean=16")
        ('sum', 8, 0.9, RankBudget(mean=16, max=None))
        >>> check_rank({"mean": 8, "max": None})
        RankBudget(mean=8, max=None)
    """
    if isinstance(rank, RankBudget) or (isinstance(rank, str) and rank in ("max", "sum")):
        return rank
    if isinstance(rank, Mapping):
        return _recorded_budget(rank)
    if isinstance(rank, str) and (mean := _mean_of(rank)) is not None:
        if mean < 1:
            raise OptionError(f"rank={short_repr(rank)}: expected a mean of at least 1, as in 'mean=32'")
        return RankBudget(mean=mean)
    if isinstance(rank, float) and 0 < rank < 1:
        return float(rank)
    if isinstance(rank, Integral) and not isinstance(rank, bool) and int(rank) >= 1:
        return int(rank)
    raise OptionError(
        f"rank={short_repr(rank)}: expected an integer of at least 1, 'max', 'sum', a share of the energy strictly "
        "between 0 and 1, or a budget, RankBudget(mean=32) or 'mean=32'"
    )


def _recorded_budget(record: Mapping[str, Any]) -> RankBudget:
    known = [field.name for field in fields(RankBudget)]
    if unknown := [key for key in record if key not in known]:
        found = f"a budget has no {short_repr(unknown[0])}"
        raise OptionError(f"rank={short_repr(record)}: {found}; {did_you_mean(str(unknown[0]), known)}")
    if "mean" not in record:
        raise OptionError(f"rank={short_repr(record)}: a budget needs its mean, as in {{mean: 32}}")
    return RankBudget(**record)


def _mean_of(text: str) -> int | None:
    """8 for "mean=8"; None for what is no such text."""
    digits = text.removeprefix(_MEAN)
    with suppress(ValueError):  # more digits than Python reads
        return int(digits) if text.startswith(_MEAN) and digits.isascii() and digits.isdecimal() else None
    return None


def parse_rank(text: str) -> Rank:
    """A rank from a command line: "32", "0.9", "max", "sum" or "mean=32".

    Raises:
        OptionError: it is none of these.

    Example:
        >>> parse_rank("32"), parse_rank("0.9"), parse_rank("mean=4").mean
        (32, 0.9, 4)
    """
    if text in ("max", "sum") or text.startswith(_MEAN):
        return check_rank(text)
    try:
        plain_number(text)
        number = int(text) if text.lstrip("+-").isdecimal() else float(text)
    except ValueError:
        raise OptionError(f"rank={short_repr(text)}: expected a number such as 32, max, sum, 0.9 or mean=32") from None
    return check_rank(number)


def target_rank(rank: Rank, input_ranks: Sequence[int], limit: int) -> int | float:
    """What to ask of one layer's decomposition: a number of singular values, or the share of energy they hold.

    Args:
        rank: as given.
        input_ranks: of the adapters that have the layer.
        limit: most that the layer can hold, `min(out, in)`.
    """
    if isinstance(rank, RankBudget):
        return min(rank.max or limit, limit)
    if rank == "max":
        return min(max(input_ranks), limit)
    if rank == "sum":
        return min(sum(input_ranks), limit)
    return rank if isinstance(rank, float) else min(int(rank), limit)


def rank_for_energy(singular_values: Tensor, share: float, energy: float) -> int:
    """Smallest number of leading singular values whose squares hold `share` of the energy; at least 1.

    Example:
        >>> rank_for_energy(torch.tensor([3.0, 1.0, 1.0]), 0.9, 11.0)
        2
    """
    held = torch.cumsum(singular_values.double() ** 2, dim=0)
    # A share of 0.9 of exactly 10 / 10 must not ask for one more because of the last bit of a sum.
    enough = torch.nonzero(held >= share * energy * (1 - 1e-12))
    return int(enough[0]) + 1 if len(enough) else len(singular_values)


def rank_reached(target: int | float, singular_values: Tensor, energy: float | None = None) -> int:
    """How many singular values were asked for: a number, or the share that they hold of the energy (default: theirs).

    Example:
        >>> rank_reached(0.9, torch.tensor([3.0, 1.0, 1.0])), rank_reached(1, torch.tensor([3.0]))
        (2, 1)
    """
    if isinstance(target, int):
        return target
    whole = float((singular_values.double() ** 2).sum()) if energy is None else energy
    return rank_for_energy(singular_values, target, whole)


def truncate(spectrum: Spectrum, target: int | float) -> Spectrum:
    """The leading part that was asked for."""
    return spectrum.truncated(rank_reached(target, spectrum.S, float(spectrum.energy)))


def rank_record(rank: Rank) -> Any:
    """A rank as a recipe keeps it, JSON-ready."""
    return {"mean": rank.mean, "max": rank.max} if isinstance(rank, RankBudget) else rank


def rank_text(rank: Rank) -> str:
    """A rank as a label shows it.

    Example:
        >>> rank_text(8), rank_text(RankBudget(mean=8)), rank_text(RankBudget(mean=8, max=16))
        ('8', 'mean=8', 'mean=8,max=16')
    """
    if not isinstance(rank, RankBudget):
        return str(rank)
    return f"{_MEAN}{rank.mean}" + (f",max={rank.max}" if rank.max is not None else "")


def rank_repr(rank: Rank) -> str:
    """A rank as one writes it in Python.

    Example:
        >>> rank_repr(8), rank_repr("sum"), rank_repr(RankBudget(mean=8))
        ('8', "'sum'", "'mean=8'")
    """
    return rank_text(rank) if isinstance(rank, (int, float)) else repr(rank_text(rank))


def rank_note(rank: Rank, found: int, known: int | None = None) -> str:
    """What the report says of a layer that did not get the rank that was asked for.

    Args:
        rank: as given.
        found: of the result.
        known: how many singular values were computed, where there are more of them.
    """
    if found == 0:
        return "left out: the rank budget went to other layers"
    if isinstance(rank, RankBudget) and found == known != rank.max:
        return f"only its {known} largest singular values were computed: the budget might have gone to more of them"
    if isinstance(rank, int) and found < rank:
        return f"rank capped at {found}, all that the layer or the merge can hold (asked for {rank})"
    return ""


def budget_note(rank: Rank, ranks: Sequence[int]) -> str:
    """What the report says of a budget that the layers could not spend; "" for any other rank.

    Args:
        rank: as given.
        ranks: of every layer that could have a share, 0 for one that got none.

    Example:
        >>> budget_note(RankBudget(mean=16), [8, 12])
        'rank budget capped at 20, all that the layers can hold (mean=16 of 2 layers is 32)'
    """
    if not isinstance(rank, RankBudget) or sum(ranks) >= rank.mean * len(ranks):
        return ""
    asked, limit = rank.mean * len(ranks), " at max" if rank.max is not None else ""
    return (
        f"rank budget capped at {sum(ranks)}, all that the layers can hold{limit} ({rank_text(rank)} of "
        f"{counted(len(ranks), 'layer')} is {asked})"
    )


def _positive(name: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, Integral) or int(value) < 1:
        raise OptionError(f"{name}={short_repr(value)}: expected an integer of at least 1")
    return int(value)
