"""OFT as PEFT has it: rotations of the inputs of a weight."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from mergelab.checks import is_number, short_repr
from mergelab.errors import LayerError
from mergelab.formats.kinds.kind import Kind, ModuleTensors, Target, dense_layer, leaves
from mergelab.formats.kinds.oft import rotations_of, turned
from mergelab.layer import DerivedLayer

_MOST_TERMS = 100


def _to_layer(module: ModuleTensors, scaling: float | None, target: Target) -> DerivedLayer:
    """`W R^T - W`, W as a matrix; its config says how the rotations follow from their angles.

    It is what PEFT's `merge` does. Its own `forward` does the same but for convolutions of more than one tap, where it
    adds what patches have in common twice.
    """
    angles, config = module.tensors["peft_oft"], target.config
    if str(config.get("peft_type")).upper() != "OFT":
        raise LayerError(
            f"{module.keys['peft_oft']!r} is of an OFT of PEFT, whose config says how its rotations are computed; "
            "load its folder, with adapter_config.json"
        )
    inputs = math.prod(target.shape[1:])
    size = (1 + math.isqrt(1 + 8 * angles.shape[-1])) // 2 if angles.dim() == 2 and angles.numel() else 0
    count = inputs // size if config.get("block_share") and size else angles.shape[0] if size else 0
    whole = size * (size - 1) == 2 * (angles.shape[-1] if size else -1)
    module.check(whole and count * size == inputs, f"the upper triangles of square blocks for {inputs} inputs")
    terms = config.get("num_cayley_neumann_terms", 5) if config.get("use_cayley_neumann", True) else None
    least = config.get("eps", 6e-5) if config.get("coft") else None
    if terms is not None and not (type(terms) is int and 0 < terms <= _MOST_TERMS):
        raise LayerError(f"num_cayley_neumann_terms is {short_repr(terms)}, expected 1 to {_MOST_TERMS}")
    if least is not None and not is_number(least):
        raise LayerError(f"eps is {short_repr(least)}, expected a finite number")
    assert target.weight is not None
    made = partial(_rotations, angles, size, terms, least)
    return dense_layer("OFT", target.shape, partial(_difference, target.weight, made, count))


def _difference(read: Callable[[], Tensor], made: Callable[[], Tensor], count: int) -> Tensor:
    weight, rotations = read().float().flatten(1), made()
    return turned(rotations.expand(count, -1, -1), weight.T).T - weight


def _rotations(angles: Tensor, size: int, terms: int | None, least: float | None) -> Tensor:
    """Cayley's transform of antisymmetric matrices, exact or by a series of so many terms, `(count, size, size)`.

    `least` bounds the norm of the matrices (coft).
    """
    skew = torch.zeros(len(angles), size, size)
    rows, columns = torch.triu_indices(size, size, 1)
    skew[:, rows, columns] = angles.float()
    skew = skew - skew.mT
    if least is not None:
        bound = least / math.sqrt(len(angles))
        norms = torch.linalg.vector_norm(skew, dim=(1, 2), keepdim=True)
        skew = torch.where(norms <= bound, skew, skew * (bound / norms))
    if terms is None:
        return rotations_of(-0.5 * skew)
    # 1 + 2 q + 2 q^2 + ... + q^n, as PEFT ends the series, which is for the inverse of the rotation above.
    power = torch.eye(size).expand_as(skew)
    total, last = power.clone(), 0 if terms == 1 else 1 if terms == 2 else max(3, terms - 1)
    for exponent in range(1, last + 1):
        power = power @ skew
        total = total + power * (1.0 if exponent == last > 1 else 2.0)
    return total


PEFT_OFT = Kind(
    name="OFT of PEFT",
    leaves=leaves((r"\.oft_R(\.[^.]+)?\.weight", "peft_oft")),
    marks=frozenset({"peft_oft"}),
    to_layer=_to_layer,
    needs_base=True,
)
