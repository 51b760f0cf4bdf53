"""Which format or tool a file is for, and whether it can be written at all: settled before anything is computed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from mergelab.errors import OptionError, OutputError
from mergelab.formats.comfy import comfy
from mergelab.formats.dialects import common_dialect
from mergelab.formats.kohya import kohya
from mergelab.formats.layout import Layout, Writer
from mergelab.formats.messages import about
from mergelab.formats.nunchaku import QuantizedModel, nunchaku
from mergelab.formats.peft import diffusers, has_name_in_diffusers, peft, split_components
from mergelab.formats.same import as_spelt, same_format
from mergelab.formats.tools import PACKED, Fitted, check_tool, fitted, other_tools
from mergelab.layer import AdapterData, DerivedLayer, Layer, LoraLayer, layer_of

_WRITERS: Mapping[str, Writer] = {
    "diffusers": diffusers,
    "kohya": kohya,
    "comfy": comfy,
    "peft": peft,
    "same": as_spelt,
    "nunchaku": nunchaku,
}
FORMATS = tuple(_WRITERS)
LARGEST = 6e9
"""Bytes of factors that are computed to write changes of other kinds exactly."""


def check_format(name: object) -> str:
    """Return a known format's name, or raise `OptionError`."""
    if name not in FORMATS:
        raise OptionError(f"format={name!r}: expected one of {', '.join(map(repr, FORMATS))}")
    return str(name)


def check_choice(format: object, for_: object, quantized: object = None) -> None:
    """Raise `OptionError` unless there are such a format and tool, not both, and a model only where it is used."""
    if format is not None:
        check_format(format)
    if for_ is not None:
        tool = check_tool(for_)
        if format is not None:
            raise OptionError(f"format={format!r} and for_={tool.name!r}: a tool has a format of its own; give one")
    if quantized is not None and format != "nunchaku":
        raise OptionError(
            f"quantized= (--quantized) names the model that format 'nunchaku' is packed for, found format={format!r}"
        )


def to_dtype(name: object) -> torch.dtype | None:
    """The torch dtype of "float32", "bfloat16", "bf16", ...; None stays None."""
    short = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16", "f32": "float32", "f16": "float16"}
    dtype = name if isinstance(name, torch.dtype) else getattr(torch, short.get(str(name), str(name)), None)
    if name is not None and dtype not in (torch.float32, torch.float16, torch.bfloat16, torch.float64):
        raise OptionError(f"dtype={name!r}: expected 'float32', 'float16', 'bfloat16' or 'float64'")
    return dtype


def plan(
    data: AdapterData,
    format: str | None = None,
    for_: str | None = None,
    measure: bool = True,
    quantized: Path | None = None,
) -> Fitted:
    """What is written, and how.

    Args:
        data: an adapter.
        format: None: diffusers' where a pipeline has names for all layers, else the dialect of the inputs.
        for_: a tool, instead of a format.
        measure: whether the notes say how much of the change a tool has no place for.
        quantized: the model that format "nunchaku" is packed for.

    Raises:
        OptionError: no such format or tool, or both; a packed format without a model.
        OutputError: changes of other kinds than LoRA, whose exact factors are too large to be meant.
        ArchitectureError, FormatError: the tool reads no such adapters; there is no dialect to keep.
    """
    check_choice(format, for_, quantized)
    data = _as_factors(data)
    if format == PACKED.name:
        model = QuantizedModel.of(quantized)
        with about(data.source):
            whole = fitted(data, PACKED, measure)
        return replace(
            whole, layout=replace(whole.layout, quantized=model.path), notes=(*whole.notes, f"packed for {model.said}")
        )
    with about(data.source):
        if for_ is not None:
            return fitted(data, check_tool(for_), measure)
        if format is None:
            format = "diffusers" if all(has_name_in_diffusers(data, name) for name in data.layers) else "same"
        format = same_format(data) if format == "same" else format
    note = other_tools(data, format)
    return Fitted(data, Layout(format), (note,) if note else ())


def _as_factors(data: AdapterData) -> AdapterData:
    """With one pair of factors for every layer."""
    others = {name: layer for name, layer in data.layers.items() if isinstance(layer, DerivedLayer)}
    size = sum(4 * x.rank * (x.shape[0] + math.prod(x.shape[1:])) for x in others.values())
    if size > LARGEST:
        name, layer = max(others.items(), key=lambda item: item[1].rank)
        raise OutputError(
            f"{data.source}: layer {name} is {layer.kind}, of rank {layer.rank} as two factors; exactly, all such "
            f"layers take {size / 1e9:.0f} GB; lower the rank first: adapter.resize(64), on the command line --rank 64"
        )
    if not others:
        return data
    return replace(
        data,
        layers={**data.layers, **{name: layer_of(data.matrices(name), layer.shape) for name, layer in others.items()}},
    )


def tensors_of(data: AdapterData, layout: Layout) -> dict[str, Tensor]:
    """The tensors of a file, exact, by key."""
    return _WRITERS[layout.format](data, layout)


def check_writable(
    adapters: Sequence[AdapterData],
    format: str | None = None,
    for_: str | None = None,
    quantized: Path | None = None,
) -> str:
    """Raise where what is made of adapters cannot be written, without computing it; else return the format.

    The writer is run on zeros of rank 1 with the layers' names and shapes.

    Raises:
        as `plan` and `state_dict`.
    """
    chosen = plan(_stand_in(adapters), format, for_, measure=False, quantized=quantized)
    with about(chosen.data.source):
        for part in split_components(chosen.data).values() if chosen.layout.is_folder else [chosen.data]:
            tensors_of(part, chosen.layout)
    return chosen.layout.format


def written_keys(data: AdapterData, format: str) -> set[str]:
    """The keys of a file of an adapter in a format, without computing it; raises where it cannot be written.

    Example:
        >>> layer = LoraLayer(torch.ones(2, 4), torch.ones(8, 2))
        >>> sorted(written_keys(AdapterData({"unet.conv_in": layer}, architecture="sd15"), "kohya"))[-1]
        'lora_unet_conv_in.lora_up.weight'
    """
    shape = _stand_in([data])
    parts = split_components(shape).values() if Layout(format).is_folder else [shape]
    return {key for part in parts for key in tensors_of(part, Layout(format))}


def _stand_in(adapters: Sequence[AdapterData]) -> AdapterData:
    layers: dict[str, Layer] = {}
    extras: dict[str, Tensor] = {}
    for adapter in adapters:
        for name, layer in adapter.layers.items():
            if name not in layers:
                layers[name] = _zeros(layer.shape)
        extras = {**adapter.extras, **extras}
    dialect, spelling = common_dialect(adapters)
    return AdapterData(
        layers,
        extras,
        next((adapter.architecture for adapter in adapters if adapter.architecture), None),
        source=", ".join(adapter.source for adapter in adapters),
        dialect=dialect,
        spelling=spelling,
    )


def _zeros(shape: Sequence[int]) -> LoraLayer:
    return LoraLayer(torch.zeros(1, *shape[1:]), torch.zeros(shape[0], 1, *[1] * (len(shape) - 2)))
