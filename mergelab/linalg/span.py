"""Changes of one shape side by side, their Gram matrices, and what these say of all that lies in their span."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import NamedTuple

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from mergelab.linalg import host
from mergelab.linalg.draws import EntryDraws, key_of
from mergelab.linalg.gram import gram, roots
from mergelab.linalg.lowrank import Factors, Spectrum, stack
from mergelab.linalg.workspace import Workspace

# Singular values below this share of the largest are what float32 leaves of zero.
NULL, TINY = 1e-7, 1e-37


@dataclass(frozen=True, eq=False)
class Span:
    """Changes of one shape side by side, and all that can be said of them from their Gram matrices.

    With `B = Q_b r_b` and `A.T = Q_a r_a`, what happens in the span of the changes is arithmetic on the roots. The
    large orthonormal factors, which cost more than all the rest, are never formed: a direction of the span is a
    combination of the columns of B or of the rows of A.

    Attributes:
        B, A: `(..., out, k)` and `(..., k, in)`, stacked.
        ranks: of the changes, which sum to k.
        workspace: threads for the roots of a batch.

    Example:
        >>> x = Factors(torch.eye(4, 2), torch.eye(2, 3))
        >>> span = Span.of([x, x.scaled(-1.0)])
        >>> span.r_b.shape, span.squared_norms.tolist(), float(sum(span.cores()).abs().max()) < 1e-7
        (torch.Size([4, 4]), [2.0, 2.0], True)
    """

    B: Float[Tensor, "*batch out k"]
    A: Float[Tensor, "*batch k in"]
    ranks: tuple[int, ...]
    workspace: Workspace | None = None

    @staticmethod
    def of(changes: Sequence[Factors], workspace: Workspace | None = None) -> Span:
        """Changes side by side."""
        return Span(*stack(changes), tuple(c.A.shape[-2] for c in changes), workspace)

    @property
    def changes(self) -> list[Factors]:
        """Each of them, in the memory of the stack."""
        return [Factors(b, a) for b, a in zip(self.B.split(self.ranks, -1), self.A.split(self.ranks, -2))]

    @cached_property
    def grams(self) -> tuple[Tensor, Tensor]:
        """`B.T B` and `A A.T`, each `(..., k, k)`, in float64."""
        return gram(self.B), gram(self.A.mT)

    @cached_property
    def _roots(self) -> Tensor:
        both = torch.stack(self.grams)
        return host.like(host.each(roots, both, self.workspace), both)

    @property
    def r_b(self) -> Float64[Tensor, "*batch k k"]:
        """`r_b.T r_b = B.T B`."""
        return self._roots[0]

    @property
    def r_a(self) -> Float64[Tensor, "*batch k k"]:
        """`r_a.T r_a = A A.T`."""
        return self._roots[1]

    @cached_property
    def marks(self) -> tuple[Tensor, Tensor]:
        """`u.T B` and `A v`, each `(..., k)`, of two fixed vectors: which way a direction of the span points."""
        u, v = (signature(size, self.B.device) for size in (self.B.shape[-2], self.A.shape[-1]))
        return (u @ self.B).double(), (self.A @ v).double()

    @property
    def squared_norms(self) -> Float64[Tensor, "*batch n"]:
        """`||delta_i||^2` of each change."""
        left, right = self.grams
        product = left * right
        return torch.stack([product[..., s, s].sum((-2, -1)) for s in self.slices], -1)

    @property
    def slices(self) -> list[slice]:
        """Where each change stands in the stack."""
        ends = [sum(self.ranks[: i + 1]) for i in range(len(self.ranks))]
        return [slice(end - rank, end) for end, rank in zip(ends, self.ranks)]

    def cores(self) -> list[Tensor]:
        """`Q_b.T delta_i Q_a` for each change."""
        pairs = zip(self.r_b.split(self.ranks, dim=-1), self.r_a.split(self.ranks, dim=-1))
        return [b @ a.mT for b, a in pairs]

    def __getitem__(self, i: int | None) -> Span:
        """One item of a batch; with None a batch of this one."""
        own = Span(self.B[i], self.A[i], self.ranks, self.workspace)
        for name in ("grams", "marks"):
            if name in self.__dict__:
                own.__dict__[name] = tuple(x[i] for x in self.__dict__[name])
        if "_roots" in self.__dict__:
            own.__dict__["_roots"] = self._roots[:, i]
        return own


@dataclass(frozen=True, eq=False)
class Combination:
    """A change within the span of others, `B M A`; decomposed once, however often it is cut.

    Attributes:
        span: of B and A.
        M: `(..., k, k)` in float64; diag(w) for the sum of the changes times their weights.
    """

    span: Span
    M: Float64[Tensor, "*batch k k"]

    @property
    def shape(self) -> tuple[int, int]:
        """Of the dense change, `(out, in)`."""
        return self.span.B.shape[-2], self.span.A.shape[-1]

    @cached_property
    def core(self) -> tuple[Tensor, Tensor, Tensor]:
        """`x = r_b M r_a.T`; of `x.T x` the eigenvalues, the largest first and on the CPU, and the vectors."""
        x = self.span.r_b @ self.M @ self.span.r_a.mT
        return x, *host.eigh(x.mT @ x, self.span.workspace)

    @cached_property
    def size_of_terms(self) -> Float64[Tensor, " *batch"]:
        """Root of the sum of the squared norms of all `B_c M_cd A_d`: what a change is rounded against; on the CPU."""
        columns, rows = (g.diagonal(dim1=-2, dim2=-1) for g in self.span.grams)
        squares = columns[..., :, None] * self.M.square() * rows[..., None, :]
        return host.to_host(squares.sum((-2, -1)).sqrt())[0]

    def delta(self) -> Tensor:
        """The dense change."""
        return self.span.B @ (host.like(self.M, self.span.B) @ self.span.A)

    def scaled(self, factor: float) -> Combination:
        """The change times a number."""
        return Combination(self.span, self.M * factor)


@lru_cache(maxsize=64)
def signature(size: int, device: torch.device) -> Float[Tensor, " size"]:
    """A fixed vector of random numbers around zero, for projections that tell vectors apart.

    Example:
        >>> bool((signature(5, torch.device("cpu")).abs() <= 0.5).all())
        True
    """
    return EntryDraws(key_of("signature")).uniform(slice(0, 1), size, device)[0] - 0.5


def weighted_sum_of(span: Span, weights: Tensor) -> Combination:
    """The sum of the changes of a span, each times its weight; weights `(..., n)`.

    Example:
        >>> x = Factors(torch.ones(2, 1), torch.ones(1, 3))
        >>> weighted_sum_of(Span.of([x, x]), torch.tensor([2.0, -0.5])).delta()[0].tolist()
        [1.5, 1.5, 1.5]
    """
    return Combination(span, torch.diag_embed(_of_each_rank(span, weights, torch.float64)))


def dense_sum_of(span: Span, weights: Tensor) -> Tensor:
    """The same sum as a dense matrix, `(..., out, in)`, at once: for spans that are no smaller.

    Example:
        >>> x = Factors(torch.ones(2, 1), torch.ones(1, 3))
        >>> dense_sum_of(Span.of([x, x]), torch.tensor([2.0, -0.5]))[0].tolist()
        [1.5, 1.5, 1.5]
    """
    return (span.B * _of_each_rank(span, weights, span.B.dtype)[..., None, :]) @ span.A


def _of_each_rank(span: Span, weights: Tensor, dtype: torch.dtype) -> Tensor:
    """`(..., k)`: for each column of B the weight of its change, where the span is."""
    counts = torch.tensor(span.ranks)
    return host.like(weights.double().repeat_interleave(counts, dim=-1), span.B, dtype)


class Decomposed(NamedTuple):
    """A combination, decomposed: `B left diag(S) right.T A`, from which what is stored is formed in one product.

    Attributes:
        span: of the combination.
        left, right: `(..., k, q)` in float64: coordinates of the singular vectors.
        S: `(..., q)`, the largest first; 0 beyond the number that was asked for of an item. On the CPU.
        energy: `(...)`, squared norm of the whole. On the CPU.
        counts: of values that were asked for, one for each item of the batch.
        projections: `(..., n)`: `<what is kept, delta_i>`.
    """

    span: Span
    left: Tensor
    S: Tensor
    right: Tensor
    energy: Tensor
    counts: tuple[int, ...]
    projections: Tensor

    def factors(self) -> Factors:
        """Balanced: the root of a singular value in each."""
        scale = host.like(self.S.sqrt(), self.left)[..., None, :]
        b, a = (self.left * scale).to(self.span.B), (self.right * scale).mT.to(self.span.A)
        return Factors(self.span.B @ b, a @ self.span.A)

    def spectrum(self) -> Spectrum:
        """With the vectors in full."""
        u, v = self.left.to(self.span.B), self.right.to(self.span.A)
        return Spectrum(self.span.B @ u, self.S, self.span.A.mT @ v, self.energy)


def decompose(change: Combination, count: Callable[[Tensor], int] = len) -> Decomposed:
    """The exact singular value decomposition of a change within a span.

    It costs Gram matrices of `(out, k)` and `(in, k)` and decompositions of `(k, k)`, k being the sum of the ranks.

    Args:
        change: `(..., out, in)`.
        count: how many singular values to return of an item, from 0 to as many as there are, asked once with all
            `(at most min(out, in, k),)` of them, in float64 and the largest first; default all.

    Example:
        >>> x, y = Factors(torch.eye(2, 1), torch.eye(1, 3)), Factors(torch.eye(2), 2 * torch.eye(2, 3))
        >>> found = decompose(weighted_sum_of(Span.of([x, y]), torch.ones(2)), lambda s: 1)
        >>> [round(float(value), 4) for value in (found.S, found.energy, *found.projections)]
        [3.0, 13.0, 3.0, 6.0]
    """
    span, m = change.span, change.M
    core, squares, v = change.core
    squares = squares.clamp_min(0)
    s = squares[..., : min(change.shape)].sqrt()
    counts = tuple(count(own) for own in s.reshape(-1, s.shape[-1]))
    beyond = torch.arange(max(counts)) >= torch.tensor(counts)[:, None]
    s = s[..., : max(counts)].masked_fill(beyond.reshape(*s.shape[:-1], -1), 0.0)
    # What float32 leaves of zero, where a change is little beside its terms or a value beside the largest: no vector
    # can be told there, and one divided by such a value would be noise of any size.
    size = torch.maximum(s[..., :1], change.size_of_terms[..., None]) if s.shape[-1] else s
    s = torch.where(s > (NULL * size).clamp_min(TINY), s, 0.0)
    over = torch.where(s > 0, 1 / s, 0.0)
    over, v = host.like(over, m)[..., None, :], v[..., : s.shape[-1]]
    u = core @ v * over
    inside = ((u.mT @ span.r_b) * (v.mT @ span.r_a) * host.like(s, m)[..., None]).sum(-2)
    return Decomposed(
        span,
        m @ (span.r_a.mT @ v) * over,
        s,
        m.mT @ (span.r_b.mT @ u) * over,
        squares.sum(-1),
        counts,
        torch.stack([part.sum(-1) for part in inside.split(span.ranks, -1)], -1),
    )


def svd(change: Factors, count: Callable[[Tensor], int] = len) -> Spectrum:
    """The exact singular value decomposition of a product, through its small core.

    Args:
        change: `(..., out, in)`.
        count: how many of the singular values that it is given to return, as in `decompose`; default all.

    Example:
        >>> spectrum = svd(Factors(torch.ones(2, 1), torch.ones(1, 2)))
        >>> round(float(spectrum.S), 4), spectrum.factors().delta().round(decimals=4).tolist()
        (2.0, [[1.0, 1.0], [1.0, 1.0]])
    """
    span = Span.of([change])
    return decompose(weighted_sum_of(span, torch.ones(*change.B.shape[:-2], 1)), count).spectrum()


def projections(x: Factors, span: Span) -> Float64[Tensor, "*batch n"]:
    """Frobenius inner products of one change with those of a span, to float32 precision, where they are.

    Example:
        >>> x = Factors(torch.ones(2, 1), torch.ones(1, 3))
        >>> projections(x, Span.of([x, x.scaled(-2.0)])).tolist()
        [6.0, -12.0]
    """
    product = _panels(x.B, span.B) * _panels(x.A.mT, span.A.mT)
    return torch.stack([part.sum((-2, -1)) for part in product.split(span.ranks, -1)], -1)


def _panels(x: Tensor, y: Tensor) -> Tensor:
    """`x.T @ y`, summed in float64 over panels."""
    parts = [(a.mT @ b).double() for a, b in zip(x.split(1024, -2), y.split(1024, -2))]
    return torch.stack(parts).sum(dim=0)
