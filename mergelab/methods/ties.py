"""TIES: trim, elect a sign for every entry, average what agrees with it (Yadav et al., arXiv 2306.01708)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from mergelab.checks import check_choice, check_number
from mergelab.methods.method import EntryWise
from mergelab.methods.sparsify import Scope, Sparsifier, Trim

MajoritySign = Literal["total", "frequency"]
MAJORITY_SIGNS = get_args(MajoritySign)
Variant = Literal["scaled", "peft"]
VARIANTS = get_args(Variant)
# Votes that cancel to less than this share of what was cast are a tie: float32 leaves as much of zero.
TIE = 1e-6


def elect_and_average(
    changes: Float[Tensor, " n *shape"],
    weights: Float[Tensor, " n"] | None = None,
    majority_sign: MajoritySign = "total",
    tie_is_positive: bool = False,
    tie: float = TIE,
    overwrite: bool = False,
) -> Float[Tensor, "*shape"]:
    """The elect and merge steps of TIES on changes that are trimmed already.

    `gamma = sign(sum_i x_i)` for "total", `sign(sum_i sign(x_i))` for "frequency"; then
    `sum_{i: sign(x_i) = gamma} w_i x_i / max(1, count of those i)`. Entries that are zero neither agree nor count.

    Variant: a tie of "frequency" is decided by "total". Where that is a tie as well, `|sum_i x_i|` being at most `tie`
    times `sum_i |x_i|`, no sign is elected and the entry is zero: the merge of the negatives is the negative of the
    merge, and what cancels leaves no rounding behind. With `tie_is_positive` any tie elects +, as in PEFT: among two
    adapters every conflict is then decided for the positive value.

    The vote is on the values as they are given, so pass `w_i x_i` without weights for a weighted vote (mergelab's
    default), or `x_i` with the weights for PEFT's.

    Args:
        changes: stacked, trimmed changes.
        weights: multiply the values that are averaged, not the vote; None: they are 1.
        majority_sign: "total" weighs votes by magnitude, "frequency" counts them.
        tie_is_positive: PEFT's rule for ties.
        tie: votes that cancel to this share of what was cast are a tie; 0 for PEFT's own arithmetic.
        overwrite: the changes may be used as memory, and hold nothing of use afterwards.

    Example: three adapters, one entry each; the majority is positive, so 2 and 4 are averaged.
        >>> import torch
        >>> elect_and_average(torch.tensor([[2.0], [4.0], [-3.0]]))
        tensor([3.])
    """
    votes = total = changes.sum(dim=0)
    counted = None
    if majority_sign == "frequency":
        counted = changes.sign().sum(dim=0)
        votes = counted if tie_is_positive else torch.where(counted == 0, total, counted)
    elif tie_is_positive and tie:
        votes = torch.where(total.abs() <= tie * changes.abs().sum(dim=0), 0.0, total)
    # Adding zero turns -0 into 0, whose sign is +.
    elected = torch.copysign(torch.ones_like(votes), votes + 0.0) if tie_is_positive else votes.sign()
    # Masks of booleans would cost more than the arithmetic: what agrees is positive, the rest is cut to zero.
    agreeing = torch.mul(changes, elected, out=changes if overwrite else None).clamp_(min=0.0)
    unweighted = agreeing.sum(dim=0)
    merged = unweighted
    if weights is not None:
        merged = (agreeing * weights.view(-1, *[1] * (changes.dim() - 1))).sum(dim=0)
    if not tie_is_positive:
        # What was cast is what agrees and what opposes: twice what agrees, less the majority.
        decided = total.abs_().sub_(unweighted, alpha=2 * tie).gt_(0.0)
        elected.mul_(decided if counted is None else decided.masked_fill_(counted != 0, 1.0))
    count = agreeing.sign_().sum(dim=0).clamp_(min=1.0)
    return elected.mul_(merged).div_(count)


@dataclass(frozen=True)
class Elect(EntryWise):
    """Base of the methods that vote on every entry and average what agrees; a sparsifier decides who has a vote."""

    density: float = 0.5
    majority_sign: MajoritySign = "total"
    lam: float = 1.0
    variant: Variant = "scaled"

    breaks: ClassVar[Mapping[str, str]] = {
        "strength": "it averages what agrees",
        "halves": "the average of two halves is a half",
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("majority_sign", self.majority_sign, MAJORITY_SIGNS)
        check_choice("variant", self.variant, VARIANTS)
        check_number("lam", self.lam)

    @property
    def output_scale(self) -> float:
        """lam."""
        return self.lam

    @property
    def weights_before_rule(self) -> bool:
        """Not in PEFT, which votes on the unscaled values."""
        return self.variant == "scaled"

    def rule(self, changes: Float[Tensor, " n *shape"], weights: Float[Tensor, " n"]) -> Float[Tensor, "*shape"]:
        """Elect and average; a tie is + in PEFT, whose arithmetic is that of the space of factors."""
        on_factors = self.acts_in.acts_on_factors
        return elect_and_average(
            changes,
            weights if self.rule_weighs else None,
            self.majority_sign,
            tie_is_positive=on_factors or self.variant == "peft",
            tie=0.0 if on_factors else TIE,
            overwrite=True,
        )


@dataclass(frozen=True)
class Ties(Elect):
    """TIES: trim each change, elect a sign for every entry, average what agrees with it.

    Args:
        density: share of entries kept by the trim, in (0, 1].
        majority_sign: "total": the sign of the sum; "frequency": that of most adapters, a tie decided by "total"
            (by variant "peft" for +).
        lam: factor on the result (lambda in the paper), any finite number.
        variant: "scaled" (default): the changes are multiplied by their weights before trim and vote; "peft": the
            vote is on the unscaled changes, as in PEFT. Both agree where the weights are equal.
        scope: of the trim, "layer" or "adapter" (as in the paper).

    Source: Yadav et al., arXiv 2306.01708.

    Example:
        >>> Ties(density=0.3, majority_sign="frequency").space
        'delta'
    """

    scope: Scope = "layer"

    @property
    def sparsifier(self) -> Sparsifier:
        """The trim."""
        return Trim(self.density, self.scope)
