"""One layer: sparsify and combine its changes, in the space that the strategy names, block by block."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from mergelab.linalg.dense import leading_directions
from mergelab.linalg.lowrank import Core, Factors, stack
from mergelab.linalg.workspace import Lane
from mergelab.linalg.selection import EVERYTHING, Bracket, Tally, sampled_bracket, select
from mergelab.spaces import Merged, Stacked, view_of
from mergelab.methods.sparsify import Drop, Trim, draw, drop, dropped, trim, trim_topk
from mergelab.methods.registry import Strategy

# All entries of a matrix of at most so many are searched for its threshold; that of a larger one is first estimated
# from every fourth row and column, or from so many of them.
SEARCHED, SAMPLED = 1 << 18, 640
# Blocks for which random numbers are drawn ahead, one thread for each adapter.
DRAWN = 4


def merge_layer(
    strategy: Strategy,
    changes: Sequence[Factors],
    weights: Sequence[float],
    generators: Sequence[torch.Generator],
    thresholds: Sequence[float] | None = None,
    lane: Lane | None = None,
) -> Merged:
    """Merge one layer.

    Args:
        strategy: rule and space.
        changes: one per adapter that has the layer; in space "factors" without their scaling.
        weights: one per change, not zero; in space "factors" times the scaling.
        generators: one per change, for random rules.
        thresholds: of the trim, where they were computed over whole adapters.
        lane: threads and memory; a dense result may lie in the memory of the lane.
    """
    if strategy.is_sum and strategy.space != "factors":
        return stack([c.scaled(w) for c, w in zip(changes, weights)])
    lane = lane or Lane()
    view = view_of(strategy, changes, weights)
    merged = view.restore([combine(strategy, part, generators, thresholds, lane) for part in view.stacks])
    if strategy.factor == 1.0:
        return merged
    if isinstance(merged, Core):
        return Core(merged.U, merged.M * strategy.factor, merged.V)
    return merged.scaled(strategy.factor) if isinstance(merged, Factors) else merged.mul_(strategy.factor)


def directions(changes: Sequence[Factors], weights: Sequence[float], count: int) -> Tensor:
    """`(in, count)`: the leading right singular vectors of the weighted sum, which are near those of most merges."""
    return leading_directions(stack([c.scaled(w) for c, w in zip(changes, weights)]), count)


def combine(
    strategy: Strategy,
    stacked: Stacked,
    generators: Sequence[torch.Generator],
    thresholds: Sequence[float] | None = None,
    lane: Lane | None = None,
) -> Tensor:
    """Sparsify and combine the matrices of one stack."""
    lane = lane or Lane()
    weights = torch.tensor(stacked.weights, device=stacked.device)
    sparsifier = strategy.sparsifier
    if not strategy.entrywise or strategy.space == "factors":
        return strategy.rule(_whole(sparsifier, stacked, generators), weights, generators[0])
    if isinstance(sparsifier, Trim) and thresholds is None:
        thresholds = layer_thresholds(sparsifier.density, stacked, lane)
    result = lane.dense(*stacked.shape, stacked.device)

    def merge_block(rows: slice, uniform: Sequence[Tensor] = ()) -> None:
        changes = lane.scratch(len(stacked.matrices), rows.stop - rows.start, stacked.shape[1], device=stacked.device)
        for i, x in enumerate(changes):
            stacked.rows(i, rows, out=x)
            if thresholds is not None:
                trim(x, thresholds[i], out=x)
            elif uniform:
                dropped(x, sparsifier.density, uniform[i], out=x)  # type: ignore[union-attr]
        result[rows] = strategy.rule(changes, weights, generators[0])

    blocks = stacked.blocks()
    if not isinstance(sparsifier, Drop) or sparsifier.density >= 1:
        lane.each(merge_block, blocks)
        return result
    for start in range(0, len(blocks), DRAWN):
        ahead = blocks[start : start + DRAWN]
        shapes = [(rows.stop - rows.start, stacked.shape[1]) for rows in ahead]
        # A generator belongs to one adapter and draws from its first row to its last, whatever the threads.
        drawn = list(lane.map(lambda g, shapes=shapes: [draw(shape, g) for shape in shapes], generators))  # type: ignore[misc]
        lane.each(lambda pair: merge_block(*pair), zip(ahead, zip(*drawn)))
    return result


def _whole(sparsifier: Trim | Drop | None, stacked: Stacked, generators: Sequence[torch.Generator]) -> Tensor:
    """All changes at once: for rules that are not entry by entry, and for the arithmetic of PEFT."""
    everything = slice(0, stacked.shape[0])
    changes = [stacked.rows(i, everything) for i in range(len(stacked.matrices))]
    if isinstance(sparsifier, Drop):
        changes = [drop(x, sparsifier.density, g) for x, g in zip(changes, generators)]
    elif isinstance(sparsifier, Trim):
        changes = [trim_topk(x, sparsifier.density) for x in changes]
    return torch.stack(changes)


def layer_thresholds(density: float, stacked: Stacked, lane: Lane) -> list[float]:
    """For each matrix the magnitude of its smallest kept entry."""
    n, size = len(stacked.matrices), math.prod(stacked.shape)

    def bracket(i: int) -> Bracket:
        picked = (min(SAMPLED, side // 4) for side in stacked.shape)
        return sampled_bracket(stacked.sample(i, *picked), density, stacked.shape)

    def visit(look: Callable[[int, Tensor], Tally]) -> Iterable[tuple[int, Tally]]:
        return visit_blocks(stacked, range(n), look, lane)

    brackets = [EVERYTHING] * n if size <= SEARCHED or density >= 1 else list(lane.map(bracket, range(n)))
    return select(visit, [int(density * size)] * n, [size] * n, brackets)


def visit_blocks(
    stacked: Stacked, owners: Sequence[int], look: Callable[[int, Tensor], Tally], lane: Lane
) -> Iterable[tuple[int, Tally]]:
    """Look at the magnitudes in every block of every matrix, each under the number of its owner."""
    jobs = [(i, rows) for i in range(len(stacked.matrices)) for rows in stacked.blocks()]

    def one(job: tuple[int, slice]) -> tuple[int, Tally]:
        i, rows = job
        memory = lane.scratch(rows.stop - rows.start, stacked.shape[1], device=stacked.device)
        return owners[i], look(owners[i], stacked.rows(i, rows, out=memory).abs_())

    return lane.map(one, jobs)
