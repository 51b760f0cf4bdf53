"""LoHa: the entry-wise product of two low-rank changes (LyCORIS; PEFT has it with the same tensors)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from mergelab.formats.kinds.kind import Kind, ModuleTensors, Target, leaves, scaling_of, selected
from mergelab.layer import DerivedLayer
from mergelab.linalg.lowrank import Factors

_HALVES = (("w1_a", "w1_b", "t1"), ("w2_a", "w2_b", "t2"))


def _to_layer(module: ModuleTensors, scaling: float | None, target: Target) -> DerivedLayer:
    """`scaling * (w1_a @ w1_b) * (w2_a @ w2_b)`, whose rank is at most the product of the two ranks.

    With Tucker cores each half is `sum_ij t[i, j, kh, kw] a[i, out] b[j, in]`.
    """
    tensors = module.tensors
    whole = all(role in tensors for half in _HALVES for role in half[:2]) and ("t1" in tensors) == ("t2" in tensors)
    module.check(whole, "hada_w1_a, hada_w1_b, hada_w2_a, hada_w2_b, and with hada_t1 hada_t2")
    halves = [(tensors[a], tensors[b], tensors.get(t)) for a, b, t in _HALVES]
    shapes = [_half_shape(*half) for half in halves]
    module.check(bool(shapes[0]) and shapes[0] == shapes[1], "two products of one shape")
    shape = target.shape or shapes[0]
    rank = (halves[0][0].shape[0] if halves[0][2] is not None else halves[0][0].shape[1]) * (
        halves[1][0].shape[0] if halves[1][2] is not None else halves[1][0].shape[1]
    )
    return DerivedLayer("LoHa", shape, rank, partial(_factors, halves), scaling_of(module, _dim(module), scaling))


def _half_shape(a: Tensor, b: Tensor, core: Tensor | None) -> tuple[int, ...]:
    if a.dim() != 2 or b.dim() != 2:
        return ()
    if core is None:
        return (a.shape[0], b.shape[1]) if a.shape[1] == b.shape[0] else ()
    fits = core.dim() == 4 and core.shape[:2] == (a.shape[0], b.shape[0])
    return (a.shape[1], b.shape[1], *core.shape[2:]) if fits else ()


def _factors(halves: Sequence[tuple[Tensor, Tensor, Tensor | None]], rows: Sequence[slice]) -> Factors:
    """Row-wise products of the left factors, column-wise ones of the right: `(B1 A1) * (B2 A2)` is their product."""
    (b1, a1), (b2, a2) = (_half(*half) for half in halves)
    b1, b2 = selected(b1, rows), selected(b2, rows)
    left = torch.einsum("or,os->ors", b1, b2).flatten(1)
    return Factors(left, torch.einsum("ri,si->rsi", a1, a2).flatten(0, 1))


def _half(a: Tensor, b: Tensor, core: Tensor | None) -> tuple[Tensor, Tensor]:
    if core is None:
        return a.float(), b.float()
    return a.float().T, torch.einsum("ijhw,jn->inhw", core.float(), b.float()).flatten(1)


def _shape(module: ModuleTensors) -> tuple[int, ...]:
    a, b = module.tensors.get("w1_a"), module.tensors.get("w1_b")
    return _half_shape(a, b, module.tensors.get("t1")) if a is not None and b is not None else ()


def _dim(module: ModuleTensors) -> int:
    """LyCORIS writes it as the rows of the second factor, with and without a core."""
    b = module.tensors.get("w1_b")
    return b.shape[0] if b is not None and b.dim() else 0


LOHA = Kind(
    name="LoHa",
    leaves=leaves(*((rf"\.hada_{role}(\.[^.]+)?", role) for half in _HALVES for role in half)),
    marks=frozenset(role for half in _HALVES for role in half),
    to_layer=_to_layer,
    shape=_shape,
    dim=_dim,
)
