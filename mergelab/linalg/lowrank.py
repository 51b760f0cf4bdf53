"""Low-rank matrices, whose arithmetic costs the rank and not the layer.

Shapes: a change is `(out, in)`; `Factors` hold it as `B (out, r) @ A (r, in)`, a `Core` as `U (out, k) @ M (k, l) @
V.T (l, in)` with orthonormal columns in U and V, a `Spectrum` as `U diag(S) V.T`. All take leading batch dimensions:
layers of one shape are one computation.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from mergelab.linalg import host


class Factors(NamedTuple):
    """A change as a product, `B @ A`.

    Attributes:
        B, A: `(..., out, r)` and `(..., r, in)`; r may exceed what the change has for a rank.

    Example:
        >>> change = Factors(torch.ones(3, 1), torch.ones(1, 2))
        >>> change.shape, change.delta(slice(0, 1)).tolist(), change.scaled(0.5).delta()[0, 0].item()
        ((3, 2), [[1.0, 1.0]], 0.5)
    """

    B: Float[Tensor, "*batch out r"]
    A: Float[Tensor, "*batch r in"]

    def delta(self, rows: slice = slice(None)) -> Float[Tensor, "*batch rows in"]:
        """The dense change, or some of its rows."""
        return self.B[..., rows, :] @ self.A

    @property
    def shape(self) -> tuple[int, int]:
        """Of the dense change, `(out, in)`."""
        return self.B.shape[-2], self.A.shape[-1]

    def scaled(self, factor: float | Tensor) -> Factors:
        """The change times any finite number, or one for each of a batch: in B, new unless it is 1; A is shared."""
        if isinstance(factor, Tensor):
            return (
                self
                if bool((factor == 1).all())
                else Factors(self.B * host.like(factor, self.B)[..., None, None], self.A)
            )
        return self if factor == 1 else Factors(self.B * factor, self.A)


def identity_factored(delta: Float[Tensor, "*batch out in"]) -> Factors:
    """A dense change as factors of its smaller side: itself and the identity.

    Example:
        >>> [tuple(factor.shape) for factor in identity_factored(torch.ones(2, 5))]
        [(2, 2), (2, 5)]
    """
    out, columns = delta.shape[-2:]
    one = torch.eye(min(out, columns), dtype=delta.dtype, device=delta.device).expand(*delta.shape[:-2], -1, -1)
    return Factors(one, delta) if out <= columns else Factors(delta, one)


class Core(NamedTuple):
    """A change as `U @ M @ V.T`, with orthonormal columns in U and in V; M is in float64."""

    U: Float[Tensor, "out k"]
    M: Float64[Tensor, "k l"]
    V: Float[Tensor, "in l"]


class Spectrum(NamedTuple):
    """The leading part of a singular value decomposition.

    Attributes:
        U, S, V: left vectors `(..., out, k)`, singular values `(..., k)` in float64 on the CPU, right vectors
            `(..., in, k)`.
        energy: `(...)`, squared Frobenius norm of the whole matrix, the part that S leaves out included; float64.

    Example:
        >>> energy = torch.tensor(25.0, dtype=torch.float64)
        >>> leading = Spectrum(torch.eye(2), torch.tensor([4.0, 3.0]).double(), torch.eye(2), energy).truncated(1)
        >>> [round(float(x), 4) for x in (leading.S, leading.kept, leading.energy)]
        [4.0, 16.0, 25.0]
    """

    U: Float[Tensor, "*batch out k"]
    S: Float64[Tensor, "*batch k"]
    V: Float[Tensor, "*batch in k"]
    energy: Float64[Tensor, " *batch"]

    def truncated(self, rank: int) -> Spectrum:
        """The leading part of this rank, at least 0, all where there is no more; `energy` stays that of the whole."""
        return Spectrum(self.U[..., :rank], self.S[..., :rank], self.V[..., :rank], self.energy)

    def item(self, i: int) -> Spectrum:
        """One of a batch."""
        return Spectrum(self.U[i], self.S[i], self.V[i], self.energy[i])

    def factors(self) -> Factors:
        """`B = U sqrt(S)`, `A = sqrt(S) V.T`: balanced, so that neither factor leaves the range of float16."""
        scale = host.like(self.S.sqrt(), self.U)[..., None, :]
        return Factors(self.U * scale, (self.V * scale).mT.contiguous())

    @property
    def kept(self) -> Float64[Tensor, " *batch"]:
        """Squared Frobenius norm of the part that is held."""
        return self.S.square().sum(-1)


def stack(changes: Sequence[Factors]) -> Factors:
    """The exact sum of changes of one shape, as factors of the summed rank: `[B_1 | B_2 | ...] [A_1; A_2; ...]`.

    Args:
        changes: at least one, `(..., out, in)` each, with ranks of their own.

    Example:
        >>> whole = stack([Factors(torch.ones(2, 1), torch.ones(1, 3)), Factors(torch.ones(2, 4), torch.ones(4, 3))])
        >>> whole.B.shape[1], whole.delta()[0, 0].item()
        (5, 5.0)
    """
    return Factors(torch.cat([c.B for c in changes], dim=-1), torch.cat([c.A for c in changes], dim=-2))


def inner(x: Factors, y: Factors) -> Float64[Tensor, " *batch"]:
    """Frobenius inner product `<x, y>` of two changes of one shape, from the factors, in float64.

    It is `sum((x.B.T y.B) * (x.A y.A.T))`; the ranks may differ.

    Example:
        >>> float(inner(Factors(torch.ones(2, 1), torch.ones(1, 3)), Factors(-torch.ones(2, 4), torch.ones(4, 3))))
        -24.0
    """
    gram_b = x.B.double().mT @ y.B.double()
    gram_a = x.A.double() @ y.A.double().mT
    return (gram_b * gram_a).sum((-2, -1))
