"""Linear algebra on low-rank matrices, which costs the rank and not the layer; and the SVD of dense ones.

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

# Up to this smaller side a dense SVD is cheap enough to be exact.
EXACT_SIDE = 256
OVERSAMPLE = 16
MAX_POWER_ITERATIONS = 40
# Stop when all further iterations together would lower the squared error by less than this share of it.
POWER_TOLERANCE = 4e-4
# The ratio of successive gains, as far as it is believed: the first gains are larger than the rest lets expect.
MIN_RATIO, MAX_RATIO = 0.7, 0.99
ROUNDING = 1e-6


class exact_arithmetic(contextlib.ContextDecorator):
    """Neither gradients nor the half precision of an autocast around the caller reach the arithmetic inside."""

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


def svd_dense(matrix: Float[Tensor, "out in"], wanted: int | float, generator: torch.Generator) -> Spectrum:
    """The leading singular values and vectors of a dense matrix.

    Args:
        matrix: `(out, in)`, float32.
        wanted: how many (int), or the share of the energy that they shall hold (float in (0, 1)).
        generator: for the random start of the iteration.

    Returns:
        Exact where the smaller side is at most 256 or most values are wanted; else by randomised subspace iteration,
        whose error is at most 0.1 % above that of the best approximation of that rank.

    Source: Halko, Martinsson, Tropp, arXiv 0909.4061, algorithm 4.4.
    """
    side = min(matrix.shape)
    energy = squared_norm(matrix)
    rank = wanted if isinstance(wanted, int) else 64
    while side > EXACT_SIDE and rank < side // 3:
        spectrum = _subspace_iteration(matrix, rank, energy, generator)
        if spectrum is None:
            break
        if isinstance(wanted, int) or spectrum.kept >= wanted * energy:
            return spectrum
        rank *= 2
    u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    found = Spectrum(u, s.double(), vh.T, energy)
    return found.truncated(wanted) if isinstance(wanted, int) else found


def squared_norm(matrix: Tensor) -> float:
    """Squared Frobenius norm, summed in float64 over blocks of rows."""
    return sum(float(block.double().square().sum()) for block in torch.split(matrix, 256))


def _subspace_iteration(matrix: Tensor, rank: int, energy: float, generator: torch.Generator) -> Spectrum | None:
    """Iterate until what further iterations could still gain is too little to matter; None if that never happens.

    The gains of successive iterations fall geometrically, by a ratio that the spectrum sets. From the last two the sum
    of all that would follow is known, `gain * ratio / (1 - ratio)`; a small gain alone may be the first of many.
    """
    sketch = torch.randn(matrix.shape[1], rank + max(OVERSAMPLE, rank // 4), generator=generator).to(matrix)
    q = torch.linalg.qr(matrix @ sketch).Q
    kept, gain = 0.0, 0.0
    for iteration in range(MAX_POWER_ITERATIONS):
        z = matrix.T @ q
        values, vectors = torch.linalg.eigh(z.double().T @ z.double())
        now = float(values[-rank:].sum())
        before, gain, kept = gain, now - kept, now
        known = iteration > 1 and before > 0
        ratio = min(max(gain / before, MIN_RATIO), MAX_RATIO) if known else MAX_RATIO
        to_come = max(gain, 0.0) * ratio / (1 - ratio)
        if iteration and to_come <= POWER_TOLERANCE * max(energy - kept, 1e-12 * energy):
            break
        q = torch.linalg.qr(matrix @ torch.linalg.qr(z).Q).Q
    else:
        return None
    values, vectors = values[-rank:].flip(0), vectors[:, -rank:].flip(1)
    s = values.clamp_min(0).sqrt()
    # A matrix of lower rank has no further directions, only rounding.
    found = max(1, int((s > ROUNDING * s[0]).sum()))
    s, vectors = s[:found], vectors[:, :found]
    right = z.double() @ vectors / s if s[0] > 0 else torch.zeros(matrix.shape[1], 1, dtype=s.dtype, device=s.device)
    return Spectrum(q @ vectors.to(q.dtype), s, right.to(q.dtype), energy)
