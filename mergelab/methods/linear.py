"""The weighted sum: task arithmetic (arXiv 2212.04089)."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor


def weighted_sum(changes: Float[Tensor, "n *shape"], weights: Float[Tensor, " n"]) -> Float[Tensor, "*shape"]:
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
