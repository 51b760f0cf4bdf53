"""Gram matrices in float64, and their roots."""

from __future__ import annotations

import torch
from jaxtyping import Float, Float64
from torch import Tensor

# Eigenvalues of a Gram matrix in float64 below this share of the largest are what is left of zero.
NULL = 1e-15
# Columns whose distance from the span of those before them is a smaller share of their length are dependent on these.
DEPENDENT = 1e-6
# So many entries of a batch are widened to float64 at a time.
_WIDENED = 1 << 26


def gram(x: Float[Tensor, "*batch n k"]) -> Float64[Tensor, "*batch k k"]:
    """`x.T x`, multiplied and summed in float64, where x is.

    Example:
        >>> gram(torch.tensor([[3.0, 0.0], [4.0, 1.0]])).tolist()
        [[25.0, 4.0], [4.0, 1.0]]
    """
    if x.dim() > 2 and x.numel() > _WIDENED:
        step = max(1, _WIDENED // x[0].numel())
        return torch.cat([_gram(part) for part in x.split(step)])
    return _gram(x)


def _gram(x: Tensor) -> Tensor:
    exact = x.double()
    return exact.mT @ exact


def roots(grams: Float64[Tensor, "count k k"]) -> Float64[Tensor, "count k k"]:
    """`r` with `r.T r` a Gram matrix, for each of several; on the CPU.

    Its Cholesky factor, from columns brought to one length, so that small ones are as exact as large ones. Where
    columns depend on each other the factor has nothing but rounding in their place, and the root is that of the
    eigenvalues above rounding: equal and opposite changes then have coordinates that cancel.

    Example:
        >>> roots(torch.tensor([[[25.0, 4.0], [4.0, 1.0]]]).double())
        tensor([[[5.0000, 0.8000],
                 [0.0000, 0.6000]]], dtype=torch.float64)
    """
    lengths = grams.diagonal(dim1=1, dim2=2).clamp_min(0).sqrt()
    over = torch.where(lengths > 0, 1 / lengths, 0.0)
    correlations = grams * over[:, None] * over[:, :, None]
    diagonals = correlations.diagonal(dim1=1, dim2=2)
    diagonals.fill_(1.0)
    factors, info = torch.linalg.cholesky_ex(correlations, upper=True)
    dependent = (info > 0) | (factors.diagonal(dim1=1, dim2=2).amin(1) <= DEPENDENT)
    diagonals.copy_((lengths > 0).double())
    for i in dependent.nonzero()[:, 0].tolist():
        values, vectors = torch.linalg.eigh(correlations[i])
        scale = torch.where(values > NULL * values[-1], values, 0.0).sqrt()
        factors[i] = (vectors * scale).T
    return factors * lengths[:, None]
