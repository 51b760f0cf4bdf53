"""Where a rule acts: delta, core, knots, factors.

A `View` holds one layer's changes as matrices in a space, and the way back to the weight.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mergelab.linalg.dense import panels
from mergelab.linalg.lowrank import Core, Factors, joint, joint_cores, stack
from mergelab.methods.registry import Strategy

# Singular directions below this share of the largest are rounding, not part of any change.
NULL_TOLERANCE = 4e-6
# Entries of all changes that are held at a time: on a CPU a block and a few copies fit the cache, and are little beside
# the layer, but enough to be worth a product; on a GPU they are worth a kernel's launch.
BLOCK, LEAST, GPU_BLOCK = 1 << 21, 1 << 20, 1 << 26

Matrix = Factors | Tensor
# What a merge of one layer yields: factors that are final as they are, a low-rank product, or a dense change.
Merged = Factors | Core | Tensor


@dataclass(frozen=True)
class Stacked:
    """Matrices of one shape, one for each adapter, and the weights that the rule is to apply to them."""

    matrices: tuple[Matrix, ...]
    weights: tuple[float, ...]

    @property
    def shape(self) -> tuple[int, int]:
        rows, columns = self.matrices[0].shape
        return rows, columns

    def blocks(self) -> list[slice]:
        """Row blocks that cover the matrices."""
        rows, columns = self.shape
        if self.device.type == "cpu":
            block = min(BLOCK, max(LEAST, rows * columns // 8)) // max(4, len(self.matrices))
        else:
            block = GPU_BLOCK // len(self.matrices)
        return list(panels(rows, max(1, block // columns)))

    @property
    def device(self) -> torch.device:
        first = self.matrices[0]
        return first.A.device if isinstance(first, Factors) else first.device

    def rows(self, i: int, rows: slice, out: Tensor | None = None) -> Tensor:
        """Some rows of one matrix."""
        matrix = self.matrices[i]
        if isinstance(matrix, Factors):
            return torch.matmul(matrix.B[rows], matrix.A, out=out)
        return matrix[rows] if out is None else out.copy_(matrix[rows])

    def sample(self, i: int, rows: int, columns: int) -> Tensor:
        """Evenly spaced rows and columns of one matrix."""
        matrix = self.matrices[i]
        picks = [_spaced(size, count, self.device) for size, count in zip(self.shape, (rows, columns))]
        if isinstance(matrix, Factors):
            return matrix.B[picks[0]] @ matrix.A[:, picks[1]]
        return matrix[picks[0]][:, picks[1]]


@dataclass(frozen=True)
class View:
    """The stacks that the rule is applied to (one, or two in space "factors") and the way back from its results."""

    stacks: tuple[Stacked, ...]
    restore: Callable[[list[Tensor]], Merged]


def _spaced(size: int, count: int, device: torch.device) -> Tensor:
    return torch.linspace(0, size - 1, max(1, min(size, count)), device=device).round().long()


def view_of(strategy: Strategy, changes: Sequence[Factors], weights: Sequence[float]) -> View:
    """The changes of one layer as the strategy's rule is to see them."""
    build = {"delta": _delta, "core": _core, "knots": _knots, "factors": _factors}[strategy.space]
    return build(strategy, changes, weights)


def _delta(strategy: Strategy, changes: Sequence[Factors], weights: Sequence[float]) -> View:
    if strategy.weighted_first:
        matrices = tuple(c.scaled(w) for c, w in zip(changes, weights))
        weights = [1.0] * len(matrices)
    else:
        matrices = tuple(changes)
    return View((Stacked(matrices, tuple(weights)),), lambda results: results[0])


def _core(strategy: Strategy, changes: Sequence[Factors], weights: Sequence[float]) -> View:
    weighted = [c.scaled(w) for c, w in zip(changes, weights)]
    if strategy.basis == "factors":
        q_b, cores, q_a = joint_cores(weighted)
        stacked = stack(weighted)
        u, left = _basis(q_b, q_b.double().T @ stacked.B.double())
        v, right = _basis(q_a, q_a.double().T @ stacked.A.T.double())
    else:
        whole = joint(weighted, torch.float64)
        cores = whole.cores()
        u, left = _span(whole.B, cores, whole.r_a.split(whole.ranks, dim=1))
        v, right = _span(whole.A.T, [m.T for m in cores], whole.r_b.split(whole.ranks, dim=1))
    seen, weights = _as_seen([left.T @ m @ right for m in cores], strategy, weights)
    return View((Stacked(seen, weights),), lambda results: Core(u, results[0].double(), v))


def _span(columns: Tensor, cores: Sequence[Tensor], triangles: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Left singular vectors of the changes side by side, in full and in the coordinates of the cores.

    With `l` in these coordinates, `sum_i m_i m_i.T l = s^2 l` and `m_i = r_i t_i.T`, so that the vector in full is
    `columns` times the stack of `t_i.T m_i.T l / s^2`.
    """
    squares, left = torch.linalg.eigh(sum(m @ m.T for m in cores))
    squares, left = squares.flip(0), left.flip(1)
    count = max(1, int((squares > NULL_TOLERANCE**2 * squares[0]).sum()))
    squares, left = squares[:count], left[:, :count]
    parts = [t.T @ (m.T @ left) for m, t in zip(cores, triangles)]
    vectors = columns @ (torch.cat(parts) / squares.clamp_min(1e-300)).to(columns)
    signs = _signs(vectors)
    return vectors * signs, left * signs.to(left)


def _knots(strategy: Strategy, changes: Sequence[Factors], weights: Sequence[float]) -> View:
    whole = joint([c.scaled(w) for c, w in zip(changes, weights)], torch.float64)
    u, left = _span(whole.B, whole.cores(), whole.r_a.split(whole.ranks, dim=1))
    # `U.T delta_i`, without the orthonormal factors of delta_i: what is left of B's triangle times A.
    triangles, rows = whole.r_b.split(whole.ranks, dim=1), whole.A.double().split(whole.ranks)
    seen, weights = _as_seen([(left.T @ r).to(a) @ a for r, a in zip(triangles, rows)], strategy, weights)

    def restore(results: list[Tensor]) -> Core:
        q, r = torch.linalg.qr(results[0].T)
        return Core(u, r.double().T, q)

    return View((Stacked(seen, weights),), restore)


def _factors(strategy: Strategy, changes: Sequence[Factors], weights: Sequence[float]) -> View:
    # The arithmetic is PEFT's (0.21), in its order, so that its results are reproduced to the last bit.
    rank = max(c.A.shape[0] for c in changes)
    a = tuple(torch.nn.functional.pad(c.A, (0, 0, 0, rank - c.A.shape[0])) for c in changes)
    b = tuple(torch.nn.functional.pad(c.B, (0, rank - c.B.shape[1])) for c in changes)
    roots = tuple(math.sqrt(abs(w)) for w in weights)
    signed = tuple(math.copysign(root, w) for root, w in zip(roots, weights))
    return View((Stacked(a, signed), Stacked(b, roots)), lambda results: Factors(results[1], results[0]))


def _basis(q: Tensor, core: Tensor) -> tuple[Tensor, Tensor]:
    """Left singular vectors of `q @ core` and of `core`.

    The largest entry of each is made positive: where a vote is tied, it matters which way a vector points.
    """
    left, _, _ = torch.linalg.svd(core, full_matrices=False)
    vectors = q @ left.to(q.dtype)
    signs = _signs(vectors)
    return vectors * signs, left * signs


def _signs(vectors: Tensor) -> Tensor:
    return torch.where(vectors.amax(dim=0) < -vectors.amin(dim=0), -1.0, 1.0)


def _as_seen(
    weighted: list[Tensor], strategy: Strategy, weights: Sequence[float]
) -> tuple[tuple[Tensor, ...], tuple[float, ...]]:
    """Float32 matrices and weights as the rule wants them: weighted already, or not yet."""
    if strategy.weighted_first:
        return tuple(m.float() for m in weighted), (1.0,) * len(weighted)
    return tuple((m / w).float() for m, w in zip(weighted, weights)), tuple(weights)
