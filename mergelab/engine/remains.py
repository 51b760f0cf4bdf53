"""Why a merge of a layer is nothing, where it is: the inputs cancel, or nothing of them was kept."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from mergelab.engine.blocks import OneLayer, coordinates_of, seen_rows, sparsifier_states
from mergelab.linalg.workspace import Workspace
from mergelab.methods.method import MatrixWise, Strategy
from mergelab.report import VANISHED

# A sum whose energy is below this share of that of its terms is what float32 leaves of zero. What another rule, perhaps
# of a user's own, makes of its terms may be as small: it has to be beyond doubt.
CANCELLED, CANCELLED_BY_RULE = 1e-12, 1e-24


def why_nothing_remains(
    strategy: Strategy,
    layer: OneLayer,
    energy: float,
    given: float,
    prepared: Sequence[Any] | None,
    workspace: Workspace,
) -> str:
    """A note for the report where nothing is left of a layer but rounding; "" where something is, however small.

    The inputs cancel where next to nothing is left of what the rule saw, times the scale of its output.

    Args:
        strategy, prepared, workspace: as of `merge_layer`.
        layer: what was merged.
        energy: squared norm of the merge.
        given: sum of the squared norms of the parts.
    """
    on_factors = strategy.acts_in.acts_on_factors
    adds = strategy.is_sum and not on_factors
    rounding = (CANCELLED if adds else CANCELLED_BY_RULE) * strategy.output_scale**2
    if given <= VANISHED:
        return "nothing is there: the inputs are zero, or too small for float32" if energy <= VANISHED else ""
    if energy > rounding * given:
        return ""
    if strategy.output_scale == 0:
        return "nothing is left: the merge is multiplied by 0"
    if strategy.sparsifier is not None and not on_factors:
        given = _energy_seen(cast(MatrixWise, strategy), layer, prepared, workspace)
        if given == 0:
            return "nothing is left: no entry was kept at this density"
    elif strategy.sparsifier is not None and energy == 0:
        return "nothing is left: no entry was kept at this density, or the inputs cancel"
    if energy > rounding * given:
        return ""
    return f"the inputs cancel{'' if adds else ', by this rule'}: what is left is rounding"


def _energy_seen(method: MatrixWise, layer: OneLayer, prepared: Sequence[Any] | None, workspace: Workspace) -> float:
    """Squared norm of all that the sparsifier leaves for the rule."""
    (stacked,) = coordinates_of(method, layer.parts, layer.span).stacks
    energy = 0.0
    for i, state in enumerate(prepared or sparsifier_states(method, [stacked], workspace, layer.chance.layer)[0]):
        for rows in stacked.blocks():
            memory = workspace.scratch(rows.stop - rows.start, stacked.shape[1], device=stacked.device)
            seen = seen_rows(method, stacked, i, rows, state, layer.chance, out=memory)
            energy += float(seen.double().square().sum())
    return energy
