"""Where a rule acts: delta, core, knots, factors.

A `View` holds one layer's changes as matrices in a space, and the way back to the weight.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mergelab.lowrank import Core, Factors, core, joint_cores, stack
from mergelab.sparsify import Drop, Trim, drop, kth_largest_magnitudes, trim, trim_topk
from mergelab.strategies import Strategy

# Singular directions below this share of the largest are rounding, not part of any change.
NULL_TOLERANCE = 4e-6
# Entries of one change that are held at a time; a block of this size and a few copies fit the cache.
BLOCK = 1 << 19

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

    def blocks(self) -> Iterator[slice]:
        """Row blocks that cover the matrices."""
        rows, columns = self.shape
        step = max(1, BLOCK // columns)
        for start in range(0, rows, step):
            yield slice(start, min(start + step, rows))

    def entries(self) -> Iterator[tuple[int, Tensor]]:
        """All matrices, block by block, each with the position of its adapter."""
        for i, matrix in enumerate(self.matrices):
            for rows in self.blocks():
                yield i, _rows(matrix, rows)


@dataclass(frozen=True)
class View:
    """The stacks that the rule is applied to (one, or two in space "factors") and the way back from its results."""

    stacks: tuple[Stacked, ...]
    restore: Callable[[list[Tensor]], Merged]


def _rows(matrix: Matrix, rows: slice) -> Tensor:
    return matrix.delta(rows) if isinstance(matrix, Factors) else matrix[rows]


def merge_layer(
    strategy: Strategy,
    changes: Sequence[Factors],
    weights: Sequence[float],
    generators: Sequence[torch.Generator],
    thresholds: Sequence[float] | None = None,
) -> Merged:
    """Merge one layer.

    Args:
        strategy: rule and space.
        changes: one per adapter that has the layer; in space "factors" without their scaling.
        weights: one per change, not zero; in space "factors" times the scaling.
        generators: one per change, for random rules.
        thresholds: of the trim, where they were computed over whole adapters.
    """
    if strategy.is_sum and strategy.space != "factors":
        return core(stack([c.scaled(w) for c, w in zip(changes, weights)]))
    view = view_of(strategy, changes, weights)
    merged = view.restore([combine(strategy, part, generators, thresholds) for part in view.stacks])
    if strategy.factor == 1.0:
        return merged
    if isinstance(merged, Core):
        return Core(merged.U, merged.M * strategy.factor, merged.V)
    return merged.scaled(strategy.factor) if isinstance(merged, Factors) else merged * strategy.factor


def combine(
    strategy: Strategy,
    stacked: Stacked,
    generators: Sequence[torch.Generator],
    thresholds: Sequence[float] | None = None,
) -> Tensor:
    """Sparsify and combine the matrices of one stack."""
    device = _rows(stacked.matrices[0], slice(0, 1)).device
    weights = torch.tensor(stacked.weights, device=device)
    sparsifier = strategy.sparsifier
    if isinstance(sparsifier, Trim) and thresholds is None and strategy.space != "factors":
        thresholds = layer_thresholds(sparsifier.density, stacked)

    def sparsified(i: int, rows: slice) -> Tensor:
        x = _rows(stacked.matrices[i], rows)
        if isinstance(sparsifier, Drop):
            return drop(x, sparsifier.density, generators[i])
        if isinstance(sparsifier, Trim):
            return trim_topk(x, sparsifier.density) if thresholds is None else trim(x, thresholds[i])
        return x

    whole = not strategy.entrywise or strategy.space == "factors"
    blocks = [slice(0, stacked.shape[0])] if whole else list(stacked.blocks())
    result = torch.empty(stacked.shape, device=device)
    for rows in blocks:
        changes = torch.stack([sparsified(i, rows) for i in range(len(stacked.matrices))])
        result[rows] = strategy.rule(changes, weights, generators[0])
    return result


def layer_thresholds(density: float, stacked: Stacked) -> list[float]:
    """For each matrix the magnitude of its smallest kept entry."""
    n, size = len(stacked.matrices), math.prod(stacked.shape)
    return kth_largest_magnitudes(stacked.entries, [int(density * size)] * n, [size] * n)


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
    q_b, cores, q_a = joint_cores(weighted)
    if strategy.basis == "factors":
        stacked = stack(weighted)
        u, left = _basis(q_b, q_b.double().T @ stacked.B.double())
        v, right = _basis(q_a, q_a.double().T @ stacked.A.T.double())
    else:
        u, left = _basis(q_b, torch.cat(cores, dim=1), NULL_TOLERANCE)
        v, right = _basis(q_a, torch.cat([m.T for m in cores], dim=1), NULL_TOLERANCE)
    seen, weights = _as_seen([left.T @ m @ right for m in cores], strategy, weights)
    return View((Stacked(seen, weights),), lambda results: Core(u, results[0].double(), v))


def _knots(strategy: Strategy, changes: Sequence[Factors], weights: Sequence[float]) -> View:
    q_b, cores, q_a = joint_cores([c.scaled(w) for c, w in zip(changes, weights)])
    u, left = _basis(q_b, torch.cat(cores, dim=1), NULL_TOLERANCE)
    seen, weights = _as_seen([left.T @ m @ q_a.double().T for m in cores], strategy, weights)

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


def _basis(q: Tensor, core: Tensor, tolerance: float = 0.0) -> tuple[Tensor, Tensor]:
    """Left singular vectors of `q @ core` and of `core`, those of numerically zero singular values left out if asked.

    The largest entry of each is made positive: where a vote is tied, it matters which way a vector points.
    """
    left, s, _ = torch.linalg.svd(core, full_matrices=False)
    count = max(1, int((s > tolerance * s[0]).sum())) if tolerance else len(s)
    left = left[:, :count]
    vectors = q @ left.to(q.dtype)
    largest = vectors.abs().argmax(dim=0, keepdim=True)
    signs = torch.where(vectors.gather(0, largest) < 0, -1.0, 1.0)
    return vectors * signs, left * signs


def _as_seen(
    weighted: list[Tensor], strategy: Strategy, weights: Sequence[float]
) -> tuple[tuple[Tensor, ...], tuple[float, ...]]:
    """Float32 matrices and weights as the rule wants them: weighted already, or not yet."""
    if strategy.weighted_first:
        return tuple(m.float() for m in weighted), (1.0,) * len(weighted)
    return tuple((m / w).float() for m, w in zip(weighted, weights)), tuple(weights)
