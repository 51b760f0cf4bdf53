"""An adapter as it is written for a tool: without what has no place there, and what is to be said about that."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace

from mergelab.errors import FormatError
from mergelab.formats.architectures.registry import ARCHITECTURES
from mergelab.formats.layout import Layout
from mergelab.formats.names import is_module_of
from mergelab.formats.padding import completed
from mergelab.formats.tools.tool import Lack, Tool, Way
from mergelab.layer import AdapterData, owner_of
from mergelab.linalg.lowrank import inner
from mergelab.linalg.workspace import each_layer
from mergelab.tables import counted


@dataclass(frozen=True)
class Fitted:
    """What is written for a tool, and how.

    Attributes:
        data: without what the tool has no place for.
        layout: of the file.
        notes: sentences: what was left out, what the tool passes over, what a user has to do there.
    """

    data: AdapterData
    layout: Layout
    notes: tuple[str, ...] = ()


def fitted(data: AdapterData, tool: Tool, measure: bool = True) -> Fitted:
    """An adapter as a tool can read it.

    Args:
        data: the adapter.
        tool: which is to read it.
        measure: whether the notes say how much of the change is left out.

    Raises:
        ArchitectureError: the tool reads no adapters of this base model.
        FormatError: the tool has no place for anything in the adapter.
    """
    way = tool.checked_way(data.architecture)
    notes, left_out = [], set[str]()
    for lack in (*way.lacks, *_strange_text_encoders(data, way)):
        if names := lack.of([name for name in (*data.layers, *data.extras) if name not in left_out]):
            notes.append(_sentence(data, tool, lack, names, measure))
            left_out |= set() if lack.kept else set(names)
    layers = {name: layer for name, layer in data.layers.items() if name not in left_out}
    extras = {key: tensor for key, tensor in data.extras.items() if key not in left_out}
    if not layers and data.layers:
        raise FormatError(
            f"{tool.title} has no place for what the adapter holds, {counted(len(data.layers), 'layer')}; choose "
            "another tool"
        )
    if way.note and layers:
        notes.append(f"{tool.title}: {way.note.format(rank=max(layer.rank for layer in layers.values()))}")
    rest = replace(data, layers=layers, extras=extras)
    whole = completed(rest) if way.completed else rest
    if added := len(whole.layers) - len(layers):
        verb = "is" if added == 1 else "are"
        notes.append(f"{counted(added, 'layer')} of zeros {verb} added, which {tool.title} expects beside the others")
    return Fitted(whole, way.layout, tuple(notes))


def _strange_text_encoders(data: AdapterData, way: Way) -> list[Lack]:
    """Layers of text encoders that the base model has not; a folder is one of whatever model."""
    known = ARCHITECTURES.get(data.architecture or "")
    if known is None or way.layout.is_folder:
        return []
    keys = [key for key in (*data.layers, *data.extras) if key.startswith("text_encoder")]
    strange = [re.escape(key) for key in keys if not is_module_of(known, owner_of(key))]
    return [Lack(f"text encoders that are none of {known.title}'s", f"^({'|'.join(strange)})$")] if strange else []


def _sentence(data: AdapterData, tool: Tool, lack: Lack, names: list[str], measure: bool) -> str:
    """What a tool has no place for, how many tensors or layers of it there are, and how much they are."""
    layers = [name for name in names if name in data.layers]
    count = counted(len(layers), "layer") if layers else counted(len(names), "tensor")
    which = f"({count}, {names[0]} the first)"
    if lack.kept:
        return f"{tool.title} reads {lack.what} only if {lack.kept} {which}; they stay in the file"
    share = f", {norm_share(data, layers):.2%} of the squared norm of the change" if layers and measure else ""
    return f"{tool.title} has no place for {lack.what} {which}: left out{share}"


def norm_share(data: AdapterData, names: Iterable[str]) -> float:
    """The squared norm of some layers as a share of that of all, in [0, 1]; shares of several groups add up."""

    def squared(name: str) -> float:
        factors = data.matrices(name)
        return max(0.0, float(inner(factors, factors)))

    norms = each_layer(squared, data.layers)
    whole = sum(norms.values())
    return sum(norms[name] for name in names) / whole if whole > 0 else 0.0
