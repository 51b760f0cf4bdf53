"""What can be wrong with a file, check by check: `CHECKS` is the table."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping

import torch

from mergelab.diagnosing.diagnosis import LEVELS, Finding
from mergelab.diagnosing.specimen import Specimen
from mergelab.formats.balancing import Pair
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
            f"the file ends too early: {missing:,} of {glance.promised:,} bytes are missing ({missing / glance.promised:.1%}); "
            "download or copy it again",
        )


def _not_numbers(specimen: Specimen) -> Iterator[Finding]:
    bad = {key: values.not_finite for key, values in specimen.values.items() if values.not_finite}
    if bad:
        worst = max(bad, key=lambda key: bad[key])
        yield Finding(
            "problem",
            f"{_some(bad, specimen.values, 'tensor')} hold NaN or infinity, {sum(bad.values()):,} values in all, most in "
            f"{worst}: the file is damaged or its training diverged; use an earlier checkpoint",
            tuple(bad),
        )


def _too_large(specimen: Specimen) -> Iterator[Finding]:
    adapter = specimen.adapter
    bad = {key.rpartition(".lora")[0] for key, values in specimen.values.items() if values.not_finite}
    if adapter is None or bad:
        return
    absurd = [name for name in adapter.layers if name not in specimen.spectra]
    if absurd:
        yield Finding(
            "problem",
            f"{_some(absurd, adapter.layers, 'layer')} hold values far beyond those of any adapter ({absurd[0]} the first): "
            "the file is damaged, or its alpha is",
            tuple(absurd),
        )


def _nothing_done(specimen: Specimen) -> Iterator[Finding]:
    dead = [name for name, rank in specimen.ranks.items() if rank == 0]
    if dead and len(dead) == len(specimen.ranks):
        why = "every alpha is 0" if all(_scaling(specimen, name) == 0 for name in dead) else "every lora_B or lora_A is zero"
        yield Finding("problem", f"the adapter changes nothing, at whatever weight: {why}; it was never trained, or saved before")
    elif dead:
        yield Finding(
            "warning",
            f"{_some(dead, specimen.ranks, 'layer')} change nothing, their delta weight is zero ({dead[0]} the first)",
            tuple(dead),
        )


def _scaling(specimen: Specimen, name: str) -> float:
    return specimen.adapter.layers[name].scaling if specimen.adapter else 1.0


def _padded(specimen: Specimen) -> Iterator[Finding]:
    adapter = specimen.adapter
    if adapter is None:
        return
    layers = {name: adapter.layers[name] for name, rank in specimen.ranks.items() if rank}
    padded = [name for name, layer in layers.items() if specimen.ranks[name] < layer.rank]
    if padded:
        stored, needed = (sum(n * _width(layers[name]) for name, n in ranks.items()) for ranks in _both(specimen, layers))
        most = max(specimen.ranks[name] for name in layers)
        yield Finding(
            "note",
            f"{_some(padded, layers, 'layer')} hold a higher rank than they use ({layers[padded[0]].rank} for "
            f"{specimen.ranks[padded[0]]} in {padded[0]}): without the padding the file would be {1 - needed / stored:.0%} smaller; "
            f"mergelab resize FILE --rank {most} -o OUT loses nothing",
            tuple(padded),
        )


def _both(specimen: Specimen, layers: Mapping[str, Layer]) -> tuple[dict[str, int], dict[str, int]]:
    return {name: layer.rank for name, layer in layers.items()}, {name: specimen.ranks[name] for name in layers}


def _width(layer: Layer) -> int:
    """How many parameters one rank takes."""
    return layer.shape[0] + math.prod(layer.shape[1:])


def _in_half(specimen: Specimen) -> Iterator[Finding]:
    """What a plain cast to float16 would do, as many tools do one when they load a file."""
    if specimen.adapter is None:
        return
    layers = {n: x for n, x in specimen.adapter.layers.items() if n in specimen.spectra and _is_wider(x)}

    def lost(name: str) -> float:
        layer = layers[name]
        return Pair(name, "", "", layer.lora_A, layer.lora_B).lost_share(torch.float16)

    shares = {name: share for name, share in each_layer(lost, layers).items() if share > _HALF.eps}
    if shares:
        worst = max(shares, key=lambda name: shares[name])
        yield Finding(
            "warning",
            f"a plain cast to float16 loses up to {shares[worst]:.0%} of a layer, in {_some(shares, layers, 'layer')} "
            f"({worst} the worst): mergelab convert FILE -o OUT --dtype float16 balances the factors before it casts them",
            tuple(shares),
        )


def _is_wider(layer: Layer) -> bool:
    """Whether its factors are stored, in numbers that float16 may not have."""
    return isinstance(layer, LoraLayer) and any(x.dtype != torch.float16 for x in (layer.lora_A, layer.lora_B))


def _in_a_byte(specimen: Specimen) -> Iterator[Finding]:
    bytes_ = [key for key in specimen.glance.entries if specimen.glance.dtype(key).startswith("float8")]
    if bytes_:
        yield Finding(
            "warning",
            f"{_some(bytes_, specimen.glance.entries, 'tensor')} are stored in float8, which keeps one or two digits and not every "
            "tool reads; mergelab convert FILE -o OUT --dtype bfloat16 stores what is left in a common dtype",
            tuple(bytes_),
        )


def _header_ranks(specimen: Specimen) -> Iterator[Finding]:
    said, data = specimen.glance.metadata.get("ss_network_dim", ""), specimen.data
    if data is None or not said.isdecimal() or not data.layers:
        return
    stored = {entry.shape[0] for entry in specimen.glance.entries.values() if entry.shape}
    if int(said) not in stored | {layer.rank for layer in data.layers.values()}:
        yield Finding("note", f"the header says rank {said} (ss_network_dim), which no layer has: it is of another file")


def _reading_notes(specimen: Specimen) -> Iterator[Finding]:
    """What is said when it is loaded."""
    notes = carried(specimen.adapter.report.notes) if specimen.adapter else ()
    shown = [note for note in notes if not note.startswith("alpha = ")]
    yield from (Finding("note", note) for note in shown)


def _some(part: Iterable[str], whole: Iterable[str], thing: str) -> str:
    """ "3 of 192 layers" """
    few, all_ = len(list(part)), len(list(whole))
    return f"all {counted(all_, thing)}" if few == all_ > 1 else f"{few} of {counted(all_, thing)}"


CHECKS: tuple[Callable[[Specimen], Iterator[Finding]], ...] = (
    _cut_short,
    _not_numbers,
    _too_large,
    _nothing_done,
    _in_half,
    _in_a_byte,
    _padded,
    _header_ranks,
    _reading_notes,
)
"""In the order in which findings of one level are shown."""
