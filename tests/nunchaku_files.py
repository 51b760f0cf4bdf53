"""nunchaku's files, made and read without mergelab: from the description of their layout, number by number."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

WIDTH = 32
# nunchaku's modules, their weights in widths of the model (outputs, inputs), and the modules of diffusers they hold.
DOUBLE = {
    "qkv_proj": ((3, 1), ("attn.to_q", "attn.to_k", "attn.to_v")),
    "qkv_proj_context": ((3, 1), ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj")),
    "out_proj": ((1, 1), ("attn.to_out.0",)),
    "out_proj_context": ((1, 1), ("attn.to_add_out",)),
    "mlp_fc1": ((4, 1), ("ff.net.0.proj",)),
    "mlp_fc2": ((1, 4), ("ff.net.2",)),
    "mlp_context_fc1": ((4, 1), ("ff_context.net.0.proj",)),
    "mlp_context_fc2": ((1, 4), ("ff_context.net.2",)),
    "norm1.linear": ((6, 1), ("norm1.linear",)),
    "norm1_context.linear": ((6, 1), ("norm1_context.linear",)),
}
SINGLE = {
    "qkv_proj": ((3, 1), ("attn.to_q", "attn.to_k", "attn.to_v")),
    "mlp_fc1": ((4, 1), ("proj_mlp",)),
    "out_proj": ((1, 1), ()),
    "mlp_fc2": ((1, 4), ()),
    "norm.linear": ((3, 1), ("norm.linear",)),
}
BLOCKS = {"transformer_blocks.0": DOUBLE, "single_transformer_blocks.0": SINGLE}


def layer_shapes(width: int = WIDTH) -> dict[str, tuple[int, int]]:
    """Every kind of layer in FLUX.1, by diffusers' names: of a block of each kind, and outside of them."""
    shapes = {
        f"transformer.{block}.{part}": (rows * width // len(parts), columns * width)
        for block, modules in BLOCKS.items()
        for (rows, columns), parts in modules.values()
        for part in parts
    }
    shapes["transformer.single_transformer_blocks.0.proj_out"] = (width, 5 * width)
    outside = {"x_embedder": (1, 2), "context_embedder": (1, 3), "norm_out.linear": (2, 1), "proj_out": (2, 1)}
    return shapes | {
        f"transformer.{name}": (rows * width, columns * width) for name, (rows, columns) in outside.items()
    }


def places(features: int, rank: int, down: bool) -> tuple[Tensor, Tensor]:
    """Row and column in the factor of each number of a packed one, in the order of the file."""
    tile, number = torch.arange(features * rank).div(256, rounding_mode="floor"), torch.arange(features * rank) % 256
    group, ranks = tile // (rank // 16), tile % (rank // 16)
    lane, of_lane = number // 8, number % 8
    row = lane // 4 + 8 * (of_lane // 4)
    column = 2 * (lane % 4) + 8 * (of_lane // 2 % 2) + of_lane % 2
    return (16 * ranks + row, 16 * group + column) if down else (16 * group + row, 16 * ranks + column)


def stored(factor: Tensor, down: bool) -> Tensor:
    """A factor as a file has it."""
    rank, features = factor.shape if down else factor.T.shape
    rows, columns = places(features, rank, down)
    return factor[rows, columns].reshape(features, rank)


def unpacked(packed: Tensor, down: bool) -> Tensor:
    """The factor from a file."""
    features, rank = packed.shape
    factor = packed.new_zeros((rank, features) if down else (features, rank))
    rows, columns = places(features, rank, down)
    factor[rows, columns] = packed.flatten()
    return factor


def quantized(path: Path, width: int = WIDTH, rank: int = 16, fp4: bool = False, without: tuple[str, ...] = ()) -> Path:
    """A quantised model of two blocks, with a branch of its own in every module that is not among `without`."""
    some = torch.Generator().manual_seed(7)
    tensors: dict[str, Tensor] = {}
    for block, modules in BLOCKS.items():
        for end, ((rows, columns), _) in modules.items():
            name, outputs, inputs = f"{block}.{end}", rows * width, columns * width
            if end.endswith(".linear"):
                tensors[f"{name}.qweight"] = torch.zeros(outputs // 4, inputs // 2, dtype=torch.int32)
                tensors[f"{name}.wzeros"] = torch.zeros(1, outputs, dtype=torch.bfloat16)
                continue
            tensors[f"{name}.qweight"] = torch.zeros(outputs, inputs // 2, dtype=torch.int8)
            scales = torch.ones(max(1, inputs // (16 if fp4 else 64)), outputs)
            tensors[f"{name}.wscales"] = scales.to(torch.float8_e4m3fn if fp4 else torch.bfloat16)
            if end not in without:
                for factor, shape in (("down", (rank, inputs)), ("up", (outputs, rank))):
                    value = torch.randn(shape, generator=some).bfloat16()
                    tensors[f"{name}.lora_{factor}"] = stored(value, factor == "down").contiguous()
    save_file(tensors, path)
    return path


def branches(path: Path) -> dict[str, tuple[Tensor, Tensor]]:
    """`lora_A` and `lora_B` of every module in a file, the model's or a packed one."""
    tensors = load_file(path)
    found = {}
    for name in [key.removesuffix(".lora_down") for key in tensors if key.endswith(".lora_down")]:
        down, up = tensors[f"{name}.lora_down"], tensors[f"{name}.lora_up"]
        plain = name.endswith(".linear")
        found[name] = (down, up) if plain else (unpacked(down, down=True), unpacked(up, down=False))
    return found


def changes(path: Path, model: Path) -> dict[str, Tensor]:
    """The delta weights of a packed file in float64, by diffusers' names: what it adds to the model's own branch."""
    own = branches(model)
    found: dict[str, Tensor] = {}
    for name, (down, up) in branches(path).items():
        mine = own[name][0].shape[0] if name in own else 0
        if mine:
            assert torch.equal(down[:mine], own[name][0].to(down.dtype))
            assert torch.equal(up[:, :mine], own[name][1].to(up.dtype))
        found[name] = up[:, mine:].double() @ down[mine:].double()
    return by_layer(found) | outside(load_file(path))


def by_layer(found: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Delta weights of nunchaku's modules as those of diffusers' layers."""
    layers: dict[str, Tensor] = {}
    for block, modules in BLOCKS.items():
        for end, (_, parts) in modules.items():
            if not parts or f"{block}.{end}" not in found:
                continue
            change = found[f"{block}.{end}"]
            if end.endswith(".linear"):
                # Side by side stand the outputs of one place in all groups; diffusers has group after group.
                groups = 3 if block.startswith("single") else 6
                order = [place * groups + group for group in range(groups) for place in range(len(change) // groups)]
                change = change[order]
            layers |= {f"transformer.{block}.{part}": rows for part, rows in zip(parts, change.chunk(len(parts)))}
    single = "single_transformer_blocks.0"
    if f"{single}.out_proj" in found:
        halves = [found[f"{single}.{end}"] for end in ("out_proj", "mlp_fc2")]
        layers[f"transformer.{single}.proj_out"] = torch.cat(halves, dim=1)
    return layers


def outside(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Delta weights of what is not quantised, which stands in diffusers' names."""
    names = [key.removesuffix(".lora_A.weight") for key in tensors if key.endswith(".lora_A.weight")]
    return {
        f"transformer.{name}": tensors[f"{name}.lora_B.weight"].double() @ tensors[f"{name}.lora_A.weight"].double()
        for name in names
    }
