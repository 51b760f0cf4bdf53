"""What a file is, fact by fact: `FACTS` is the table."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping

from mergelab.describing import base_model_of
from mergelab.diagnosing.specimen import Specimen
from mergelab.formats import trigger_words
from mergelab.formats.architectures.registry import ARCHITECTURES
from mergelab.formats.authors import author_of, declared_base, spelling_of
from mergelab.formats.glancing import outline_of
from mergelab.formats.recognising import detect
from mergelab.layer import BIAS_SUFFIX, AdapterData, DerivedLayer, Layer, LoraLayer, terms_of
from mergelab.publishing.recipe import recipe_of
from mergelab.report import USUAL_ALPHA
from mergelab.tables import counted

_LONGEST = 200
_NONE = "none: alpha = rank"


def facts_of(specimen: Specimen) -> dict[str, str]:
    """All that is known, in the order of the table."""
    return {name: text for name, fact in FACTS.items() if (text := _in_a_line(fact(specimen)))}


def _in_a_line(text: str) -> str:
    """What may come from a header, short and without line breaks or anything that steers a terminal."""
    line = "".join(c if c.isprintable() else "?" for c in " ".join(text.split()))
    return line if len(line) <= _LONGEST else f"{line[:_LONGEST]}..."


def _made_by(specimen: Specimen) -> str:
    header, keys = specimen.glance.metadata, specimen.glance.entries
    recipe = recipe_of(header)
    again = (
        f"; resized by mergelab {recipe.version}" if recipe and (recipe.method == "resize" or recipe.resized) else ""
    )
    if recipe and recipe.method != "resize":
        inputs = ", ".join(f"{one.name} at {one.weight}" for one in recipe.inputs)
        return f"mergelab {recipe.version}: {recipe.method} of {inputs}{again}"
    author = author_of(header)
    style = f"; keys in the style of {known}" if (known := spelling_of(keys)) else ""
    return f"{author or 'not told by the header'}{again}{style}" if keys else f"{author}{again}"


def _for(specimen: Specimen) -> str:
    data, header = specimen.data, specimen.glance.metadata
    said = f"header: {', '.join(declared_base(header))}" if declared_base(header) else ""
    if data is None or not data.layers:
        return said
    known = ARCHITECTURES.get(data.architecture or "")
    if known is None:
        return "; ".join(filter(None, [base_model_of(data), said]))
    shapes = {name: layer.shape for name, layer in data.layers.items()}
    how = "the names and shapes of its layers" if detect(shapes, {}) == known.id else "its header"
    told = "as you say" if specimen.told and specimen.adapter else f"told by {how}"
    return "; ".join(filter(None, [f"{known.title}, {told}", said]))


def _holds(specimen: Specimen) -> str:
    data = specimen.data
    if data is None:
        return _tensors(specimen)
    kinds = Counter(_kind(layer) for layer in data.layers.values())
    parts = Counter(name.partition(".")[0] for name in data.layers)
    what = ", ".join(f"{kind} in {counted(count, 'layer')}" for kind, count in kinds.most_common())
    biases = [key for key in data.extras if key.endswith(BIAS_SUFFIX)]
    others = [key for key in data.extras if not key.endswith(BIAS_SUFFIX)]
    beside = [counted(len(biases), "bias difference")] if biases else []
    beside += [f"{counted(len(others), 'other tensor')} ({others[0]}, ...)"] if others else []
    where = f" ({', '.join(f'{part} {count}' for part, count in parts.items())})" if parts else ""
    return "; ".join([f"{what}{where}", *beside])


def _tensors(specimen: Specimen) -> str:
    """Of a file whose layers are not known."""
    entries = specimen.glance.entries
    if not entries:
        return ""
    key = max(entries, key=lambda key: math.prod(entries[key].shape))
    return f"{counted(len(entries), 'tensor')}, the largest {key} {entries[key].shape}"


def _kind(layer: Layer) -> str:
    return f"{layer.kind} for convolutions" if len(layer.shape) == 4 and layer.kind == "LoRA" else layer.kind


def _ranks(specimen: Specimen) -> str:
    data = specimen.data
    if data is None:
        return ""
    layers = data.layers.values()
    dims = _counts(dim for layer in layers if (dim := _dim(layer)))
    ranks = _counts(layer.rank for layer in layers) if not specimen.needs_base else ""
    text = f"{dims}; as factors rank {ranks}" if dims != ranks and dims and ranks else dims or ranks
    spectra = [s for s in specimen.spectra.values() if float(s[0]) > 0]
    if spectra:
        nearly = [1 + int((s.square().cumsum(0) < 0.99 * s.square().sum()).sum()) for s in spectra]
        text += f"; 99 % of the energy is in {sum(nearly) / len(nearly):.1f} directions of a layer on average"
    return text


def _alphas(specimen: Specimen) -> str:
    adapter, data, keys = specimen.adapter, specimen.data, list(specimen.glance.entries)
    if data is None or (adapter is None and not specimen.needs_base):
        return ""
    terms = _terms(data)
    if any(term.kind == "DoRA" for term in terms):  # the scaling is in its sum of weight and change
        outline = outline_of(specimen.glance) if any(key.endswith("alpha") for key in keys) else None
        terms = _terms(outline) if outline else []
    notes = adapter.report.notes if adapter else ()
    origin = _origin(data.dialect, specimen.glance.metadata, keys, notes)
    if not origin:
        return _NONE if adapter else ""
    scalings = {round(term.scaling, 6) for term in terms}
    share = "the rank" if scalings == {1.0} else f"{_range(scalings)} of the rank"
    alphas = _counts(round(term.scaling * _dim(term), 4) for term in terms)
    return f"{alphas} ({share}), from {origin}" if alphas else ""


def _terms(data: AdapterData) -> list[LoraLayer | DerivedLayer]:
    """Of all layers, those that have a rank in the file."""
    return [term for layer in data.layers.values() for term in terms_of(layer) if _dim(term)]


def _dim(layer: Layer) -> int:
    """The rank that a layer has in its file, by which alpha is divided; 0 where it has none."""
    return layer.dim if isinstance(layer, DerivedLayer) else layer.rank


def _origin(dialect: str | None, header: Mapping[str, str], keys: list[str], notes: Iterable[str]) -> str:
    """Where alphas come from: a file may have some of each; "" where it has none."""
    said = [note for note in notes if note.startswith("alpha = ") and "header" in note]
    places = ["tensors"] if any(key.endswith("alpha") for key in keys) else []
    places += ["adapter_config.json"] if dialect == "peft" else []
    places += ["the header's lora_adapter_metadata"] if header.get("lora_adapter_metadata") else []
    places += [note.rpartition(" from ")[2] for note in said]
    none = places and any(note.endswith(USUAL_ALPHA) for note in notes)
    return " and ".join([*places, *(["the rank where there is none"] if none else [])])


def _stored(specimen: Specimen) -> str:
    glance = specimen.glance
    dtypes = Counter(glance.dtype(key) for key in glance.entries if not key.endswith("alpha"))
    kinds = ", ".join(dtype if len(dtypes) == 1 else f"{dtype} x {count}" for dtype, count in dtypes.most_common())
    return f"{kinds}, {_bytes(glance.size)}" if dtypes else ""


def _words(specimen: Specimen) -> str:
    return ", ".join(trigger_words([specimen.glance.metadata]))


def _counts(numbers: Iterable[float]) -> str:
    """Numbers in words: the only one, or how often each, the most frequent first."""
    counts = Counter(numbers)
    shown = [f"{n:g}" if len(counts) == 1 else f"{n:g} x {count}" for n, count in counts.most_common(5)]
    return ", ".join(shown) + (", ..." if len(counts) > 5 else "")


def _range(numbers: set[float]) -> str:
    least, most = min(numbers, default=math.nan), max(numbers, default=math.nan)
    return f"{least:g}" if least == most else f"{least:g} to {most:g}"


def _bytes(size: int) -> str:
    return f"{size / 1e6:.1f} MB" if size >= 1e5 else f"{size / 1e3:.1f} kB"


FACTS: dict[str, Callable[[Specimen], str]] = {
    "made by": _made_by,
    "for": _for,
    "holds": _holds,
    "ranks": _ranks,
    "alphas": _alphas,
    "stored as": _stored,
    "trigger words": _words,
}
"""Name -> what is known of it, "" for nothing."""
