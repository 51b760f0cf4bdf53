"""How many singular values of a layer a rank keeps, and what the report says of that."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from torch import Tensor

from mergelab.linalg.lowrank import Spectrum
from mergelab.ranks.budget import RankBudget
from mergelab.ranks.dynamic import Dynamic, Energy
from mergelab.ranks.reading import Rank, rank_text
from mergelab.tables import counted

Target = int | Dynamic


def target_rank(rank: Rank, input_ranks: Sequence[int], limit: int) -> Target:
    """What to ask of one layer's decomposition: a number of singular values, or the rule that finds it in them.

    Args:
        rank: as given.
        input_ranks: of the adapters that have the layer.
        limit: most that the layer can hold, `min(out, in)`.
    """
    if isinstance(rank, RankBudget):
        return min(rank.max or limit, limit)
    if isinstance(rank, Dynamic):
        return replace(rank, max=min(rank.max or limit, limit))
    if rank == "max":
        return min(max(input_ranks), limit)
    if rank == "sum":
        return min(sum(input_ranks), limit)
    return Energy(rank, limit) if isinstance(rank, float) else min(int(rank), limit)


def rank_reached(target: Target, singular_values: Tensor, energy: float | None = None) -> int:
    """How many singular values were asked for: a number, or what the rule finds in them.

    Args:
        target: as `target_rank` gives it.
        singular_values: the leading ones, the largest first.
        energy: the sum of the squares of all; default: of these.

    Example:
        >>> import torch
        >>> rank_reached(Energy(0.9), torch.tensor([3.0, 1.0, 1.0])), rank_reached(1, torch.tensor([3.0]))
        (2, 1)
    """
    if isinstance(target, int):
        return target
    whole = float((singular_values.double() ** 2).sum()) if energy is None else energy
    return min(target.reached(singular_values, whole), len(singular_values))


def searched(target: Target, limit: int) -> int | Callable[[Tensor, float], bool]:
    """What to ask of a search for the leading singular values of a dense matrix: how many, or when it has enough.

    Args:
        target: as `target_rank` gives it.
        limit: how many there are.
    """
    if isinstance(target, int):
        return target
    return limit if target.needs_all else target.enough


def truncate(spectrum: Spectrum, target: Target) -> Spectrum:
    """The leading part that was asked for."""
    return spectrum.truncated(rank_reached(target, spectrum.S, float(spectrum.energy)))


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
