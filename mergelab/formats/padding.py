"""Zeros where a loader needs them: a rank like that of the other layers, a layer beside another."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.functional import pad

from mergelab.formats.architectures.double_stream import ADDED_QKV, QKV
from mergelab.layer import BIAS_SUFFIX, AdapterData, Layer, LoraLayer

PROJECTION = "text_projection"

# Modules of FLUX.1 that are one in nunchaku, or are computed together, by the path in their block.
_ATTENTION = (QKV, ADDED_QKV)
_MLP = (("ff.net.0.proj", "ff.net.2"), ("ff_context.net.0.proj", "ff_context.net.2"))
_SINGLE = re.compile(r"(.*\bsingle_transformer_blocks\.\d+)\.(proj_mlp|proj_out)")


def padded(layer: Layer, rank: int) -> Layer:
    """The same change at a higher rank, with rows and columns of zeros.

    Example:
        >>> import torch
        >>> layer = padded(LoraLayer(torch.ones(2, 3), torch.ones(4, 2), scaling=0.5), 5)
        >>> layer.rank, layer.delta_weight()[0, 0].item()
        (5, 1.0)
    """
    more, dims = rank - layer.rank, layer.lora_A.dim()
    down = pad(layer.lora_A, [0, 0] * (dims - 1) + [0, more])
    up = pad(layer.lora_B, [0, 0] * (dims - 2) + [0, more])
    return LoraLayer(down, up, layer.scaling)


def projection_padded(data: AdapterData) -> AdapterData:
    """With the projection of a text encoder at the rank that diffusers takes for its default.

    diffusers (0.42) gathers the ranks of a text encoder in kohya's names from attention and mlp alone, and gives every
    other module the most frequent one: with another rank there nothing loads at all.
    """
    layers: dict[str, Layer] = {}
    for component in {name.partition(".")[0] for name in data.layers if name.endswith(f".{PROJECTION}")}:
        projection = f"{component}.{PROJECTION}"
        own = {n: x for n, x in data.layers.items() if n.startswith(f"{component}.") and n != projection}
        ranks = Counter(layer.rank for layer in own.values())
        rank = data.layers[projection].rank
        highest = max(ranks.values(), default=0)
        usual = {r for r, count in ranks.items() if count == highest}
        if not own or usual == {rank}:
            continue
        target = max(rank, *ranks)
        if len(usual) == 1 and rank < (most := next(iter(usual))):
            layers[projection] = padded(data.layers[projection], most)
        else:
            layers |= {name: padded(data.layers[name], target) for name in (projection, *own)}
    return replace(data, layers={**data.layers, **layers}) if layers else data


def completed(data: AdapterData) -> AdapterData:
    """With zeros beside what nunchaku expects in company: q, k and v, their biases, and both ends of an mlp."""
    layers: dict[str, Layer] = {}
    extras: dict[str, Tensor] = {}
    for name, layer in data.layers.items():
        for other in _others(name, _ATTENTION):
            # The same lora_A: side by side the three have no higher rank than this one.
            layers.setdefault(other, LoraLayer(layer.lora_A, torch.zeros_like(layer.lora_B)))
        rows, columns = layer.shape[:2]
        for other in _others(name, _MLP):
            layers.setdefault(other, _zeros(layer, columns, rows))
        # proj_out reads what the attention gives, as wide as the model, and the mlp.
        if match := _SINGLE.fullmatch(name):
            if match[2] == "proj_mlp":
                layers.setdefault(f"{match[1]}.proj_out", _zeros(layer, columns, columns + rows))
            else:
                layers.setdefault(f"{match[1]}.proj_mlp", _zeros(layer, columns - rows, rows))
    for key, bias in data.extras.items():
        for other in _others(key.removesuffix(BIAS_SUFFIX), _ATTENTION) if key.endswith(BIAS_SUFFIX) else ():
            extras.setdefault(f"{other}{BIAS_SUFFIX}", torch.zeros_like(bias))
    return replace(data, layers={**layers, **data.layers}, extras={**extras, **data.extras})


def _others(name: str, groups: tuple[tuple[str, ...], ...]) -> list[str]:
    """The other modules of a group that a module is in."""
    for group in groups:
        if end := next((end for end in group if name.endswith(f".{end}")), None):
            return [f"{name.removesuffix(end)}{other}" for other in group if other != end]
    return []


def _zeros(layer: Layer, rows: int, columns: int) -> LoraLayer:
    some = layer.lora_A
    return LoraLayer(some.new_zeros(layer.rank, columns), some.new_zeros(rows, layer.rank))
