"""q, k and v as the one module that nunchaku runs, so that a rank counts, and is cut, where it costs; and back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch

from mergelab.formats.architectures.double_stream import ADDED_QKV, QKV
from mergelab.formats.architectures.fused import OriginalModule
from mergelab.formats.architectures.naming import Block, Naming, Place, holds
from mergelab.formats.original import alone, modules_of
from mergelab.layer import AdapterData, Layer, LoraLayer

_COMPONENT = "transformer"
FUSED = {"attn.to_qkv": holds(*QKV), "attn.add_qkv_proj": holds(*ADDED_QKV)}
"""The modules by the names that `compose_lora` gives them."""
_KINDS = ("transformer_blocks", "single_transformer_blocks")
_NAMING = Naming(_COMPONENT, tuple(Block(f"{kind}.{{}}", f"{kind}.{{}}", FUSED) for kind in _KINDS), {}, linear=True)
QUANTIZED = tuple(f"{_COMPONENT}.{kind}." for kind in _KINDS)
"""What the names of quantised layers begin with; the ranks of others cost nothing, nunchaku adds their changes up."""


def fused(data: AdapterData) -> dict[str, Layer]:
    """The layers with those of q, k and v as one, exactly: `lora_A` is shared where all three have the same.

    Example:
        >>> names = [f"transformer.transformer_blocks.0.attn.to_{x}" for x in "qk"]
        >>> same = torch.ones(2, 4)
        >>> layers = fused(AdapterData({name: LoraLayer(same, torch.ones(4, 2)) for name in names}))
        >>> layers
        {'transformer.transformer_blocks.0.attn.to_qkv': LoraLayer(shape=(12, 4), rank=2, scaling=1)}
    """
    return {name: module.layer() for name, module in modules_of(replace(data, extras={}), _place).items()}


def unfused(layers: Mapping[str, Layer]) -> dict[str, Layer]:
    """The layers of q, k and v from the fused ones, so that they fuse to the same rank again.

    Each gets the components that it has a part in where those are no more in sum; else all three share `lora_A`.
    """
    found: dict[str, Layer] = {}
    for name, layer in layers.items():
        path = name.removeprefix(f"{_COMPONENT}.")
        module = _NAMING.module(path) if path != name else None
        if module is None:
            found[name] = layer
        else:
            found |= {f"{_COMPONENT}.{part}": own for part, own in _split(module, layer).items()}
    return found


def _place(name: str) -> tuple[str, Place]:
    path = name.removeprefix(f"{_COMPONENT}.")
    place = _NAMING.place(path) if path != name else None
    return (f"{_COMPONENT}.{place.module.path}", place) if place else (name, alone(name))


def _split(module: OriginalModule, layer: Layer) -> dict[str, LoraLayer]:
    ups = torch.split(layer.lora_B, module.sizes(*layer.shape))
    used = [torch.nonzero((up != 0).any(dim=0)).flatten() for up in ups]
    if 0 < sum(map(len, used)) <= layer.rank:
        return {
            part: LoraLayer(layer.lora_A[columns], up[:, columns], layer.scaling)
            for part, up, columns in zip(module.parts, ups, used)
            if len(columns)
        }
    return {part: LoraLayer(layer.lora_A, up, layer.scaling) for part, up in zip(module.parts, ups)}
