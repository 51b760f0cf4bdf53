"""How far the change that a file holds is from what was to be saved, for the rounding of its dtype."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from mergelab.formats.balancing import Pair, pairs_of
from mergelab.linalg.lowrank import Factors, inner
from mergelab.linalg.workspace import each_layer


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
        change = _factors(pair, _scaling(pair, exact))
        if after.down is pair.down and after.up is pair.up:
            return 0.0, float(inner(change, change))
        return _difference(change, _factors(after, _scaling(after, cast))), float(inner(change, change))

    found = each_layer(squares, pairs).values()
    lost, whole = (sum(values) for values in zip(*found)) if found else (0.0, 0.0)
    return math.sqrt(max(0.0, lost) / whole) if whole > 0 else 0.0


def _difference(x: Factors, y: Factors) -> float:
    """`||x - y||^2`, as `(x.B - y.B) x.A + y.B (x.A - y.A)`, in which nothing cancels."""
    rows, columns = x.B - y.B, x.A - y.A
    change = Factors(torch.cat([rows, y.B], dim=1), torch.cat([x.A, columns]))
    return float(inner(change, change))


def _factors(pair: Pair, scaling: float) -> Factors:
    """In float64."""
    return Factors(pair.up.flatten(1).double() * scaling, pair.rows.double())


def _scaling(pair: Pair, tensors: Mapping[str, Tensor]) -> float:
    alpha = tensors.get(f"{pair.layer}.alpha")
    return 1.0 if alpha is None else float(alpha) / len(pair.down)
