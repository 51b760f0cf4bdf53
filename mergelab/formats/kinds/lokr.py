"""LoKr: a Kronecker product, each of its factors whole or of low rank (LyCORIS; PEFT has it with the same tensors)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from mergelab.formats.kinds.kind import Kind, ModuleTensors, Target, leaves, scaling_of, selected
from mergelab.layer import DerivedLayer, full_rank
from mergelab.linalg.lowrank import Factors, Spectrum, identity_factored

_ROLES = ("kr1", "kr1_a", "kr1_b", "kr2", "kr2_a", "kr2_b", "kr_t2")
_LEAVES = ("w1", "w1_a", "w1_b", "w2", "w2_a", "w2_b", "t2")


class _Side(NamedTuple):
    """One factor of the Kronecker product: whole, or `left @ right`.

    Attributes:
        left: `(out, r)`, or the whole matrix, `(out, in * kh * kw)`.
        right: `(r, in * kh * kw)`; None where left is whole.
        kernel: kh and kw, () where it is a matrix.
    """

    left: Tensor
    right: Tensor | None
    kernel: tuple[int, ...] = ()

    @property
    def shape(self) -> tuple[int, int]:
        return self.left.shape[0], (self.left if self.right is None else self.right).shape[1]

    @property
    def rank(self) -> int:
        return min(self.shape) if self.right is None else self.left.shape[1]

    def factors(self) -> Factors:
        """In float32."""
        left = self.left.float()
        return identity_factored(left) if self.right is None else Factors(left, self.right.float())

    def whole(self) -> Tensor:
        return self.left.float() if self.right is None else self.left.float() @ self.right.float()


def _to_layer(module: ModuleTensors, scaling: float | None, target: Target) -> DerivedLayer:
    """`scaling * kron(w1, w2)`; where both are whole alpha has no meaning, and the scaling is 1 (LyCORIS)."""
    first, second = _sides(module)
    shape = target.shape or _joint(first, second)
    inner = partial(_factors, first, second)
    scaling = scaling_of(module, _dim(module), scaling)
    return DerivedLayer("LoKr", shape, _rank(first, second), inner, scaling, svd=partial(_svd, first, second))


def _sides(module: ModuleTensors) -> tuple[_Side, _Side]:
    tensors = module.tensors
    pairs = (("kr1", "kr1_a", "kr1_b"), ("kr2", "kr2_a", "kr2_b"))
    one_each = all((whole in tensors) != (a in tensors or b in tensors) for whole, a, b in pairs)
    both = all((a in tensors) == (b in tensors) for _, a, b in pairs)
    module.check(one_each and both, "lokr_w1 or lokr_w1_a and lokr_w1_b, and so for lokr_w2")
    first, second = (_side(module, *pair, core="kr_t2" if pair is pairs[1] else "") for pair in pairs)
    module.check(min(*first.shape, *second.shape) > 0, "sizes of at least 1")
    return first, second


def _side(module: ModuleTensors, whole: str, a: str, b: str, core: str) -> _Side:
    tensors = module.tensors
    if whole in tensors:
        module.check(tensors[whole].dim() in (2, 4), "two dimensions, or four")
        return _Side(module.matrix(whole), None, tuple(tensors[whole].shape[2:]))
    left, right = module.matrix(a), module.matrix(b)
    if core in tensors:  # sum_ij core[i, j, kh, kw] a[i, out] b[j, in]
        middle = tensors[core].float()
        module.check(
            middle.dim() == 4 and middle.shape[:2] == (left.shape[0], right.shape[0]), "lokr_t2 (dim, dim, kh, kw)"
        )
        return _Side(
            left.T.contiguous(), torch.einsum("ijhw,jn->inhw", middle, right).flatten(1), tuple(middle.shape[2:])
        )
    module.check(left.shape[1] == right.shape[0], "(out, rank) and (rank, in)")
    return _Side(left, right)


def _joint(first: _Side, second: _Side) -> tuple[int, ...]:
    rows, columns = (x * y for x, y in zip(first.shape, second.shape))
    taps = 1
    for size in second.kernel:
        taps *= size
    return (rows, columns // taps, *second.kernel)


def _rank(first: _Side, second: _Side) -> int:
    return min(first.rank * second.rank, full_rank(_joint(first, second)))


def _factors(first: _Side, second: _Side, rows: Sequence[slice]) -> Factors:
    """`kron(B1 A1, B2 A2) = kron(B1, B2) kron(A1, A2)`; of a change of full rank the change itself."""
    if first.rank * second.rank >= full_rank(_joint(first, second)):
        return identity_factored(selected(_kron(first.whole(), second.whole()), rows))
    (b1, a1), (b2, a2) = first.factors(), second.factors()
    return Factors(selected(_kron(b1, b2), rows), _kron(a1, a2))


def _kron(x: Tensor, y: Tensor) -> Tensor:
    """Of two matrices; torch.kron (2.14) raises for some that were transposed."""
    return (x[:, None, :, None] * y[:, None, :]).reshape(len(x) * len(y), -1)


def _svd(first: _Side, second: _Side, count: Callable[[Tensor], int]) -> Spectrum:
    """Singular values are the products of those of the two sides, and vectors the Kronecker products of theirs."""
    (u1, s1, v1), (u2, s2, v2) = (
        torch.linalg.svd(side.whole().double(), full_matrices=False) for side in (first, second)
    )
    values, order = torch.outer(s1, s2).flatten().sort(descending=True, stable=True)
    one, other = (order[: count(values)] // len(s2), order[: count(values)] % len(s2))
    left = torch.einsum("ik,jk->ijk", u1[:, one], u2[:, other]).flatten(0, 1)
    right = torch.einsum("ki,kj->ijk", v1[one], v2[other]).flatten(0, 1)
    return Spectrum(left.float(), values[: len(one)], right.float(), values.square().sum())


def _shape(module: ModuleTensors) -> tuple[int, ...]:
    return _joint(*_sides(module))


def _dim(module: ModuleTensors) -> int:
    """That of a factor of low rank, the second's first; with a core LyCORIS has it in the rows."""
    tensors = module.tensors
    role = "kr2_a" if "kr2_a" in tensors else "kr1_a"
    if role not in tensors or tensors[role].dim() < 2:
        return 0
    return tensors[role].shape[0 if role == "kr2_a" and "kr_t2" in tensors else 1]


LOKR = Kind(
    name="LoKr",
    leaves=leaves(*((rf"\.lokr_{leaf}(\.[^.]+)?", role) for leaf, role in zip(_LEAVES, _ROLES))),
    marks=frozenset(_ROLES),
    to_layer=_to_layer,
    shape=_shape,
    dim=_dim,
)
