"""TIES: elect a sign for every entry, average what agrees with it (Yadav et al., arXiv 2306.01708)."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

MajoritySign = Literal["total", "frequency"]
MAJORITY_SIGNS = ("total", "frequency")


def elect_and_average(
    changes: Float[Tensor, "n *shape"],
    weights: Float[Tensor, " n"],
    majority_sign: MajoritySign = "total",
    tie_is_positive: bool = False,
) -> Float[Tensor, "*shape"]:
    """The elect and merge steps of TIES on changes that are trimmed already.

    `gamma = sign(sum_i x_i)` for "total", `sign(sum_i sign(x_i))` for "frequency"; then
    `sum_{i: sign(x_i) = gamma} w_i x_i / max(1, count of those i)`. Entries that are zero neither agree nor count.

    Variant: a tie of "frequency" is decided by "total", and where that is zero as well no sign is elected and the
    entry is zero, so that the merge of the negatives is the negative of the merge. With `tie_is_positive` any tie
    elects +, as in PEFT: among two adapters every conflict is then decided for the positive value.

    The vote is on the values as they are given, so pass `w_i x_i` with weights of 1 for a weighted vote (mergelab's
    default), or `x_i` with the weights for PEFT's.

    Args:
        changes: stacked, trimmed changes.
        weights: multiply the values that are averaged, not the vote.
        majority_sign: "total" weighs votes by magnitude, "frequency" counts them.
        tie_is_positive: PEFT's rule for ties.

    Example: three adapters, one entry each; the majority is positive, so 2 and 4 are averaged.
        >>> import torch
        >>> elect_and_average(torch.tensor([[2.0], [4.0], [-3.0]]), torch.ones(3))
        tensor([3.])
    """
    sign = changes.sign()
    votes = changes.sum(dim=0) if majority_sign == "total" else sign.sum(dim=0)
    if tie_is_positive:
        elected = torch.where(votes >= 0, 1.0, -1.0)
    else:
        elected = (torch.where(votes == 0, changes.sum(dim=0), votes) if majority_sign == "frequency" else votes).sign()
    agrees = (sign == elected) & (sign != 0)
    weighted = changes * weights.view(-1, *[1] * (changes.dim() - 1))
    return (weighted * agrees).sum(dim=0) / agrees.sum(dim=0).clamp(min=1.0)
