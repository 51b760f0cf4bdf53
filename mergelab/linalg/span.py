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
from mergelab.linalg.gram import gram, root
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
    def _small(self) -> tuple[Tensor, ...]:
        u, v = (signature(size, self.B.device) for size in (self.B.shape[-2], self.A.shape[-1]))
        marks = (u @ self.B).double(), (self.A @ v).double()
        return host.to_host(gram(self.B), gram(self.A.mT), *marks)

    @property
    def grams(self) -> tuple[Tensor, Tensor]:
        """`B.T B` and `A A.T`, each `(..., k, k)`, in float64 on the CPU."""
        return self._small[0], self._small[1]

    @property
    def marks(self) -> tuple[Tensor, Tensor]:
        """`u.T B` and `A v`, each `(..., k)`, of two fixed vectors: which way a direction of the span points."""
        return self._small[2], self._small[3]

    @cached_property
    def _roots(self) -> tuple[Tensor, Tensor]:
        left, right = (torch.stack(host.each(root, g, workspace=self.workspace)).view_as(g) for g in self.grams)
        return left, right

    @property
    def r_b(self) -> Float64[Tensor, "*batch k k"]:
        """`r_b.T r_b = B.T B`."""
        return self._roots[0]

    @property
    def r_a(self) -> Float64[Tensor, "*batch k k"]:
        """`r_a.T r_a = A A.T`."""
        return self._roots[1]

    @property
    def squared_norms(self) -> Float64[Tensor, "*batch n"]:
        """`||delta_i||^2` of each change."""
        left, right = self.grams
        product = left * right
        sizes = [product[..., s, s].sum((-2, -1)) for s in self.slices]
        return torch.stack(sizes, -1)

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
        own = Span(self.B[i], self.A[i], self.ranks)
        for name in ("_small", "_roots"):
            if name in self.__dict__:
                own.__dict__[name] = tuple(x[i] for x in self.__dict__[name])
        return own


@dataclass(frozen=True, eq=False)
class Combination:
    """A change within the span of others, `B M A`; decomposed once, however often it is cut.

    Attributes:
        span: of B and A.
        M: `(..., k, k)` in float64, on the CPU; diag(w) for the sum of the changes times their weights.
    """

    span: Span
    M: Float64[Tensor, "*batch k k"]

    @property
    def shape(self) -> tuple[int, int]:
        """Of the dense change, `(out, in)`."""
        return self.span.B.shape[-2], self.span.A.shape[-1]

    @cached_property
    def core(self) -> tuple[Tensor, ...]:
        """`x = r_b M r_a.T`, and of `x.T x` the eigenvalues, `(..., 1, k)`, the largest first, and the vectors."""

        def one(m: Tensor, r_b: Tensor, r_a: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            x = r_b @ m @ r_a.T
            values, vectors = torch.linalg.eigh(x.T @ x)
            return x, values.flip(0)[None], vectors.flip(1)

        found = host.each(one, self.M, self.span.r_b, self.span.r_a, workspace=self.span.workspace)
        x, values, vectors = (torch.stack(parts) for parts in zip(*found))
        lead = self.M.shape[:-2]
        return tuple(part.reshape(*lead, *part.shape[-2:]) for part in (x, values, vectors))

    def delta(self) -> Tensor:
        """The dense change."""
        return self.span.B @ (host.like(self.M, self.span.B) @ self.span.A)

    def scaled(self, factor: float) -> Combination:
        """The change times a number."""
        return Combination(self.span, self.M * factor)


@lru_cache(maxsize=64)
def signature(size: int, device: torch.device) -> Float[Tensor, " size"]:
    """A fixed vector of random numbers around zero: what a projection on it says of a vector depends on the vector alone.

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
    counts = torch.tensor(span.ranks)
    return Combination(span, torch.diag_embed(weights.double().repeat_interleave(counts, dim=-1)))


class Decomposed(NamedTuple):
    """A combination, decomposed: `B left diag(S) right.T A`, from which what is stored is formed in one product.

    Attributes:
        span: of the combination.
        left, right: `(..., k, q)` in float64 on the CPU: coordinates of the singular vectors.
        S: `(..., q)`, the largest first; 0 beyond the number that was asked for of an item.
        energy: `(...)`, squared norm of the whole.
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
        scale = self.S.sqrt()[..., None, :]
        b, a = host.like(self.left * scale, self.span.B), host.like((self.right * scale).mT, self.span.A)
        return Factors(self.span.B @ b, a @ self.span.A)

    def spectrum(self) -> Spectrum:
        """With the vectors in full."""
        u, v = host.like(self.left, self.span.B), host.like(self.right, self.span.A)
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
    span, limit = change.span, min(change.shape)

    def one(
        m: Tensor, r_b: Tensor, r_a: Tensor, x: Tensor, squares: Tensor, v: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        s = squares[0, :limit].clamp_min(0).sqrt()
        energy, number = x.square().sum(), count(s)
        s, v = s[:number], v[:, :number]
        # Where a value is only rounding, so would be its vectors.
        over = torch.where(s > (NULL * s.max()).clamp_min(TINY), 1 / s, 0.0) if number else s
        u = x @ v * over
        inside = ((u.T @ r_b) * (v.T @ r_a) * s[:, None]).sum(0)
        return m @ (r_a.T @ v) * over, s, m.T @ (r_b.T @ u) * over, energy, inside

    found = host.each(one, change.M, span.r_b, span.r_a, *change.core, workspace=span.workspace)
    lead, counts = change.M.shape[:-2], tuple(len(s) for _, s, *_ in found)
    most = max(counts)

    def joined(items: list[Tensor]) -> Tensor:
        padded = [torch.nn.functional.pad(x, (0, most - x.shape[-1])) for x in items]
        return torch.stack(padded).reshape((*lead, *padded[0].shape))

    left, s, right = (joined([item[i] for item in found]) for i in range(3))
    energy, inside = (torch.stack([item[i] for item in found]).reshape((*lead, *found[0][i].shape)) for i in (3, 4))
    projections = torch.stack([part.sum(-1) for part in inside.split(span.ranks, -1)], -1)
    return Decomposed(span, left, s, right, energy, counts, projections)


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


def energy_beyond(change: Factors, rank: int) -> float:
    """Squared Frobenius norm of what the best approximation of a rank leaves out, in float64.

    Gram matrices tell it, at a fraction of the cost of a decomposition: no singular vector is formed.

    Example:
        >>> round(energy_beyond(Factors(torch.diag(torch.tensor([4.0, 3.0])), torch.eye(2)), 1), 6)
        9.0
    """
    left, right = Span.of([change]).grams
    half = root(left)
    values = torch.linalg.eigvalsh(half @ right @ half.T)  # in ascending order
    return float(values[: max(0, len(values) - rank)].clamp_min(0).sum())


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
