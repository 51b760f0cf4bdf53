"""Adapters from whatever was given, and which of them have which layer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from mergelab.adapter import Adapter, Source, load
from mergelab.algebra import widened
from mergelab.errors import LayerError, OptionError
from mergelab.formats.architectures import ARCHITECTURES
from mergelab.formats.base_models import check_base_models
from mergelab.layer import same_weight
from mergelab.tables import counted


def load_all(loras: Sequence[Adapter | Source], least: int = 1) -> list[Adapter]:
    """Adapters from whatever was given, none of them empty.

    Args:
        loras: adapters, or anything that `load` takes.
        least: how many there have to be.

    Raises:
        OptionError: no list, or too few of them.
        LayerError: an adapter without layers.
        MergelabError: whatever `load` raises of a source.

    Example:
        >>> load_all(["miniature/sdxl/ghost"], least=2)
        Traceback (most recent call last):
            ...
        mergelab.errors.OptionError: expected at least 2 adapters, found 1
    """
    if isinstance(loras, (str, Adapter, Mapping)) or not isinstance(loras, Iterable):
        raise OptionError(f"expected a list of adapters or files, found {type(loras).__name__}")
    adapters = [lora if isinstance(lora, Adapter) else load(lora) for lora in loras]
    if len(adapters) < least:
        raise OptionError(f"expected at least {counted(least, 'adapter')}, found {len(adapters)}")
    for adapter in adapters:
        if not adapter.layers:
            raise LayerError(f"{adapter.source}: holds no layer; expected at least one")
    return adapters


def unique_names(names: list[str]) -> list[str]:
    """Names for reports; a repeated one gets a number.

    Example:
        >>> unique_names(["style", "subject", "style"])
        ['style', 'subject', 'style#2']
    """
    seen: dict[str, int] = {}
    unique = []
    for name in names:
        seen[name] = seen.get(name, 0) + 1
        unique.append(name if seen[name] == 1 else f"{name}#{seen[name]}")
    return unique


def with_one_input(adapters: Sequence[Adapter], names: Sequence[str]) -> tuple[list[Adapter], list[str]]:
    """Adapters with input layers of one width, and notes of what was done.

    A Control adapter widens the layer that reads the latents; the change of any other leaves the new inputs alone.
    """
    ids = {adapter.architecture for adapter in adapters} - {None} or set(ARCHITECTURES)
    inputs = {known.input_layer for id, known in ARCHITECTURES.items() if id in ids and known.input_layer}
    given, notes = list(adapters), []
    for name in sorted(inputs):
        shapes = {i: a.layers[name].shape for i, a in enumerate(given) if name in a.layers}
        widest = max((shape[1] for shape in shapes.values()), default=0)
        if len({shape[0] for shape in shapes.values()}) > 1:
            continue  # other models, as it is said where the two meet
        for i in (i for i, shape in shapes.items() if shape[1] < widest):
            notes.append(
                f"{names[i]}: {name} reads {shapes[i][1]} inputs, and {widest} in a Control adapter of this merge: "
                "padded with zeros"
            )
            layers = {**given[i].layers, name: widened(given[i].layers[name], widest)}
            given[i] = replace(given[i], layers=layers)
    return given, notes


def aligned_layers(adapters: Sequence[Adapter], names: Sequence[str]) -> dict[str, list[int]]:
    """Layer name -> the adapters that have it; every layer of every adapter, in the order of the files.

    Raises:
        ArchitectureError, LayerError: the adapters are for different base models.

    Example:
        >>> import torch
        >>> from mergelab import LoraLayer
        >>> layer = LoraLayer(torch.ones(2, 3), torch.ones(4, 2))
        >>> first, second = Adapter({"unet.a": layer, "unet.b": layer}), Adapter({"unet.b": layer})
        >>> aligned_layers([first, second], ["first", "second"])
        {'unet.a': [0], 'unet.b': [0, 1]}
    """
    check_base_models(adapters, names)
    aligned: dict[str, list[int]] = {}
    for i, adapter in enumerate(adapters):
        for name in adapter.layers:
            aligned.setdefault(name, []).append(i)
    for name, present in aligned.items():
        first = present[0]
        for i in present[1:]:
            expected, shape = adapters[first].layers[name].shape, adapters[i].layers[name].shape
            if not same_weight(expected, shape):
                raise LayerError(
                    f"layer {name}: {names[first]} changes a weight of shape {expected}, {names[i]} one of shape "
                    f"{shape}; they were trained on different base models"
                )
    return aligned
