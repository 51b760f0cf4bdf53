"""One layer: its changes in the space of the method, sparsified and combined block by block."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor

from mergelab.engine.job import LayerChance
from mergelab.engine.thresholds import layer_thresholds
from mergelab.linalg.lowrank import Core, Factors, stack
from mergelab.linalg.stacks import ChangeStack
from mergelab.linalg.workspace import Workspace
from mergelab.methods.method import LayerWise, Level, MatrixWise, Part, Strategy
from mergelab.spaces import Coordinates, Merged


def merge_layer(
    strategy: Strategy,
    parts: Sequence[Part],
    chance: LayerChance,
    prepared: Sequence[Any] | None = None,
    workspace: Workspace | None = None,
) -> Merged:
    """Merge one layer.

    Args:
        strategy: the method, with its space.
        parts: of the adapters that have the layer; for a rule that acts on the factors without their scalings.
        chance: the random numbers of the layer.
        prepared: of each part, what the sparsifier found out over whole adapters.
        workspace: threads and memory; a dense result may lie in memory that the next layer uses again.

    Returns:
        Factors that are final as they are, a core between orthonormal bases, or a dense `(out, in)`.
    """
    if strategy.level is Level.LAYER:
        return cast(LayerWise, strategy).combine(parts)
    if strategy.is_exact_sum:
        return stack([part.weighted for part in parts])
    workspace = workspace or Workspace()
    method = cast(MatrixWise, strategy.seeded(chance.generator(0)))
    coordinates = coordinates_of(method, parts)
    results = [merge_stack(method, stacked, chance, prepared, workspace) for stacked in coordinates.stacks]
    return _scaled(coordinates.restore(results), method.output_scale)


def coordinates_of(method: MatrixWise, parts: Sequence[Part]) -> Coordinates:
    """The changes of a layer in the space of a method, as its rule is to see them."""
    changes, weights = [part.change for part in parts], [part.weight for part in parts]
    return method.acts_in.build(changes, weights, method.weights_before_rule, method.basis)


def merge_stack(
    method: MatrixWise,
    stacked: ChangeStack,
    chance: LayerChance,
    prepared: Sequence[Any] | None = None,
    workspace: Workspace | None = None,
) -> Tensor:
    """Sparsify and combine the matrices of one stack; arguments as of `merge_layer`."""
    weights = torch.tensor(stacked.weights, device=stacked.device)
    if method.acts_in.acts_on_factors:
        return method.rule(_as_peft(method, stacked, chance), weights)
    workspace = workspace or Workspace()
    states = sparsifier_states(method, stacked, prepared, workspace)
    result = workspace.dense(*stacked.shape, stacked.device)

    def merge_block(rows: slice) -> None:
        changes = workspace.scratch(len(states), rows.stop - rows.start, stacked.shape[1], device=stacked.device)
        for i, (x, state) in enumerate(zip(changes, states)):
            seen_rows(method, stacked, i, rows, state, chance, out=x)
        result[rows] = method.rule(changes, weights)

    rows = stacked.blocks() if method.level is Level.ENTRIES else [slice(0, stacked.shape[0])]
    workspace.each(merge_block, rows)
    return result


def sparsifier_states(
    method: MatrixWise, stacked: ChangeStack, prepared: Sequence[Any] | None, workspace: Workspace
) -> Sequence[Any]:
    """What the sparsifier must know of each matrix: given, or found in the stack."""
    if prepared is None and method.sparsifier is not None:
        prepared = method.sparsifier.prepare(lambda share: layer_thresholds(share, stacked, workspace))
    return [None] * len(stacked.matrices) if prepared is None else prepared


def seen_rows(
    method: MatrixWise, stacked: ChangeStack, i: int, rows: slice, state: Any, chance: LayerChance, out: Tensor
) -> Tensor:
    """Rows of one matrix as the rule gets to see them, in the memory that is given."""
    stacked.rows(i, rows, out=out)
    return out if method.sparsifier is None else method.sparsifier.apply(out, state, chance.draws(i), rows)


def _as_peft(method: MatrixWise, stacked: ChangeStack, chance: LayerChance) -> Tensor:
    """All factors of one kind at once, with the arithmetic and the draws of PEFT."""
    everything, count = slice(0, stacked.shape[0]), range(len(stacked.matrices))
    changes = [stacked.rows(i, everything) for i in count]
    if sparsifier := method.sparsifier:
        changes = [sparsifier.as_peft(x, chance.generator(i)) for i, x in zip(count, changes)]
    return torch.stack(changes)


def _scaled(merged: Merged, factor: float) -> Merged:
    """A merged change times a factor; a dense one in place."""
    if factor == 1.0:
        return merged
    if isinstance(merged, Core):
        return Core(merged.U, merged.M * factor, merged.V)
    return merged.scaled(factor) if isinstance(merged, Factors) else merged.mul_(factor)
