"""Singular vectors of changes side by side: as combinations of stacked factors, and in coordinates of their cores."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mergelab.linalg import host
from mergelab.linalg.span import Span

# Singular directions below this share of the largest are rounding, not part of any change.
NULL_TOLERANCE = 4e-6

Found = tuple[Tensor, Tensor]
"""Eigenvalues `(sides, ..., k)`, the largest first, on the CPU, and eigenvectors `(sides, ..., k, k)`; or vectors of
a space, as combinations and in coordinates."""


def weighted_cores(span: Span, weights: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """The cores of the weighted changes, and the weights, `(..., 1, 1)` each, beside them."""
    scales = [w[..., None, None] for w in host.like(weights, span.B, torch.float64).unbind(-1)]
    return [w * m for w, m in zip(scales, span.cores())], scales


def squares_of(cores: Sequence[Tensor]) -> Tensor:
    """`sum_i m_i m_i.T`."""
    return torch.stack([m @ m.mT for m in cores]).sum(0)


def _size(squares: Tensor) -> int | None:
    """How many directions there are; None where that differs among the layers of a batch."""
    counts = (squares > NULL_TOLERANCE**2 * squares[..., :1]).sum(-1).clamp_min(1).reshape(-1).tolist()
    return counts[0] if len(set(counts)) == 1 else None


def vectors_of_changes(
    found: Found, side: int, cores: Sequence[Tensor], scales: Sequence[Tensor], roots: Sequence[Tensor], marks: Tensor
) -> Found | None:
    """Left singular vectors of the changes side by side: as combinations of the columns, and in the cores' coordinates.

    With `l` in the latter, `sum_i m_i m_i.T l = s^2 l` and `m_i = w_i r_i t_i.T`, so that the vector is the columns
    times the stack of `w_i t_i.T m_i.T l / s^2`.
    """
    count = _size(found[0][side])
    if count is None:
        return None
    squares, left = host.like(found[0][side][..., :count], marks), found[1][side][..., :count]
    parts = [w * (t.mT @ (m.mT @ left)) for m, w, t in zip(cores, scales, roots)]
    return _turned(torch.cat(parts, -2) / squares.clamp_min(1e-300)[..., None, :], left, marks)


def vectors_of_factors(found: Found, side: int, scaled: Tensor, wide: Tensor, marks: Tensor) -> Found | None:
    """Left singular vectors of the columns times their scales, as combinations of the columns, and their coordinates.

    With `r D = x s y.T` for the root r of the columns the vectors are `Q x`, and `Q = columns r^-1`, so that
    `Q x = columns D y / s`.
    """
    count = _size(found[0][side])
    if count is None:
        return None
    y = found[1][side][..., :count]
    y = y * host.like(found[0][side][..., :count].clamp_min(1e-300).rsqrt(), marks)[..., None, :]
    return _turned(wide.mT * y, scaled @ y, marks)


def _turned(vectors: Tensor, coordinates: Tensor, marks: Tensor) -> Found:
    """Each vector in one fixed direction: a rule may see which way it points."""
    signs = torch.where(marks[..., None, :] @ vectors < 0, -1.0, 1.0).to(vectors)
    return vectors * signs, coordinates * signs
