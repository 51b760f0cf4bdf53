"""What the writers of all formats share."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch

from mergelab.errors import FormatError
from mergelab.layer import Contents, Layer, LoraLayer


def folded_layer(layer: Layer) -> LoraLayer:
    """The same change at scaling 1; float32 where the file's dtype could not hold the product exactly."""
    if layer.scaling == 1.0:
        return LoraLayer(layer.lora_A, layer.lora_B)
    exact = layer.lora_B.float() * layer.scaling
    rounded = exact.to(layer.lora_B.dtype)
    return LoraLayer(layer.lora_A, rounded if torch.equal(rounded.float(), exact) else exact)


def by_component(contents: Contents) -> dict[str, dict[str, Layer]]:
    """Layers by component, under their paths in it."""
    components: dict[str, dict[str, Layer]] = {}
    for name, layer in contents.layers.items():
        component, _, path = name.partition(".")
        components.setdefault(component, {})[path] = layer
    return components


def most_frequent(counts: Counter[Any]) -> Any:
    """The most frequent value, the smallest of several."""
    return min(counts, key=lambda value: (-counts[value], value))


def no_place(contents: Contents, key: str, format: str) -> FormatError:
    """The error for an extra that a format cannot carry."""
    return FormatError(
        f"{contents.source}: {key} is no LoRA layer, and format {format!r} has no place for it; drop it with "
        "adapter.without_extras() (--drop-extras), or write another format"
    )
