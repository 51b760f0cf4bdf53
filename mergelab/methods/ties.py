"""TIES: elect a sign for every entry, average what agrees with it (Yadav et al., arXiv 2306.01708)."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

MajoritySign = Literal["total", "frequency"]
MAJORITY_SIGNS = ("total", "frequency")
# Votes that cancel to less than this share of what was cast are a tie: float32 leaves as much of zero.
TIE = 1e-6


def elect_and_average(
    changes: Float[Tensor, "n *shape"],
    weights: Float[Tensor, " n"],
    majority_sign: MajoritySign = "total",
    tie_is_positive: bool = False,
    overwrite: bool = False,
) -> Float[Tensor, "*shape"]:
    """The elect and merge steps of TIES on changes that are trimmed already.

    `gamma = sign(sum_i x_i)` for "total", `sign(sum_i sign(x_i))` for "frequency"; then
    `sum_{i: sign(x_i) = gamma} w_i x_i / max(1, count of those i)`. Entries that are zero neither agree nor count.

    Variant: a tie of "frequency" is decided by "total". Where that is a tie as well, `|sum_i x_i|` being at most 1e-6 of
    `sum_i |x_i|`, no sign is elected and the entry is zero: the merge of the negatives is the negative of the merge, and
    what cancels leaves no rounding behind. With `tie_is_positive` any tie elects +, as in PEFT: among two adapters
    every conflict is then decided for the positive value.

    The vote is on the values as they are given, so pass `w_i x_i` with weights of 1 for a weighted vote (mergelab's
    default), or `x_i` with the weights for PEFT's.

    Args:
        changes: stacked, trimmed changes.
        weights: multiply the values that are averaged, not the vote.
        majority_sign: "total" weighs votes by magnitude, "frequency" counts them.
        tie_is_positive: PEFT's rule for ties.
        overwrite: the changes may be used as memory, and hold nothing of use afterwards.

    Example: three adapters, one entry each; the majority is positive, so 2 and 4 are averaged.
        >>> import torch
        >>> elect_and_average(torch.tensor([[2.0], [4.0], [-3.0]]), torch.ones(3))
        tensor([3.])
    """
    votes = total = changes.sum(dim=0)
    if majority_sign == "frequency":
        counted = changes.sign().sum(dim=0)
        votes = counted if tie_is_positive else torch.where(counted == 0, total, counted)
    # Adding zero turns -0 into 0, whose sign is +.
    elected = torch.copysign(torch.ones_like(votes), votes + 0.0) if tie_is_positive else votes.sign()
    # Masks of booleans would cost more than the arithmetic: what agrees is positive, the rest is cut to zero.
    agreeing = torch.mul(changes, elected, out=changes if overwrite else None).clamp_(min=0.0)
    merged = unweighted = agreeing.sum(dim=0)
    if not bool((weights == 1).all()):
        merged = (agreeing * weights.view(-1, *[1] * (changes.dim() - 1))).sum(dim=0)
    if not tie_is_positive:
        # What was cast is what agrees and what opposes: twice what agrees, less the majority.
        tie = total.abs() <= 2 * TIE * unweighted
        elected.masked_fill_(tie if majority_sign == "total" else tie & (counted == 0), 0.0)
    count = agreeing.sign_().sum(dim=0).clamp_(min=1.0)
    return merged.mul_(elected).div_(count)
