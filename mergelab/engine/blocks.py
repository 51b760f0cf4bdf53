"""One layer: its changes in the space of the method, sparsified and combined block by block."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor

from mergelab.engine.job import LayerChance
from mergelab.engine.thresholds import layer_thresholds
from mergelab.errors import LayerError, MergelabError, OptionError
from mergelab.linalg.lowrank import Core, Factors, stack
from mergelab.linalg.stacks import ChangeStack
from mergelab.linalg.workspace import Workspace
from mergelab.methods.method import LayerWise, Level, MatrixWise, Part, Strategy
from mergelab.methods.registry import is_own, name_of
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
        parts: of the adapters that have the layer. For a rule that acts on the factors, a change is without its
            scaling, which is in the weight.
        chance: the random numbers of the layer.
        prepared: of each part, what the sparsifier found out over whole adapters.
        workspace: threads and memory; a dense result may lie in memory that the next layer uses again.

    Returns:
        Factors that are final as they are, a core between orthonormal bases, or a dense `(out, in)`.

    Raises:
        LayerError: the method returned something else.
    """
    strategy = strategy.for_layer(lambda: chance.generator(0))
    if strategy.level is Level.LAYER:
        with errors_told(strategy, chance.layer):
            combined = cast(LayerWise, strategy).combine(parts)
        combined = _as_merged(combined, parts[0].change.shape, strategy, chance.layer)
        return _scaled(combined, strategy.output_scale)
    if strategy.is_exact_sum:
        return stack([part.weighted for part in parts])
    workspace = workspace or Workspace()
    method = cast(MatrixWise, strategy)
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
    weights = torch.tensor(stacked.weights, dtype=torch.float32, device=stacked.device)

    def ruled(changes: Tensor) -> Tensor:
        with errors_told(method, chance.layer):
            merged = method.rule(changes, weights.clone())  # which other blocks, perhaps in other threads, get as well
        if not isinstance(merged, Tensor) or merged.shape != changes.shape[1:]:
            raise _unexpected(merged, tuple(changes.shape[1:]), method, chance.layer)
        return merged

    if method.acts_in.acts_on_factors:
        return ruled(_as_peft(method, stacked, chance))
    workspace = workspace or Workspace()
    states = sparsifier_states(method, stacked, prepared, workspace, chance.layer)
    result = workspace.dense(*stacked.shape, stacked.device)

    def merge_block(rows: slice) -> None:
        changes = workspace.scratch(len(states), rows.stop - rows.start, stacked.shape[1], device=stacked.device)
        for i, (x, state) in enumerate(zip(changes, states)):
            seen_rows(method, stacked, i, rows, state, chance, out=x)
        result[rows] = ruled(changes)

    rows = stacked.blocks() if method.level is Level.ENTRIES else [slice(0, stacked.shape[0])]
    workspace.each(merge_block, rows)
    return result


def sparsifier_states(
    method: MatrixWise, stacked: ChangeStack, prepared: Sequence[Any] | None, workspace: Workspace, layer: str = ""
) -> Sequence[Any]:
    """What the sparsifier must know of each matrix: given, or found in the stack."""
    if prepared is None and method.sparsifier is not None:
        with errors_told(method, layer):
            prepared = method.sparsifier.prepare(lambda share: layer_thresholds(share, stacked, workspace))
    states = [None] * len(stacked.matrices) if prepared is None else prepared
    if len(states) != len(stacked.matrices):
        raise OptionError(
            f"{method.sparsifier}: prepare() returned {len(states)} states, expected one for each of "
            f"{len(stacked.matrices)} adapters"
        )
    return states


def seen_rows(
    method: MatrixWise, stacked: ChangeStack, i: int, rows: slice, state: Any, chance: LayerChance, out: Tensor
) -> Tensor:
    """Rows of one matrix as the rule gets to see them, in the memory that is given."""
    stacked.rows(i, rows, out=out)
    if method.sparsifier is None:
        return out
    with errors_told(method, chance.layer):
        seen = method.sparsifier.apply(out, state, chance.draws(i), rows)
    _check_seen(seen, out, "apply", method, chance.layer)
    return out if seen is out else out.copy_(seen)


def _as_peft(method: MatrixWise, stacked: ChangeStack, chance: LayerChance) -> Tensor:
    """All factors of one kind at once, with the arithmetic and the draws of PEFT."""
    everything, count = slice(0, stacked.shape[0]), range(len(stacked.matrices))
    changes = [stacked.rows(i, everything) for i in count]
    if sparsifier := method.sparsifier:
        with errors_told(method, chance.layer):
            seen = [sparsifier.as_peft(x, chance.generator(i)) for i, x in zip(count, changes)]
        for treated, x in zip(seen, changes):
            _check_seen(treated, x, "as_peft", method, chance.layer)
        changes = seen
    return torch.stack(changes)


def _scaled(merged: Merged, factor: float) -> Merged:
    """A merged change times a factor; a dense one in place."""
    if factor == 1.0:
        return merged
    if isinstance(merged, Core):
        return Core(merged.U, merged.M * factor, merged.V)
    return merged.scaled(factor) if isinstance(merged, Factors) else merged.mul_(factor)


def _as_merged(merged: Any, shape: tuple[int, int], strategy: Strategy, layer: str) -> Merged:
    """What a method of layers returned, in the precision that everything else has."""
    if isinstance(merged, Core):
        found: tuple[int, ...] = (merged.U.shape[0], merged.V.shape[0])
        merged = Core(merged.U.float(), merged.M.double(), merged.V.float())
    elif isinstance(merged, Factors):
        found, merged = merged.shape, Factors(merged.B.float(), merged.A.float())
    elif isinstance(merged, Tensor):
        found, merged = tuple(merged.shape), merged.to(torch.float32, copy=True)  # which may be scaled in place
    else:
        raise _unexpected(merged, shape, strategy, layer)
    if found != shape:
        raise _unexpected(merged, shape, strategy, layer)
    return merged


def _unexpected(merged: Any, shape: tuple[int, ...], strategy: Strategy, layer: str) -> LayerError:
    return LayerError(
        f"layer {layer}: method {name_of(strategy)!r} returned {_found(merged)}, expected the merged change of shape "
        f"{shape}"
    )


def _check_seen(seen: Any, x: Tensor, function: str, method: MatrixWise, layer: str) -> None:
    if not isinstance(seen, Tensor) or seen.shape != x.shape:
        raise LayerError(
            f"layer {layer}: method {name_of(method)!r}: {function}() of its sparsifier returned {_found(seen)}, "
            f"expected the rows that it treated, of shape {tuple(x.shape)}"
        )


def _found(value: Any) -> str:
    return f"one of shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"


@contextmanager
def errors_told(strategy: Strategy, layer: str = "") -> Iterator[None]:
    """Where a method of the user's own raises, it is named, and the layer if it was at one.

    Raises:
        LayerError: it raised; errors of mergelab stay what they are.
    """
    try:
        yield
    except MergelabError:
        raise
    except Exception as error:
        if not is_own(strategy):
            raise
        where = f" in layer {layer}" if layer else ""
        said = " ".join(f"{type(error).__name__}: {error}".split())
        raise LayerError(f"method {name_of(strategy)!r} failed{where}: {said}") from error
