"""Linear algebra on low-rank matrices, which costs the rank and not the layer.

Shapes: a change is `(out, in)`; `Factors` hold it as `B (out, r) @ A (r, in)`, a `Core` as `U (out, k) @ M (k, l) @
V.T (l, in)` with orthonormal columns in U and V, a `Spectrum` as `U diag(S) V.T`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Float64
from torch import Tensor


class exact_arithmetic(contextlib.ContextDecorator):
    """Neither gradients nor the half precision of an autocast around the caller reach the arithmetic inside."""

    def _recreate_cm(self) -> exact_arithmetic:
        return type(self)()  # a decorated function may run in several threads at once

    def __enter__(self) -> None:
        self._stack = contextlib.ExitStack()
        self._stack.enter_context(torch.no_grad())
        for device in ("cpu", "cuda"):
            if torch.is_autocast_enabled(device):
                self._stack.enter_context(torch.autocast(device, enabled=False))

    def __exit__(self, *error: object) -> None:
        self._stack.close()


class Factors(NamedTuple):
    """A change as a product, `B @ A`."""

    B: Float[Tensor, "out r"]
    A: Float[Tensor, "r in"]

    def delta(self, rows: slice = slice(None)) -> Float[Tensor, "rows in"]:
        """The dense change, or some of its rows."""
        return self.B[rows] @ self.A

    @property
    def shape(self) -> tuple[int, int]:
        return self.B.shape[0], self.A.shape[1]

    def scaled(self, factor: float) -> Factors:
        return Factors(self.B * factor, self.A)


class Core(NamedTuple):
    """A change as `U @ M @ V.T`, with orthonormal columns in U and in V; M is in float64."""

    U: Float[Tensor, "out k"]
    M: Float64[Tensor, "k l"]
    V: Float[Tensor, "in l"]


class Spectrum(NamedTuple):
    """The leading part of a singular value decomposition.

    Attributes:
        U, S, V: left vectors `(out, k)`, singular values `(k,)` in float64, right vectors `(in, k)`.
        energy: squared Frobenius norm of the whole matrix, the part that S leaves out included.
    """

    U: Float[Tensor, "out k"]
    S: Float64[Tensor, " k"]
    V: Float[Tensor, "in k"]
    energy: float

    def truncated(self, rank: int) -> Spectrum:
        return Spectrum(self.U[:, :rank], self.S[:rank], self.V[:, :rank], self.energy)

    def factors(self) -> Factors:
        """`B = U sqrt(S)`, `A = sqrt(S) V.T`: balanced, so that neither factor leaves the range of float16."""
        root = self.S.sqrt().to(self.U.dtype)
        return Factors(self.U * root, (self.V * root).T.contiguous())

    @property
    def kept(self) -> float:
        """Squared Frobenius norm of the part that is held."""
        return float((self.S**2).sum())


def stack(changes: Sequence[Factors]) -> Factors:
    """The exact sum of changes, as factors of the summed rank."""
    return Factors(torch.cat([c.B for c in changes], dim=1), torch.cat([c.A for c in changes], dim=0))


def core(factors: Factors) -> Core:
    """QR of both factors: `B A = Q_B (R_B R_A.T) Q_A.T`."""
    q_b, r_b = torch.linalg.qr(factors.B)
    q_a, r_a = torch.linalg.qr(factors.A.T)
    return Core(q_b, r_b.double() @ r_a.double().T, q_a)


def joint_cores(changes: Sequence[Factors]) -> tuple[Tensor, list[Tensor], Tensor]:
    """Orthonormal `U (out, k)` and `V (in, l)` that span all column and row spaces, and the cores `U.T delta_i V`.

    `delta_i = U @ cores[i] @ V.T` to float precision: nothing of any change is lost.
    """
    ranks = [c.A.shape[0] for c in changes]
    stacked = stack(changes)
    q_b, r_b = torch.linalg.qr(stacked.B)
    q_a, r_a = torch.linalg.qr(stacked.A.T)
    parts = zip(torch.split(r_b.double(), ranks, dim=1), torch.split(r_a.double(), ranks, dim=1))
    return q_b, [b @ a.T for b, a in parts], q_a


def svd(factors: Factors | Core) -> Spectrum:
    """The exact singular value decomposition of a product of factors, through its small core."""
    u, m, v = core(factors) if isinstance(factors, Factors) else factors
    left, s, right = torch.linalg.svd(m, full_matrices=False)
    return Spectrum(u @ left.to(u.dtype), s, v @ right.T.to(v.dtype), float((s**2).sum()))


def inner(x: Factors, y: Factors) -> float:
    """Frobenius inner product `<x, y>` from the factors: `sum((x.B.T y.B) * (x.A y.A.T))`, in float64."""
    gram_b = x.B.double().T @ y.B.double()
    gram_a = x.A.double() @ y.A.double().T
    return float((gram_b * gram_a).sum())
