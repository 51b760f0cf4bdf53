"""GLoRA: a LoRA beside a low-rank map of the weight itself (LyCORIS)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from mergelab.formats.kinds.kind import Kind, ModuleTensors, Target, dense_layer, leaves, scaling_of
from mergelab.layer import DerivedLayer

_ROLES = ("a1", "a2", "b1", "b2")


def _to_layer(module: ModuleTensors, scaling: float | None, target: Target) -> DerivedLayer:
    """`scaling * (b1 @ b2 + W a1 @ a2)`: a1 `(in, rank)`, a2 `(rank, in)`, over the inputs of W at every tap."""
    module.check(all(role in module.tensors for role in _ROLES), "a1, a2, b1 and b2")
    shape, rank = target.shape, _dim(module)
    a1, a2, b1, b2 = (module.matrix(role) for role in _ROLES)
    inputs = shape[1]
    fits = a1.shape == (inputs, rank) and a2.shape == (rank, inputs) and b1.shape == (shape[0], rank)
    taps = torch.Size(shape).numel() // shape[0]
    module.check(fits and b2.shape == (rank, taps), f"those of a weight of shape {shape}")
    assert target.weight is not None
    changed = partial(_difference, target.weight, a1, a2, b1 @ b2)
    return dense_layer("GLoRA", shape, changed, scaling_of(module, rank, scaling))


def _difference(read: Callable[[], Tensor], a1: Tensor, a2: Tensor, own: Tensor) -> Tensor:
    weight = read().float()
    mapped = torch.einsum("oi...,ir,rj->oj...", weight, a1, a2)
    return own.reshape(weight.shape) + mapped


def _dim(module: ModuleTensors) -> int:
    a2 = module.tensors.get("a2")
    return a2.shape[0] if a2 is not None and a2.dim() else 0


def _shape(module: ModuleTensors) -> tuple[int, ...]:
    b1, b2 = module.tensors.get("b1"), module.tensors.get("b2")
    return (b1.shape[0], *b2.shape[1:]) if b1 is not None and b2 is not None and b1.dim() and b2.dim() > 1 else ()


GLORA = Kind(
    name="GLoRA",
    leaves=leaves(*((rf"\.{role}\.weight", role) for role in _ROLES)),
    marks=frozenset(_ROLES),
    to_layer=_to_layer,
    shape=_shape,
    dim=_dim,
    needs_base=True,
)
