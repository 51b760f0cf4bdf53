"""One layer: its changes in the space of the method, sparsified and combined block by block."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from functools import partial
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from mergelab.engine.job import LayerChance
from mergelab.engine.returned import as_merged, check_seen, errors_told, unexpected
from mergelab.engine.thresholds import Known, layer_thresholds
from mergelab.errors import OptionError
from mergelab.linalg import host
from mergelab.linalg.lowrank import Core, Factors
from mergelab.linalg.span import Combination, Span, weighted_sum_of
from mergelab.linalg.stacks import GPU_BLOCK, ChangeStack
from mergelab.linalg.workspace import Workspace, panels
from mergelab.methods.method import LayerWise, Level, MatrixWise, Part, Strategy
from mergelab.spaces import Coordinates, Merged, seen_weights


class OneLayer(NamedTuple):
    """What there is of a layer: its parts, the span of their changes, its random numbers."""

    parts: Sequence[Part]
    span: Span
    chance: LayerChance

    def seen(self, method: MatrixWise) -> list[Hashable]:
        """What tells its dense matrices, as a method sees them, from those that others see."""
        return [(self.chance.layer, x.adapter, x.weight if method.weights_before_rule else 1.0) for x in self.parts]


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
        parts: of the adapters that have the layer. For a rule that acts on the factors, a change is without its
            scaling, which is in the weight.
        chance: the random numbers of the layer.
        prepared: of each part, what the sparsifier found out over whole adapters.
        workspace: threads and memory; a dense result may lie in memory that the next layer uses again.

    Returns:
        Factors that are final as they are, a low-rank product, or a dense `(out, in)`.

    Raises:
        LayerError: the method returned something else.
    """
    span = Span.of([part.change for part in parts])
    states = None if prepared is None else [prepared]
    merged = merge_together(strategy, [OneLayer(parts, span, chance)], span[None], states, workspace or Workspace())
    if isinstance(merged, Combination):
        return Combination(merged.span[0], merged.M[0])
    return merged[0]


def merge_together(
    strategy: Strategy,
    layers: Sequence[OneLayer],
    span: Span,
    prepared: Sequence[Sequence[Any]] | None,
    workspace: Workspace,
    known: Known | None = None,
) -> list[Merged] | Combination | Tensor:
    """Merge each of several layers of one shape.

    Args:
        strategy, workspace: as of `merge_layer`.
        layers: what there is of each.
        span: of the changes of all of them, with a leading dimension.
        prepared: as of `merge_layer`, of each layer.
        known: thresholds of dense changes, for several methods.

    Returns:
        A combination or dense changes, with the leading dimension; or what a method of layers, or one that acts on the
        factors, makes of each.
    """
    weights = torch.tensor([[part.weight for part in layer.parts] for layer in layers], dtype=torch.float64)
    if strategy.is_exact_sum and not strategy.stores_factors:
        return weighted_sum_of(span, weights)
    own = [strategy.for_layer(partial(layer.chance.generator, 0)) for layer in layers]
    if strategy.level is Level.LAYER:
        return [_combined(cast(LayerWise, method), layer) for method, layer in zip(own, layers)]
    methods = [cast(MatrixWise, method) for method in own]
    if strategy.acts_in.acts_on_factors:
        return [_on_factors(method, layer) for method, layer in zip(methods, layers)]
    method = methods[0]
    coordinates = method.acts_in.build(span, weights, method.weights_before_rule, method.basis)
    if coordinates is None:
        return _one_by_one(strategy, layers, span, prepared, workspace)
    (together,) = coordinates.stacks
    stacks = [together.item(i, seen_weights(row, method.weights_before_rule)) for i, row in enumerate(weights)]
    # The threads take the blocks of one layer; of several, each has a thread already, or the GPU.
    inner = workspace if len(layers) == 1 and together.device.type == "cpu" else Workspace()
    keys = [x for layer in layers for x in layer.seen(method)] if known and method.acts_in.is_dense else None
    states = prepared or sparsifier_states(method, stacks, inner, layers[0].chance.layer, known, keys)
    shape = len(stacks), *together.shape
    if method.acts_in.is_dense:
        result = workspace.dense(*shape, device=together.device)
    else:
        result = torch.empty(shape, dtype=torch.float32, device=together.device)
    if len(stacks) > 1 and method.level is Level.ENTRIES and len({own.weights for own in stacks}) == 1:
        _merge_side_by_side(method, stacks, [layer.chance for layer in layers], states, result)
    else:
        for i, layer in enumerate(layers):
            merge_stack(methods[i], stacks[i], layer.chance, states[i], inner, result[i])
    return _scaled(coordinates.restore([result]), strategy.output_scale)  # type: ignore[return-value]


def _one_by_one(
    strategy: Strategy,
    layers: Sequence[OneLayer],
    span: Span,
    prepared: Sequence[Sequence[Any]] | None,
    workspace: Workspace,
) -> Combination:
    """For layers whose coordinates are of several sizes."""
    found: list[Combination] = []
    for i, layer in enumerate(layers):
        states = None if prepared is None else [prepared[i]]
        found.append(cast(Combination, merge_together(strategy, [layer], layer.span[None], states, workspace)))
    rows = torch.cat([one.span.A for one in found])
    joined = Span(span.B, rows, found[0].span.ranks, span.workspace)
    return Combination(joined if joined.ranks != span.ranks else span, torch.cat([one.M for one in found]))


def _merge_side_by_side(
    method: MatrixWise,
    stacks: Sequence[ChangeStack],
    chances: Sequence[LayerChance],
    states: Sequence[Sequence[Any]],
    result: Tensor,
) -> None:
    """Layers whose matrices are small: as many at a time as are worth a kernel's launch."""
    n, shape = len(stacks[0].matrices), stacks[0].shape
    step, everything = max(1, GPU_BLOCK // (n * math.prod(shape))), slice(0, shape[0])
    for rows in panels(len(stacks), step):
        some = range(*rows.indices(len(stacks)))
        changes = torch.empty(n, len(some), *shape, dtype=torch.float32, device=result.device)
        for place, layer in enumerate(some):
            for i, state in enumerate(states[layer]):
                seen_rows(method, stacks[layer], i, everything, state, chances[layer], out=changes[i, place])
        result[rows] = _ruled(method, chances[some[0]], stacks[0].weights, changes)


def _on_factors(method: MatrixWise, layer: OneLayer) -> Merged:
    """The rule on the factors themselves, as PEFT has it."""
    coordinates = coordinates_of(method, layer.parts)
    results = [
        _ruled(method, layer.chance, stacked.weights, _as_peft(method, stacked, layer.chance))
        for stacked in coordinates.stacks
    ]
    return _scaled(coordinates.restore(results), method.output_scale)


def coordinates_of(method: MatrixWise, parts: Sequence[Part], span: Span | None = None) -> Coordinates:
    """The changes of a layer in the space of a method, as its rule is to see them."""
    span, weights = (
        span or Span.of([part.change for part in parts]),
        torch.tensor([part.weight for part in parts], dtype=torch.float64),
    )
    return cast(Coordinates, method.acts_in.build(span, weights, method.weights_before_rule, method.basis))


def merge_stack(
    method: MatrixWise,
    stacked: ChangeStack,
    chance: LayerChance,
    states: Sequence[Any] | None = None,
    workspace: Workspace | None = None,
    result: Tensor | None = None,
) -> Tensor:
    """Sparsify and combine the matrices of one stack.

    Args:
        method, stacked, chance: what is merged.
        states: of the sparsifier, one for each matrix; default: found in the stack.
        workspace: threads and memory for the blocks.
        result: where the merge is to be written, if anywhere.
    """
    workspace = workspace or Workspace()
    states = states or sparsifier_states(method, [stacked], workspace, chance.layer)[0]
    if len(states) != len(stacked.matrices):
        raise OptionError(
            f"{method.sparsifier}: prepare() returned {len(states)} states, expected one for each of "
            f"{len(stacked.matrices)} adapters"
        )
    result = torch.empty(stacked.shape, dtype=torch.float32, device=stacked.device) if result is None else result

    def merge_block(rows: slice) -> None:
        changes = workspace.scratch(len(states), rows.stop - rows.start, stacked.shape[1], device=stacked.device)
        for i, (x, state) in enumerate(zip(changes, states)):
            seen_rows(method, stacked, i, rows, state, chance, out=x)
        result[rows] = _ruled(method, chance, stacked.weights, changes)

    rows = stacked.blocks() if method.level is Level.ENTRIES else [slice(0, stacked.shape[0])]
    workspace.each(merge_block, rows)
    return result


def _ruled(method: MatrixWise, chance: LayerChance, weights: Sequence[float], changes: Tensor) -> Tensor:
    """What the rule makes of some rows."""
    given = host.like(torch.tensor(weights, dtype=torch.float32), changes)  # a tensor of this call's own
    with errors_told(method, chance.layer):
        merged = method.rule(changes, given)
    if not isinstance(merged, Tensor) or merged.shape != changes.shape[1:]:
        raise unexpected(merged, tuple(changes.shape[1:]), method, chance.layer)
    return merged


def expect_thresholds(strategy: Strategy, layers: Sequence[OneLayer], known: Known) -> None:
    """Say which thresholds of dense changes a method will ask for."""
    sparsifier = strategy.sparsifier
    if sparsifier is not None and sparsifier.scope == "layer" and strategy.acts_in.is_dense:
        known.expect((key for layer in layers for key in layer.seen(cast(MatrixWise, strategy))), sparsifier.shares)


def sparsifier_states(
    method: MatrixWise,
    stacks: Sequence[ChangeStack],
    workspace: Workspace,
    layer: str = "",
    known: Known | None = None,
    keys: Sequence[Hashable] | None = None,
) -> list[Sequence[Any]]:
    """What the sparsifier must know of each matrix of each stack, found together; by its key it may be known."""
    count, found = len(stacks[0].matrices), None
    if method.sparsifier is not None:
        thresholds = partial(
            (known if known and keys else Known()).of,
            keys=keys or range(count * len(stacks)),
            find=lambda wanted: layer_thresholds(wanted, stacks, workspace),
        )
        with errors_told(method, layer):
            found = method.sparsifier.prepare(thresholds)
    if found is None:
        return [[None] * count for _ in stacks]
    if len(found) != count * len(stacks):
        raise OptionError(
            f"{method.sparsifier}: prepare() returned {len(found)} states, expected one for each of {count} adapters"
            + (f" in {len(stacks)} layers" if len(stacks) > 1 else "")
        )
    return [found[i : i + count] for i in range(0, len(found), count)]


def seen_rows(
    method: MatrixWise, stacked: ChangeStack, i: int, rows: slice, state: Any, chance: LayerChance, out: Tensor
) -> Tensor:
    """Rows of one matrix as the rule gets to see them, in the memory that is given."""
    stacked.rows(i, rows, out=out)
    if method.sparsifier is None:
        return out
    with errors_told(method, chance.layer):
        seen = method.sparsifier.apply(out, state, chance.draws(i), rows)
    check_seen(seen, out, "apply", method, chance.layer)
    return out if seen is out else out.copy_(seen)


def _as_peft(method: MatrixWise, stacked: ChangeStack, chance: LayerChance) -> Tensor:
    """All factors of one kind at once, with the arithmetic and the draws of PEFT."""
    everything, count = slice(0, stacked.shape[0]), range(len(stacked.matrices))
    changes = [stacked.rows(i, everything) for i in count]
    if sparsifier := method.sparsifier:
        with errors_told(method, chance.layer):
            seen = [sparsifier.as_peft(x, chance.generator(i)) for i, x in zip(count, changes)]
        for treated, x in zip(seen, changes):
            check_seen(treated, x, "as_peft", method, chance.layer)
        changes = seen
    return torch.stack(changes)


def _combined(method: LayerWise, layer: OneLayer) -> Merged:
    """What a method of layers makes of one."""
    with errors_told(method, layer.chance.layer):
        combined = method.combine(layer.parts)
    combined = as_merged(combined, layer.parts[0].change.shape, method, layer.chance.layer)
    return _scaled(combined, method.output_scale)


def _scaled(merged: Merged, factor: float) -> Merged:
    """A merged change times a factor; a dense one in place."""
    if factor == 1.0:
        return merged
    if isinstance(merged, Core):
        return Core(merged.U, merged.M * factor, merged.V)
    return merged.scaled(factor) if isinstance(merged, (Factors, Combination)) else merged.mul_(factor)
