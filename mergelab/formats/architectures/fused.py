"""FLUX: the names of Black Forest Labs (fused qkv, linear1), those of diffusers (split), and the way between them."""

from __future__ import annotations

import re

import torch
from torch import Tensor

from mergelab.errors import LayerError
from mergelab.layer import Layer, LoraLayer

_BLOCK = {
    "double_blocks": {
        "img_attn.qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
        "txt_attn.qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
        "img_attn.proj": ("attn.to_out.0",),
        "txt_attn.proj": ("attn.to_add_out",),
        "img_mlp.0": ("ff.net.0.proj",),
        "img_mlp.2": ("ff.net.2",),
        "txt_mlp.0": ("ff_context.net.0.proj",),
        "txt_mlp.2": ("ff_context.net.2",),
        "img_mod.lin": ("norm1.linear",),
        "txt_mod.lin": ("norm1_context.linear",),
    },
    "single_blocks": {
        "linear1": ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"),
        "linear2": ("proj_out",),
        "modulation.lin": ("norm.linear",),
    },
}
_NORMS = {
    "double_blocks": {
        "img_attn.norm.query_norm": "attn.norm_q",
        "img_attn.norm.key_norm": "attn.norm_k",
        "txt_attn.norm.query_norm": "attn.norm_added_q",
        "txt_attn.norm.key_norm": "attn.norm_added_k",
    },
    "single_blocks": {"norm.query_norm": "attn.norm_q", "norm.key_norm": "attn.norm_k"},
}
_TOP = {
    "img_in": "x_embedder",
    "txt_in": "context_embedder",
    "time_in.in_layer": "time_text_embed.timestep_embedder.linear_1",
    "time_in.out_layer": "time_text_embed.timestep_embedder.linear_2",
    "vector_in.in_layer": "time_text_embed.text_embedder.linear_1",
    "vector_in.out_layer": "time_text_embed.text_embedder.linear_2",
    "guidance_in.in_layer": "time_text_embed.guidance_embedder.linear_1",
    "guidance_in.out_layer": "time_text_embed.guidance_embedder.linear_2",
    "final_layer.linear": "proj_out",
    "final_layer.adaLN_modulation.1": "norm_out.linear",
}
_BLOCK_NAMES = {"double_blocks": "transformer_blocks", "single_blocks": "single_transformer_blocks"}
_SWAPPED = "final_layer.adaLN_modulation.1"
BFL_ROOTS = frozenset(_BLOCK_NAMES) | {name.split(".")[0] for name in _TOP}
# linear1 also holds the input of the feed-forward, four times as wide as the model.
_MLP_RATIO = 4

_FROM_DIFFUSERS = {
    (block, part): (name, index, len(parts))
    for block, table in _BLOCK.items()
    for name, parts in table.items()
    for index, part in enumerate(parts)
}


def parts_of(path: str) -> tuple[str, ...] | None:
    """The diffusers modules that a module of the BFL model holds; None if it has no such module.

    Example:
        >>> parts_of("double_blocks.3.img_attn.proj")
        ('transformer_blocks.3.attn.to_out.0',)
    """
    if path in _TOP:
        return (_TOP[path],)
    match = re.fullmatch(r"(double_blocks|single_blocks)\.(\d+)\.(.+)", path)
    if not match:
        return None
    block, number, rest = match.groups()
    prefix = f"{_BLOCK_NAMES[block]}.{number}."
    parts = _BLOCK[block].get(rest)
    if parts is None and rest == "attn.qkv":  # XLabs trains q, k, v of a single block by themselves
        parts = _BLOCK["single_blocks"]["linear1"][:3]
    return None if parts is None else tuple(prefix + part for part in parts)


def norm_of(path: str) -> str | None:
    """The diffusers name of a query or key norm of the BFL model."""
    match = re.fullmatch(r"(double_blocks|single_blocks)\.(\d+)\.(.+)", path)
    found = _NORMS[match[1]].get(match[3]) if match else None
    return f"{_BLOCK_NAMES[match[1]]}.{match[2]}.{found}" if match and found else None


def bfl_norm_of(path: str) -> str | None:
    """The BFL name of a query or key norm of the diffusers model."""
    for block, name in _BLOCK_NAMES.items():
        match = re.fullmatch(rf"{name}\.(\d+)\.(.+)", path)
        for bfl, diffusers in _NORMS[block].items():
            if match and match[2] == diffusers:
                return f"{block}.{match[1]}.{bfl}"
    return None


def bfl_of(path: str) -> tuple[str, int, int] | None:
    """The BFL module that holds a diffusers module, which part of it that is, and of how many.

    Example:
        >>> bfl_of("single_transformer_blocks.7.attn.to_k")
        ('single_blocks.7.linear1', 1, 4)
    """
    for bfl, diffusers in _TOP.items():
        if path == diffusers:
            return bfl, 0, 1
    for block, name in _BLOCK_NAMES.items():
        match = re.fullmatch(rf"{name}\.(\d+)\.(.+)", path)
        found = _FROM_DIFFUSERS.get((block, match[2])) if match else None
        if match and found:
            return f"{block}.{match[1]}.{found[0]}", found[1], found[2]
    return None


def split_sizes(rows: int, columns: int, parts: int, path: str) -> list[int]:
    """Rows of each part of a fused module: as many as the model is wide for q, k, v, the rest for the feed-forward."""
    if parts == 1:
        return [rows]
    sizes = [columns] * 3 + ([rows - 3 * columns] if parts == 4 else [])
    if sum(sizes) != rows or sizes[-1] < 1:
        raise LayerError(
            f"layer {path}: a change of shape ({rows}, {columns}) does not hold {parts} parts, expected "
            f"{3 * columns if parts == 3 else f'more than {3 * columns}'} rows"
        )
    return sizes


def split(path: str, layer: LoraLayer) -> dict[str, LoraLayer]:
    """One BFL layer as layers of the diffusers model, which share `lora_A` and take their rows of `lora_B`.

    Where `lora_B` is block-diagonal (a file that was split before it was fused), each part gets back the factors of
    its own block, and a part that is zero throughout while others are not is left out.
    """
    names = parts_of(path)
    assert names is not None
    if path == _SWAPPED:
        return {names[0]: LoraLayer(layer.lora_A, _swap_halves(layer.lora_B), layer.scaling)}
    if len(names) == 1:
        return {names[0]: layer}
    sizes = split_sizes(layer.lora_B.shape[0], layer.lora_A.shape[1], len(names), path)
    ups = torch.split(layer.lora_B, sizes)
    used = [_used_columns(up) for up in ups] if _is_sparse(ups) else None
    if used is None:
        return {name: LoraLayer(layer.lora_A, up, layer.scaling) for name, up in zip(names, ups)}
    return {
        name: LoraLayer(layer.lora_A[columns], up[:, columns], layer.scaling)
        for name, up, columns in zip(names, ups, used)
        if len(columns)
    }


def split_rows(path: str, vector: Tensor, columns: int) -> dict[str, Tensor]:
    """One BFL bias as the biases of the diffusers modules."""
    names = parts_of(path)
    assert names is not None
    if path == _SWAPPED:
        return {names[0]: _swap_halves(vector)}
    return dict(zip(names, torch.split(vector, split_sizes(len(vector), columns, len(names), path))))


def join_rows(path: str, vectors: dict[int, Tensor], parts: int, shape: tuple[int, ...] | None) -> Tensor:
    """The bias of a BFL module from those of its parts; a part that is missing is zero.

    `shape` is that of the module's weight, where it is known.
    """
    if parts == 1:
        return _swap_halves(vectors[0]) if path == _SWAPPED else vectors[0]
    if shape is not None:
        sizes = split_sizes(shape[0], shape[1], parts, path)
    else:
        width = next((len(v) for index, v in vectors.items() if index < 3), 0) or len(vectors[3]) // _MLP_RATIO
        sizes = [width] * 3 + ([len(vectors[3]) if 3 in vectors else _MLP_RATIO * width] if parts == 4 else [])
    some = next(iter(vectors.values()))
    return torch.cat([vectors.get(i, some.new_zeros(size)) for i, size in enumerate(sizes)])


def join(path: str, layers: dict[int, Layer], parts: int, mlp: int | None = None) -> LoraLayer:
    """The layer of a BFL module from those of its parts, exactly.

    `lora_A` is shared where all parts have the same; otherwise the factors stand side by side, `lora_B`
    block-diagonal, and the rank is the sum of the parts' ranks. A part that is missing is zero; `mlp` is the size of
    linear1's last part where something else tells it.
    """
    given = list(layers.values())
    if given[0].lora_A.dim() != 2:
        raise LayerError(f"layer {path}: expected a linear layer, found shape {given[0].shape}")
    if parts == 1:
        lora_b = _swap_halves(given[0].lora_B) if path == _SWAPPED else given[0].lora_B
        return LoraLayer(given[0].lora_A, lora_b, given[0].scaling)
    columns = given[0].lora_A.shape[1]
    last = layers[3].lora_B.shape[0] if 3 in layers else mlp or _MLP_RATIO * columns
    sizes = [columns] * 3 + ([last] if parts == 4 else [])
    for index, layer in layers.items():
        if layer.shape != (sizes[index], columns):
            raise LayerError(
                f"layer {path}: its parts do not fit together: expected part {index} to have shape "
                f"{(sizes[index], columns)}, found {layer.shape}; kohya's format fuses them, write another format"
            )
    first = given[0].lora_A
    shared = all(x.lora_A.shape == first.shape and torch.equal(x.lora_A, first) for x in given[1:])
    scaling = given[0].scaling if len({x.scaling for x in given}) == 1 else 1.0
    ups = {i: x.lora_B if x.scaling == scaling else x.lora_B.float() * x.scaling for i, x in layers.items()}
    some = next(iter(ups.values()))
    if shared:
        rows = [ups[i] if i in ups else some.new_zeros(n, first.shape[0]) for i, n in enumerate(sizes)]
        return LoraLayer(first, torch.cat(rows), scaling)
    ranks = [layers[i].rank if i in layers else 0 for i in range(parts)]
    blocks = []
    for i, n in enumerate(sizes):
        before, after = sum(ranks[:i]), sum(ranks[i + 1 :])
        up = ups[i] if i in ups else some.new_zeros(n, 0)
        blocks.append(torch.nn.functional.pad(up, (before, after)))
    return LoraLayer(torch.cat([layers[i].lora_A for i in range(parts) if i in layers]), torch.cat(blocks), scaling)


def _swap_halves(rows: Tensor) -> Tensor:
    # BFL stacks (shift, scale), diffusers (scale, shift).
    if rows.shape[0] % 2:
        raise LayerError(f"layer {_SWAPPED}: expected shift and scale of one size, found {rows.shape[0]} outputs")
    return torch.roll(rows, rows.shape[0] // 2, dims=0)


def _is_sparse(ups: tuple[Tensor, ...]) -> bool:
    """Does some part use only some of the columns, or none? Looks at one row of each part first."""
    if all(bool((up[0] != 0).all()) for up in ups):
        return False
    used = [len(_used_columns(up)) for up in ups]
    return any(used) and min(used) < ups[0].shape[1]


def _used_columns(up: Tensor) -> Tensor:
    return torch.nonzero((up != 0).any(dim=0)).flatten()
