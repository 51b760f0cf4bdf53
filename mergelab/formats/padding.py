"""Zeros where a loader needs them: a rank like that of the other layers, a layer beside another."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from torch.nn.functional import pad

from mergelab.layer import AdapterData, Layer, LoraLayer

PROJECTION = "text_projection"

# Modules of FLUX.1 that are one in nunchaku, or are computed together, by the path in their block.
_TOGETHER = (
    ("attn.to_q", "attn.to_k", "attn.to_v"),
    ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
    ("ff.net.0.proj", "ff.net.2"),
    ("ff_context.net.0.proj", "ff_context.net.2"),
)


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
    """With layers of zeros beside those that nunchaku expects in company: q, k and v, and both layers of an mlp."""
    added: dict[str, Layer] = {}
    for name, layer in data.layers.items():
        for group in _TOGETHER:
            end = next((end for end in group if name.endswith(f".{end}")), None)
            if end is None:
                continue
            stem = name.removesuffix(end)
            for other in group:
                if stem + other not in data.layers:
                    added.setdefault(stem + other, _zeros(layer, turned=end.startswith("ff")))
    return replace(data, layers={**data.layers, **added}) if added else data


def _zeros(layer: Layer, turned: bool) -> LoraLayer:
    rows, columns = reversed(layer.shape[:2]) if turned else layer.shape[:2]
    some = layer.lora_A
    return LoraLayer(some.new_zeros(layer.rank, columns), some.new_zeros(rows, layer.rank))
