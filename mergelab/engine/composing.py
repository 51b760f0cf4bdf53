"""Several adapters as one for nunchaku: the exact sum, its rank counted and cut where q, k and v are one module."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch

from mergelab.adapter import Adapter, Source
from mergelab.checks import EXPECTED_NUMBER, is_number, short_repr
from mergelab.engine.aligning import load_all
from mergelab.engine.merge import merge
from mergelab.errors import ArchitectureError, OptionError
from mergelab.formats.nunchaku import QUANTIZED, fused, unfused
from mergelab.formats.tools import check_tool
from mergelab.formats.writers import SAY_WHICH
from mergelab.layer import base_model_of
from mergelab.ranks import Rank
from mergelab.tables import counted

SLOW_ABOVE = 256
"""The composed rank beyond which nunchaku slows down, as its documentation says."""


def compose(
    loras: Sequence[Adapter | Source],
    strengths: Sequence[float],
    *,
    rank: Rank | None = None,
    device: torch.device | str | None = None,
    progress: bool | None = None,
) -> Adapter:
    """The sum `sum_i strengths[i] * delta_i` of FLUX.1 adapters for nunchaku, as its `compose_lora` makes it.

    nunchaku runs q, k and v of an attention as one module, whose rank is the sum of the three where their `lora_A`
    differ. So they are composed, and truncated, as one module here, and the report counts ranks so. The result has
    layers of their own for each again, which every tool reads, and which come to the same rank in nunchaku.

    Args:
        loras: adapters, or anything that `load` takes, for FLUX.1.
        strengths: one number for each, of any sign.
        rank: of the result, as for `merge`: `256`, a share of the energy, or a budget. By default the exact sum, at the
            sum of the ranks.
        device: where to compute, "cpu" by default.
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
    check_inputs(adapters, strengths)
    joined = [replace(adapter, layers=fused(adapter)) for adapter in adapters]
    method, target = ("cat", None) if rank is None else ("svd", rank)
    merged = merge(joined, list(strengths), method, rank=target, device=device, progress=progress)
    report = replace(merged.report, notes=(*merged.report.notes, *_slow(merged)))
    return replace(merged, layers=unfused(merged.layers), report=report)


def check_inputs(adapters: Sequence[Adapter], strengths: object) -> None:
    """Raise unless these are adapters that nunchaku composes, and as many numbers."""
    if isinstance(strengths, (str, Mapping)) or not isinstance(strengths, Sequence):
        raise OptionError(f"strengths={short_repr(strengths)}: expected a list of numbers, one for each adapter")
    if len(strengths) != len(adapters):
        raise OptionError(
            f"found {counted(len(strengths), 'strength')} and {counted(len(adapters), 'adapter')}, expected a strength "
            "for each"
        )
    if wrong := [strength for strength in strengths if not is_number(strength)]:
        raise OptionError(f"strengths: {short_repr(wrong[0])}: {EXPECTED_NUMBER}; weights by layer are for merge")
    for adapter in adapters:
        if check_tool("nunchaku").way(adapter.architecture) is None:
            remedy = "ml.merge, mergelab merge, takes those of any" if adapter.architecture else SAY_WHICH
            raise ArchitectureError(
                f"{adapter.source}: expected an adapter for FLUX.1, which is what nunchaku composes, found "
                f"{base_model_of(adapter)}; {remedy}"
            )


def _slow(merged: Adapter) -> list[str]:
    """What there is to say of ranks above those that nunchaku runs fast, and what lowering them would cost."""
    above = {
        name: layer for name, layer in merged.layers.items() if name.startswith(QUANTIZED) and layer.rank > SLOW_ABOVE
    }
    if not above:
        return []
    rows = replace(merged, layers=above).resize(SLOW_ABOVE).report.layers
    lost, norm = sum(max(0.0, row.energy - row.kept) for row in rows), merged.norm()
    error = math.sqrt(lost) / norm if norm > 0 else 0.0
    highest = max(above, key=lambda name: above[name].rank)
    return [
        f"nunchaku slows down above rank {SLOW_ABOVE}, and the composed rank is above it in "
        f"{counted(len(above), 'module')}, {above[highest].rank} in {highest}; rank={SLOW_ABOVE}, on the command line "
        f"--rank {SLOW_ABOVE}, lowers it, at a relative error of {error:.2%}"
    ]
