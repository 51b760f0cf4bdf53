"""What the writers of all formats share."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch import Tensor

from mergelab.errors import FormatError
from mergelab.formats.prefixes import COMPONENTS
from mergelab.layer import NORM_SUFFIX, AdapterData, Layer, LoraLayer

FACTOR_SUFFIXES = (
    (".lora_down.weight", ".lora_up.weight"),
    (".lora_A.weight", ".lora_B.weight"),
    (".lora_linear_layer.down.weight", ".lora_linear_layer.up.weight"),
)
"""Ends of the keys of a layer's two factors: of kohya's tools, of PEFT, and of text encoders in older diffusers."""


def folded_layer(layer: Layer) -> LoraLayer:
    """The same change at scaling 1; float32 where the file's dtype could not hold the product exactly."""
    layer = layer.as_lora()
    if layer.scaling == 1.0:
        return layer
    exact = layer.lora_B.float() * layer.scaling
    rounded = exact.to(layer.lora_B.dtype)
    return LoraLayer(layer.lora_A, rounded if torch.equal(rounded.float(), exact) else exact)


def with_alpha(layer: Layer, alpha_is_rank: bool = False) -> tuple[LoraLayer, Tensor]:
    """A layer as it is written, and the alpha beside it."""
    # kohya's tools read an alpha of 0 as "none given", and a negative one is used by nobody.
    layer = layer.as_lora()
    written = layer if layer.scaling > 1e-30 and not alpha_is_rank else folded_layer(layer)
    return written, torch.tensor(written.scaling * written.rank, dtype=torch.float32)


def by_component(data: AdapterData) -> dict[str, dict[str, Layer]]:
    """Layers by component, under their paths in it."""
    components: dict[str, dict[str, Layer]] = {}
    for name, layer in data.layers.items():
        component, _, path = name.partition(".")
        components.setdefault(component, {})[path] = layer
    return components


def most_frequent(counts: Counter[Any]) -> Any:
    """The most frequent value, the smallest of several."""
    return min(counts, key=lambda value: (-counts[value], value))


SAY_WHICH = "say which one it is (architecture=, on the command line --architecture)"
"""The remedy where the base model is not known."""


def remedy(name: str) -> str:
    """What can be done with a layer that a format has no name for."""
    if name.startswith("text_encoder"):
        # Layers of a denoiser that its base model has not are left out for no tool.
        return "write it as format='peft', or leave it out: adapter.select(), or for a tool (for_=, --for)"
    return "write it as format='peft', or leave it out: adapter.select()"


EMBEDDING_PREFIX = "bundle_emb."
"""Begin of the keys of textual-inversion embeddings in a file of kohya's format."""


def no_place(key: str, format: str) -> FormatError:
    """The error for an extra that a format cannot carry, with the format that can, where there is one."""
    if key.startswith(EMBEDDING_PREFIX):
        other = "kohya"
    elif key.endswith(NORM_SUFFIX):
        other = "comfy"
    else:
        other = "peft" if key.partition(".")[0] in (*COMPONENTS, "model") else ""
    remedy = f"write it as format={other!r}, which has one, or leave" if other not in ("", format) else "leave"
    return FormatError(
        f"{key} is no LoRA layer, and format {format!r} has no place for it; {remedy} it out: "
        "adapter.without_extras(), or --drop-extras"
    )
