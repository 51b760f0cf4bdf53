"""Adapters in words: their layers as a table, the names of their files, and their base models."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from mergelab.checks import readable
from mergelab.layer import AdapterData, Layer


def overview(layers: Mapping[str, Layer]) -> list[tuple[str, str, str, str]]:
    """Rows of a table, its head the first: of every component how many layers, of which ranks, and how large.

    Example:
        >>> import torch
        >>> from mergelab.layer import LoraLayer
        >>> overview({"unet.conv_in": LoraLayer(torch.ones(2, 3), torch.ones(4, 2))})
        [('component', 'layers', 'ranks', 'parameters'), ('unet', '1', '2 x 1', '14')]
    """
    rows = [("component", "layers", "ranks", "parameters")]
    for component in dict.fromkeys(name.partition(".")[0] for name in layers):
        own = [layer for name, layer in layers.items() if name.startswith(f"{component}.")]
        counts = Counter(layer.rank for layer in own)
        ranks = ", ".join(f"{rank} x {count}" for rank, count in sorted(counts.items())[:4])
        size = sum(layer.rank * (layer.shape[0] + math.prod(layer.shape[1:])) for layer in own)
        rows.append((component, str(len(own)), ranks + (", ..." if len(counts) > 4 else ""), f"{size:,}"))
    return rows


def short_name(source: str) -> str:
    """A file's name without its folder and its ending, of an address without its query; any other source as it is.

    Example:
        >>> short_name("loras/style.v2.safetensors"), short_name("0.5 * style.v2")
        ('style.v2', '0.5 * style.v2')
        >>> short_name("https://example.org/style.safetensors?download=true")
        'style'
    """
    name = readable(Path(source.partition("?")[0] if "://" in source else source).name)
    for ending in (".safetensors", ".bin", ".pt", ".pth", ".ckpt"):
        name = name.removesuffix(ending)
    return name


def base_model_of(data: AdapterData) -> str:
    """The base model of an adapter in words, as far as it is known.

    Example:
        >>> import torch
        >>> from mergelab.layer import LoraLayer
        >>> base_model_of(AdapterData({"unet.conv_in": LoraLayer(torch.ones(2, 3), torch.ones(4, 2))}))
        'unet of an unknown base model'
    """
    components = {name.partition(".")[0] for name in data.layers}
    part = next((f"{part} of an " for part in ("unet", "transformer") if part in components), "")
    return data.architecture or f"{part}unknown base model"
