"""Linear algebra on low-rank matrices, which costs the rank and not the layer.

Shapes: a change is `(out, in)`; `Factors` hold it as `B (out, r) @ A (r, in)`, a `Core` as `U (out, k) @ M (k, l) @
V.T (l, in)` with orthonormal columns in U and V, a `Spectrum` as `U diag(S) V.T`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Float64
from torch import Tensor

# Singular values below this share of the largest are what float32 leaves of zero.
NULL, TINY = 1e-7, 1e-37
# Eigenvalues of a Gram matrix in float64 below this share of the largest are what is left of zero.
GRAM_NULL = 1e-15


class Factors(NamedTuple):
    """A change as a product, `B @ A`.

    Attributes:
        B, A: `(out, r)` and `(r, in)`; r may exceed what the change has for a rank.

    Example:
        >>> change = Factors(torch.ones(3, 1), torch.ones(1, 2))
        >>> change.shape, change.delta(slice(0, 1)).tolist(), change.scaled(0.5).delta()[0, 0].item()
        ((3, 2), [[1.0, 1.0]], 0.5)
    """

    B: Float[Tensor, "out r"]
    A: Float[Tensor, "r in"]

    def delta(self, rows: slice = slice(None)) -> Float[Tensor, "rows in"]:
        """The dense change, or some of its rows."""
        return self.B[rows] @ self.A

    @property
    def shape(self) -> tuple[int, int]:
        """Of the dense change, `(out, in)`."""
        return self.B.shape[0], self.A.shape[1]

    def scaled(self, factor: float) -> Factors:
        """The change times any finite number: in B, a new tensor unless the number is 1; A is shared."""
        return self if factor == 1 else Factors(self.B * factor, self.A)


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

    Example:
        >>> leading = svd(Factors(torch.diag(torch.tensor([4.0, 3.0])), torch.eye(2))).truncated(1)
        >>> [round(float(x), 4) for x in (leading.S, leading.kept, leading.energy)]
        [4.0, 16.0, 25.0]
    """

    U: Float[Tensor, "out k"]
    S: Float64[Tensor, " k"]
    V: Float[Tensor, "in k"]
    energy: float

    def truncated(self, rank: int) -> Spectrum:
        """The leading part of this rank, at least 0, all where there is no more; `energy` stays that of the whole."""
        return Spectrum(self.U[:, :rank], self.S[:rank], self.V[:, :rank], self.energy)

    def factors(self) -> Factors:
        """`B = U sqrt(S)`, `A = sqrt(S) V.T`: balanced, so that neither factor leaves the range of float16."""
        root = self.S.sqrt().to(self.U)
        return Factors(self.U * root, (self.V * root).T.contiguous())

    @property
    def kept(self) -> float:
        """Squared Frobenius norm of the part that is held."""
        return float((self.S**2).sum())


def stack(changes: Sequence[Factors]) -> Factors:
    """The exact sum of changes of one shape, as factors of the summed rank: `[B_1 | B_2 | ...] [A_1; A_2; ...]`.

    Args:
        changes: at least one, `(out, in)` each, with ranks of their own.

    Example:
        >>> whole = stack([Factors(torch.ones(2, 1), torch.ones(1, 3)), Factors(torch.ones(2, 4), torch.ones(4, 3))])
        >>> whole.B.shape[1], whole.delta()[0, 0].item()
        (5, 5.0)
    """
    return Factors(torch.cat([c.B for c in changes], dim=1), torch.cat([c.A for c in changes], dim=0))


class Stacked(NamedTuple):
    """Changes side by side, and roots of the Gram matrices of their stacked factors.

    With `B = Q_b r_b` and `A.T = Q_a r_a`, what happens in the span of the changes is arithmetic on the roots. The
    large orthonormal factors, which cost more than all the rest, are never formed: a direction of the span is a
    combination of the columns of B or of the rows of A.

    Attributes:
        B, A: `(out, k)` and `(k, in)`, stacked.
        r_b, r_a: `(at most k, k)`, in float64, on the CPU: `r_b.T r_b = B.T B` and `r_a.T r_a = A A.T`.
        ranks: of the changes, which sum to k.
    """

    B: Float[Tensor, "out k"]
    A: Float[Tensor, "k in"]
    r_b: Float64[Tensor, "kb k"]
    r_a: Float64[Tensor, "ka k"]
    ranks: tuple[int, ...]

    def cores(self) -> list[Tensor]:
        """`Q_b.T delta_i Q_a` for each change."""
        pairs = zip(self.r_b.split(self.ranks, dim=1), self.r_a.split(self.ranks, dim=1))
        return [b @ a.T for b, a in pairs]


def stacked_qr(changes: Sequence[Factors]) -> Stacked:
    """The roots are the triangles of QR decompositions in float32: right to 1e-7 of the largest change."""
    stacked = stack(changes)
    # Small matrices in float64 are work for the CPU, wherever the factors are.
    r_b = torch.linalg.qr(stacked.B, mode="r").R.cpu().double()
    r_a = torch.linalg.qr(stacked.A.T, mode="r").R.cpu().double()
    return Stacked(*stacked, r_b, r_a, tuple(c.A.shape[0] for c in changes))


def stacked_gram(changes: Sequence[Factors]) -> Stacked:
    """The roots are those of Gram matrices in float64: equal and opposite changes have coordinates that cancel.

    (In float32 they differ by rounding of the size of the largest, and small ones have signs of their own.) The rows of
    a root are orthogonal, the longest first: it is `diag(s) V.T` of the decomposition of B, or of A.T.
    """
    stacked = stack(changes)
    return Stacked(*stacked, _gram_root(stacked.B), _gram_root(stacked.A.T), tuple(c.A.shape[0] for c in changes))


def _gram_root(x: Float[Tensor, "n k"]) -> Float64[Tensor, "l k"]:
    exact = x.double()
    values, vectors = torch.linalg.eigh((exact.T @ exact).cpu())
    values, vectors = values.flip(0), vectors.flip(1)
    count = max(1, int((values > GRAM_NULL * values[0]).sum()))
    return (vectors[:, :count] * values[:count].clamp_min(0).sqrt()).T


class DecomposedSum(NamedTuple):
    """A sum of changes, decomposed, and how much of each is in it.

    Attributes:
        spectrum: of the sum.
        projections: `<spectrum, delta_i>` for each change.
        norms: `||delta_i||^2`.
    """

    spectrum: Spectrum
    projections: list[float]
    norms: list[float]


def svd_of_sum(changes: Sequence[Factors], count: Callable[[Tensor], int] = len) -> DecomposedSum:
    """The exact singular value decomposition of a sum of changes, through the core of their stacked factors.

    It costs QR decompositions of `(out, k)` and `(in, k)` and an SVD of `(k, k)`, k being the sum of the ranks.

    Args:
        changes: what is added; at least one, `(out, in)` each.
        count: how many singular values to return, from 0 to as many as there are, asked once with all of them
            `(at most min(out, in, k),)`, in float64 and the largest first; default all.

    Example:
        >>> x, y = Factors(torch.eye(2, 1), torch.eye(1, 3)), Factors(torch.eye(2), 2 * torch.eye(2, 3))
        >>> found = svd_of_sum([x, y], lambda s: 1)
        >>> [round(float(value), 4) for value in (found.spectrum.S, found.spectrum.energy, *found.projections)]
        [3.0, 13.0, 3.0, 6.0]
    """
    whole = stacked_qr(changes)
    left, s, right = torch.linalg.svd(whole.r_b @ whole.r_a.T, full_matrices=False)
    energy, number = float((s**2).sum()), count(s)
    left, s, right = left[:, :number], s[:number], right[:number].T
    # U = B A v / s and V = (u B A).T / s; where a value is only rounding, so would be its vectors.
    over = torch.where(s > (NULL * s.max()).clamp_min(TINY), 1 / s, 0.0) if number else s
    u = whole.B @ (whole.r_a.T @ right * over).to(whole.B)
    v = ((whole.r_b.T @ left * over).to(whole.A).T @ whole.A).T
    cores = whole.cores()
    return DecomposedSum(
        Spectrum(u, s, v, energy),
        [float((left.T @ m @ right).diagonal() @ s) for m in cores],
        [float(m.square().sum()) for m in cores],
    )


def svd(change: Factors | Core, count: Callable[[Tensor], int] = len) -> Spectrum:
    """The exact singular value decomposition of a product, through its small core.

    Args:
        change: `(out, in)`.
        count: how many of the singular values that it is given to return, as in `svd_of_sum`; default all.

    Example:
        >>> spectrum = svd(Factors(torch.ones(2, 1), torch.ones(1, 2)))
        >>> round(float(spectrum.S), 4), spectrum.factors().delta().round(decimals=4).tolist()
        (2.0, [[1.0, 1.0], [1.0, 1.0]])
    """
    if isinstance(change, Factors):
        return svd_of_sum([change], count).spectrum
    left, s, right = torch.linalg.svd(change.M.cpu(), full_matrices=False)
    energy, number = float((s**2).sum()), count(s)
    left, s, right = left[:, :number], s[:number], right[:number].T
    return Spectrum(change.U @ left.to(change.U), s, change.V @ right.to(change.V), energy)


def energy_beyond(change: Factors, rank: int) -> float:
    """Squared Frobenius norm of what the best approximation of a rank leaves out, in float64.

    Gram matrices tell it, at a fraction of the cost of a decomposition: no singular vector is formed.

    Example:
        >>> round(energy_beyond(Factors(torch.diag(torch.tensor([4.0, 3.0])), torch.eye(2)), 1), 6)
        9.0
    """
    root, rows = _gram_root(change.B), change.A.double()
    values = torch.linalg.eigvalsh(root @ (rows @ rows.T).cpu() @ root.T)  # in ascending order
    return float(values[: max(0, len(values) - rank)].clamp_min(0).sum())


def inner(x: Factors, y: Factors) -> float:
    """Frobenius inner product `<x, y>` of two changes of one shape, from the factors, in float64.

    It is `sum((x.B.T y.B) * (x.A y.A.T))`; the ranks may differ.

    Example:
        >>> inner(Factors(torch.ones(2, 1), torch.ones(1, 3)), Factors(-torch.ones(2, 4), torch.ones(4, 3)))
        -24.0
    """
    gram_b = x.B.double().T @ y.B.double()
    gram_a = x.A.double() @ y.A.double().T
    return float((gram_b * gram_a).sum())


def inner_products(x: Factors, others: Sequence[Factors]) -> list[float]:
    """Frobenius inner products of one change with several, to float32 precision: `inner` at a fraction of its cost."""
    stacked = stack(others)
    ranks = [c.A.shape[0] for c in others]
    columns, rows = _gram(x.B, stacked.B), _gram(x.A.T, stacked.A.T)
    return [float((b * a).sum()) for b, a in zip(columns.split(ranks, dim=1), rows.split(ranks, dim=1))]


def _gram(x: Tensor, y: Tensor) -> Tensor:
    """`x.T @ y`, summed in float64 over panels."""
    parts = [(a.T @ b).double() for a, b in zip(x.split(1024), y.split(1024))]
    return torch.stack(parts).sum(dim=0).cpu()
