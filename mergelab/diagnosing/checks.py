"""What can be wrong with a file, check by check: `CHECKS` is the table."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import NamedTuple

import torch

from mergelab.diagnosing.diagnosis import LEVELS, Finding
from mergelab.diagnosing.specimen import Specimen
from mergelab.formats.balancing import Pair, balanced
from mergelab.layer import Layer, LoraLayer
from mergelab.linalg.workspace import each_layer
from mergelab.report import carried
from mergelab.tables import counted

_HALF = torch.finfo(torch.float16)


def findings_of(specimen: Specimen) -> tuple[Finding, ...]:
    """What all checks find, the most important first."""
    found = [finding for check in CHECKS for finding in check(specimen)]
    return tuple(sorted(found, key=lambda finding: LEVELS.index(finding.level)))


def _cut_short(specimen: Specimen) -> Iterator[Finding]:
    glance = specimen.glance
    if glance.size < glance.promised:
        missing = glance.promised - glance.size
        yield Finding(
            "problem",
            f"the file ends too early: {missing:,} of {glance.promised:,} bytes are missing "
            f"({missing / glance.promised:.1%}); download or copy it again",
        )


def _not_numbers(specimen: Specimen) -> Iterator[Finding]:
    bad = {key: values.not_finite for key, values in specimen.values.items() if values.not_finite}
    if bad:
        worst = max(bad, key=lambda key: bad[key])
        yield Finding(
            "problem",
            f"{_some(bad, specimen.values, 'tensor')} hold NaN or infinity, {counted(sum(bad.values()), 'value')} in "
            f"all, most in {worst}: the file is damaged or its training diverged; use an earlier checkpoint",
            tuple(bad),
        )


def _not_computable(specimen: Specimen) -> Iterator[Finding]:
    adapter, faults = specimen.adapter, specimen.faults
    if adapter is None or not faults or any(values.not_finite for values in specimen.values.values()):
        return  # what is no number is told by the tensor
    name, why = next(iter(faults.items()))
    yield Finding(
        "problem",
        f"{_some(faults, adapter.layers, 'layer')} cannot be computed with; of the first, {name}, {why}",
        tuple(faults),
    )


def _nothing_done(specimen: Specimen) -> Iterator[Finding]:
    adapter = specimen.adapter
    dead = [name for name, rank in specimen.ranks.items() if rank == 0]
    if adapter is None or not dead:
        return
    if len(dead) < len(adapter.layers):
        yield Finding(
            "warning",
            f"{_some(dead, adapter.layers, 'layer')} change nothing, their delta weight is zero ({dead[0]} the first)",
            tuple(dead),
        )
    else:
        why = "every alpha is 0" if all(layer.scaling == 0 for layer in adapter.layers.values()) else "factors are zero"
        yield Finding("problem", f"no layer changes anything, at whatever weight: {why}; was it saved before training?")


def _padded(specimen: Specimen) -> Iterator[Finding]:
    layers = (
        {name: layer for name, layer in specimen.adapter.layers.items() if _is_plain(layer)} if specimen.adapter else {}
    )
    used = {name: rank for name, rank in specimen.ranks.items() if rank and name in layers}
    padded = [name for name in used if used[name] < layers[name].rank]
    if not padded:
        return
    stored, needed = (
        sum(rank * _width(layers[name]) for name, rank in ranks.items())
        for ranks in ({name: layers[name].rank for name in used}, used)
    )
    first = padded[0]
    yield Finding(
        "note",
        f"{_some(padded, layers, 'layer')} have a higher rank than they use ({layers[first].rank} for {used[first]} in "
        f"{first}): {1 - needed / stored:.0%} of the parameters are padding; mergelab resize FILE --rank "
        f"{max(used.values())} -o OUT loses nothing",
        tuple(padded),
    )


def _is_plain(layer: Layer) -> bool:
    """Whether its rank is that of the factors in the file."""
    return isinstance(layer, LoraLayer)


def _width(layer: Layer) -> int:
    """How many parameters one rank takes."""
    return layer.shape[0] + math.prod(layer.shape[1:])


def _in_half(specimen: Specimen) -> Iterator[Finding]:
    """What a plain cast to float16 would do, as many tools do one when they load a file."""
    if specimen.adapter is None:
        return
    layers = {n: x for n, x in specimen.adapter.layers.items() if n in specimen.spectra and _is_wider(x)}

    lost = {name: x for name, x in each_layer(lambda name: _cast(name, layers[name]), layers).items() if x.share}
    over = {name: x for name, x in lost.items() if x.overflowing}
    rest = {name: x for name, x in lost.items() if not x.overflowing}
    if over:
        worst, count = max(over, key=lambda name: over[name].overflowing), sum(x.overflowing for x in over.values())
        yield Finding(
            "warning",
            f"{counted(count, 'value')} overflow in float16, whose largest number is {_HALF.max:g}: a plain cast makes "
            f"them infinite, in {_some(over, layers, 'layer')} ({worst} the worst); {_remedy(over)}",
            tuple(over),
        )
    if rest:
        worst = max(rest, key=lambda name: rest[name].share)
        yield Finding(
            "warning",
            f"a plain cast to float16 loses up to {rest[worst].share:.0%} of a layer, in "
            f"{_some(rest, layers, 'layer')} ({worst} the worst); {_remedy(rest)}",
            tuple(rest),
        )


class _Cast(NamedTuple):
    """What a cast to float16 does to a layer: values that overflow, the share lost, whether balanced factors fit."""

    overflowing: int
    share: float
    fits: bool


def _cast(name: str, layer: Layer) -> _Cast:
    pair = Pair(name, "", "", layer.lora_A, layer.lora_B)
    share = pair.lost_share(torch.float16)
    if share <= _HALF.eps:
        return _Cast(0, 0.0, True)
    overflowing = sum(int((x.abs() > _HALF.max).sum()) for x in (pair.down, pair.up))
    fits = not any(one.loses(torch.float16) for one in balanced([pair], [True], torch.float16))
    return _Cast(overflowing, share, fits)


def _remedy(lost: Mapping[str, _Cast]) -> str:
    if all(cast.fits for cast in lost.values()):
        return "mergelab convert FILE -o OUT --format same --dtype float16 balances the factors"
    return "no balance of the factors helps: keep bfloat16 or float32"


def _is_wider(layer: Layer) -> bool:
    """Whether its factors are stored, in numbers that float16 may not have."""
    return isinstance(layer, LoraLayer) and any(x.dtype != torch.float16 for x in (layer.lora_A, layer.lora_B))


def _in_a_byte(specimen: Specimen) -> Iterator[Finding]:
    bytes_ = [key for key in specimen.glance.entries if specimen.glance.dtype(key).startswith("float8")]
    if bytes_:
        yield Finding(
            "warning",
            f"{_some(bytes_, specimen.glance.entries, 'tensor')} are stored in float8, which holds about one digit: "
            "nothing brings back what that lost; mergelab reads it, and writes float32 or what --dtype says",
            tuple(bytes_),
        )


def _header_ranks(specimen: Specimen) -> Iterator[Finding]:
    said, data = specimen.glance.metadata.get("ss_network_dim", ""), specimen.data
    if data is None or not said.isdecimal() or not data.layers:
        return
    stored = {entry.shape[0] for entry in specimen.glance.entries.values() if entry.shape}
    if int(said) not in stored | {layer.rank for layer in data.layers.values()}:
        yield Finding("note", f"the header's ss_network_dim = {said} is the rank of no layer")


def _reading_notes(specimen: Specimen) -> Iterator[Finding]:
    """What is said when it is loaded."""
    notes = carried(specimen.adapter.report.notes) if specimen.adapter else ()
    shown = [note for note in notes if not note.startswith("alpha = ")]
    yield from (Finding("note", note) for note in shown)


def _some(part: Iterable[str], whole: Iterable[str], thing: str) -> str:
    """How many of all.

    Example:
        >>> _some("a", "abc", "layer"), _some("abc", "abc", "layer")
        ('1 of 3 layers', 'all 3 layers')
    """
    few, all_ = len(list(part)), len(list(whole))
    return f"all {counted(all_, thing)}" if few == all_ > 1 else f"{few} of {counted(all_, thing)}"


CHECKS: tuple[Callable[[Specimen], Iterator[Finding]], ...] = (
    _cut_short,
    _not_numbers,
    _not_computable,
    _nothing_done,
    _in_half,
    _in_a_byte,
    _padded,
    _header_ranks,
    _reading_notes,
)
"""In the order in which findings of one level are shown."""
