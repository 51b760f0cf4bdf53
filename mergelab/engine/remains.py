"""Why a merge of a layer is nothing, where it is: the inputs cancel, or nothing of them was kept."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from mergelab.engine.blocks import coordinates_of, seen_rows, sparsifier_states
from mergelab.engine.job import LayerChance
from mergelab.linalg.lowrank import inner_products
from mergelab.linalg.workspace import Workspace
from mergelab.methods.method import MatrixWise, Part, Strategy

# A sum whose energy is below this share of that of its terms is what float32 leaves of zero.
CANCELLED = 1e-12


def why_nothing_remains(
    strategy: Strategy,
    parts: Sequence[Part],
    energy: float,
    chance: LayerChance,
    prepared: Sequence[Any] | None,
    workspace: Workspace,
) -> str:
    """A note for the report where nothing is left of a layer but rounding; "" where something is, however small.

    A sum cancels where little is left of what was added, which is what the sparsifier kept, times the scale of the
    output. Of any other rule that is not known: it has to leave exactly nothing.

    Args:
        strategy, parts, chance, prepared, workspace: as of `merge_layer`.
        energy: squared norm of the merge.
    """
    on_factors = strategy.acts_in.acts_on_factors
    if energy > 0 and (on_factors or not strategy.is_sum):
        return ""
    given = sum(inner_products(part.weighted, [part.weighted])[0] for part in parts)
    # Of the largest energy that can be rounding; 0 where the inputs themselves are nothing.
    rounding = CANCELLED * strategy.output_scale**2
    if energy > rounding * given or given == 0:
        return ""
    if strategy.sparsifier is not None and not on_factors:
        given = _energy_seen(cast(MatrixWise, strategy), parts, chance, prepared, workspace)
        if given == 0:
            return "nothing is left: no entry was kept at this density"
    return "the inputs cancel: what is left is rounding" if energy <= rounding * given else ""


def _energy_seen(
    method: MatrixWise,
    parts: Sequence[Part],
    chance: LayerChance,
    prepared: Sequence[Any] | None,
    workspace: Workspace,
) -> float:
    """Squared norm of all that the sparsifier leaves for the rule."""
    (stacked,) = coordinates_of(method, parts).stacks
    energy = 0.0
    for i, state in enumerate(sparsifier_states(method, stacked, prepared, workspace)):
        for rows in stacked.blocks():
            memory = workspace.scratch(rows.stop - rows.start, stacked.shape[1], device=stacked.device)
            seen = seen_rows(method, stacked, i, rows, state, chance, out=memory)
            energy += float(seen.double().square().sum())
    return energy
