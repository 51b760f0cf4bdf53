"""How far the change that a file holds is from what was to be saved, for the rounding of its dtype."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from mergelab.formats.balancing import Pair, pairs_of
from mergelab.linalg.workspace import each_layer

# Columns of two factors that are compared at a time.
_PANEL = 1024


def cast_error(exact: Mapping[str, Tensor], cast: Mapping[str, Tensor]) -> float:
    """The relative error of a cast, `||saved - exact|| / ||exact||` over all layers, from the factors.

    Args:
        exact: the tensors of a file before the cast.
        cast: the same after it; factors may have been balanced.

    Example:
        >>> pair = {"x.lora_A.weight": torch.full((1, 4), 1.0), "x.lora_B.weight": torch.full((4, 1), 1.001)}
        >>> round(cast_error(pair, {key: tensor.half() for key, tensor in pair.items()}), 6)
        2.3e-05
    """
    pairs, saved = ({pair.down_key: pair for pair in pairs_of(tensors)} for tensors in (exact, cast))

    def squares(key: str) -> tuple[float, float]:
        pair, after = pairs[key], saved[key]
        return _squares(pair, _scaling(pair, exact), after, _scaling(after, cast))

    found = each_layer(squares, pairs).values()
    lost, whole = (sum(values) for values in zip(*found)) if found else (0.0, 0.0)
    return math.sqrt(max(0.0, lost) / whole) if whole > 0 else 0.0


def _squares(x: Pair, x_scaling: float, y: Pair, y_scaling: float) -> tuple[float, float]:
    """`||x - y||^2`, as that of `(x.B - y.B) x.A + y.B (x.A - y.A)`, in which nothing cancels; and `||x||^2`."""
    b = _grams(x.up.flatten(1).T, x_scaling, y.up.flatten(1).T, y_scaling)
    a = _grams(x.rows, 1.0, y.rows, 1.0)
    lost = b.lost * a.x + 2 * b.lost_y * a.lost_x.T + b.y * a.lost
    return float(lost.sum()), float((b.x * a.x).sum())


class _Grams(NamedTuple):
    """Inner products of the rows of x, of y, of `lost = x - y`, and of the last with the others; in float64."""

    x: Tensor
    y: Tensor
    lost: Tensor
    lost_x: Tensor
    lost_y: Tensor


def _grams(x: Tensor, x_scaling: float, y: Tensor, y_scaling: float) -> _Grams:
    """Of `(count, length)` times their scalings, over panels of columns that fit the cache."""
    sums = _Grams(*(x.new_zeros(len(x), len(x), dtype=torch.float64) for _ in _Grams._fields))
    for before, after in zip(x.split(_PANEL, dim=1), y.split(_PANEL, dim=1)):
        p, q = _times(before.double(), x_scaling), _times(after.double(), y_scaling)
        lost = p - q
        for total, (left, right) in zip(sums, ((p, p), (q, q), (lost, lost), (lost, p), (lost, q))):
            total.addmm_(left, right.T)
    return sums


def _times(x: Tensor, scaling: float) -> Tensor:
    return x if scaling == 1.0 else x * scaling


def _scaling(pair: Pair, tensors: Mapping[str, Tensor]) -> float:
    alpha = tensors.get(f"{pair.layer}.alpha")
    return 1.0 if alpha is None else float(alpha) / len(pair.down)
