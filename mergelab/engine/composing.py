"""Several adapters as one for nunchaku: the exact sum, its rank counted and cut where q, k and v are one module."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from mergelab.adapter import Adapter, Source
from mergelab.checks import EXPECTED_NUMBER, is_number, short_repr
from mergelab.describing import base_model_of
from mergelab.devices import AUTO, Device
from mergelab.engine.aligning import load_all
from mergelab.engine.merge import merge
from mergelab.errors import ArchitectureError, OptionError
from mergelab.formats.nunchaku import QUANTIZED, fused, unfused
from mergelab.formats.tools import check_tool
from mergelab.formats.writers import SAY_WHICH
from mergelab.layer import Layer
from mergelab.linalg.values import energy_beyond
from mergelab.linalg.workspace import each_layer
from mergelab.ranks import Rank, check_rank
from mergelab.tables import counted

SLOW_ABOVE = 256
"""The composed rank beyond which nunchaku slows down, as its documentation says."""


def compose(
    loras: Sequence[Adapter | Source],
    strengths: Sequence[float],
    *,
    rank: Rank | None = None,
    device: Device = AUTO,
    progress: bool | None = None,
) -> Adapter:
    """The sum `sum_i strengths[i] * delta_i` of FLUX.1 adapters for nunchaku, as its `compose_lora` makes it.

    nunchaku runs q, k and v of an attention as one module, whose rank is the sum of the three where their `lora_A`
    differ. So they are composed, and truncated, as one module here, and the report counts ranks so. The result has
    layers of their own for each again, which every tool reads, and which come to the same rank in nunchaku.

    Args:
        loras: adapters, or anything that `load` takes, for FLUX.1.
        strengths: one number for each, of any sign.
        rank: of the layers that nunchaku quantises, as for `merge`: `256`, a share of the energy, or a budget; those of
            others cost nothing, and they stay exact. By default the exact sum, at the sum of the ranks.
        device: where to compute, as for `merge`.
        progress: show a bar; by default on a terminal only.

    Returns:
        The adapter with a `report`, which says where the rank is more than nunchaku runs fast, and what a lower one
        costs; `save(path, for_="nunchaku")` writes it, or packed, `save(path, "nunchaku", quantized=...)`.

    Raises:
        OptionError: other counts of strengths and adapters; a strength that is no number.
        ArchitectureError: an adapter for another base model, or one that does not tell.
        MergelabError: as `load` and `merge`.

    Example:
        >>> composed = compose(["miniature/flux/ghost", "miniature/flux/day"], [0.8, -0.4])
        >>> composed.report.relative_error
        0.0
    """
    adapters = load_all(loras)
    return composed(adapters, checked(adapters, strengths), rank=rank, device=device, progress=progress)


def composed(
    adapters: Sequence[Adapter],
    strengths: list[float],
    *,
    rank: Rank | None = None,
    device: Device = AUTO,
    progress: bool | None = None,
) -> Adapter:
    """What `compose` makes of adapters and strengths that are `checked`."""
    rank = None if rank is None else check_rank(rank)
    joined = [replace(adapter, layers=fused(adapter)) for adapter in adapters]
    merged = merge(joined, strengths, "cat", device=device, progress=progress)
    if rank is not None and _quantized(merged):
        present = [i for i, adapter in enumerate(joined) if _quantized(adapter)]
        inside = [replace(joined[i], layers=_quantized(joined[i]), extras={}) for i in present]
        own = [strengths[i] for i in present]
        merged = _cut(merged, merge(inside, own, "svd", rank=rank, device=device, progress=progress), present)
    report = replace(merged.report, notes=(*merged.report.notes, *_slow(merged)))
    return replace(merged, layers=unfused(merged.layers), report=report)


def checked(adapters: Sequence[Adapter], strengths: object) -> list[float]:
    """The strengths as a list; raises unless they are numbers, and as many as adapters that nunchaku composes."""
    if isinstance(strengths, (str, Mapping)) or not isinstance(strengths, Iterable):
        raise OptionError(f"strengths={short_repr(strengths)}: expected a list of numbers, one for each adapter")
    numbers = list(strengths)
    if len(numbers) != len(adapters):
        raise OptionError(
            f"found {counted(len(numbers), 'strength')} and {counted(len(adapters), 'adapter')}, expected a strength "
            "for each"
        )
    if wrong := [number for number in numbers if not is_number(number)]:
        raise OptionError(f"strengths: {short_repr(wrong[0])}: {EXPECTED_NUMBER}; weights by layer are for merge")
    for adapter in adapters:
        if check_tool("nunchaku").way(adapter.architecture) is None:
            remedy = "ml.merge, mergelab merge, takes those of any" if adapter.architecture else SAY_WHICH
            raise ArchitectureError(
                f"{adapter.source}: expected an adapter for FLUX.1, which is what nunchaku composes, found "
                f"{base_model_of(adapter)}; {remedy}"
            )
    return numbers


def _quantized(adapter: Adapter) -> dict[str, Layer]:
    """The layers whose rank costs something."""
    return {name: layer for name, layer in adapter.layers.items() if name.startswith(QUANTIZED)}


def _cut(whole: Adapter, quantized: Adapter, present: Sequence[int]) -> Adapter:
    """The exact sum with its quantised layers from a merge at a rank, of these alone in the inputs that have some."""
    layers = {name: layer for name, layer in whole.layers.items() if not name.startswith(QUANTIZED)}
    layers |= quantized.layers

    def of_all(values: Sequence[float | None]) -> tuple[float | None, ...]:
        known = dict(zip(present, values))
        return tuple(known.get(i) for i in range(len(whole.report.inputs)))

    own = {
        row.name: replace(row, projections=of_all(row.projections), norms=of_all(row.norms))
        for row in quantized.report.layers
    }
    rows = tuple(own.get(row.name, row) for row in whole.report.layers)
    notes = dict.fromkeys((*whole.report.notes, *quantized.report.notes))
    exact, recipe = (json.loads(adapter.metadata["mergelab"]) for adapter in (whole, quantized))
    return replace(
        whole,
        layers={name: layers[name] for name in whole.layers if name in layers},
        metadata={**whole.metadata, "mergelab": json.dumps({**recipe, "inputs": exact["inputs"]}, sort_keys=True)},
        report=replace(whole.report, layers=rows, notes=tuple(notes)),
    )


def _slow(merged: Adapter) -> list[str]:
    """What there is to say of ranks above those that nunchaku runs fast, and what lowering them would cost."""
    above = [name for name, layer in _quantized(merged).items() if layer.rank > SLOW_ABOVE]
    if not above:
        return []
    lost = sum(each_layer(lambda name: float(energy_beyond(merged.matrices(name), SLOW_ABOVE)), above).values())
    energy = sum(row.kept for row in merged.report.layers)
    error = math.sqrt(min(1.0, lost / energy)) if energy > 0 else 0.0
    highest = max(above, key=lambda name: merged.layers[name].rank)
    return [
        f"nunchaku slows down above rank {SLOW_ABOVE}, and the composed rank is above it in "
        f"{counted(len(above), 'module')}, {merged.layers[highest].rank} in {highest}; rank={SLOW_ABOVE}, on the "
        f"command line --rank {SLOW_ABOVE}, lowers it, at a relative error of {error:.2%}"
    ]
