"""Singular values alone, from Gram matrices: at a fraction of the cost of a decomposition, no vector is formed."""

from __future__ import annotations

import torch
from jaxtyping import Float64
from torch import Tensor

from mergelab.linalg.lowrank import Factors
from mergelab.linalg.span import Span


def singular_values(change: Factors) -> Float64[Tensor, " k"]:
    """All that a product can have, the largest first; those below 1e-7 of it are rounding.

    Example:
        >>> singular_values(Factors(torch.diag(torch.tensor([3.0, 4.0])), torch.eye(2))).round(decimals=6).tolist()
        [4.0, 3.0]
    """
    return _squares(change).flip(0).sqrt()


def energy_beyond(change: Factors, rank: int) -> float:
    """Squared Frobenius norm of what the best approximation of a rank leaves out, in float64.

    Example:
        >>> round(energy_beyond(Factors(torch.diag(torch.tensor([4.0, 3.0])), torch.eye(2)), 1), 6)
        9.0
    """
    squares = _squares(change)
    return float(squares[: max(0, len(squares) - rank)].sum())


def _squares(change: Factors) -> Tensor:
    """In ascending order."""
    span = Span.of([change])
    return torch.linalg.eigvalsh(span.r_b @ span.grams[1] @ span.r_b.mT).clamp_min(0)
