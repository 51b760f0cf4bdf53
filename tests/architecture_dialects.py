"""Adapters of miniature models as trainers write them: names spelled by hand, without the tables of mergelab.

An adapter starts as the layers of diffusers' modules; those that the original model holds in one module share
`lora_A`, as when that module was trained.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import NamedTuple

import diffusers
import torch
from torch import Tensor, nn

RANK = 2

Layers = dict[str, tuple[Tensor, Tensor]]
"""Path of diffusers' module -> lora_A, lora_B."""


class Part(NamedTuple):
    """Where a module of diffusers' is in the original model: which part of what module."""

    module: str
    number: int = 0
    swapped: bool = False


Original = Callable[[str], Part]

WIDTH = 16
_TWO_STREAMS = {"attention_head_dim": 8, "num_attention_heads": 2, "num_layers": 2}
_SD3 = {
    "attention_head_dim": 8,
    "caption_projection_dim": WIDTH,
    "joint_attention_dim": 12,
    "num_attention_heads": 2,
    "pooled_projection_dim": 10,
    "pos_embed_max_size": 8,
    "sample_size": 8,
}
_FLUX2 = {**_TWO_STREAMS, "in_channels": 8, "joint_attention_dim": 12, "num_single_layers": 2}
MINIATURES: dict[str, tuple[str, dict[str, object]]] = {
    "chroma": (
        "ChromaTransformer2DModel",
        {
            **_TWO_STREAMS,
            "approximator_hidden_dim": 12,
            "approximator_layers": 2,
            "approximator_num_channels": 4,
            "in_channels": 8,
            "joint_attention_dim": 12,
            "num_single_layers": 2,
        },
    ),
    "flux2-dev": ("Flux2Transformer2DModel", _FLUX2),
    "flux2-klein-9b": ("Flux2Transformer2DModel", {**_FLUX2, "guidance_embeds": False}),
    "qwen-image": ("QwenImageTransformer2DModel", {**_TWO_STREAMS, "in_channels": 8, "joint_attention_dim": 12}),
    "sd3": ("SD3Transformer2DModel", {**_SD3, "num_layers": 24}),
    "sd35-medium": (
        "SD3Transformer2DModel",
        {**_SD3, "dual_attention_layers": list(range(13)), "num_layers": 24, "qk_norm": "rms_norm"},
    ),
    "sd35-large": ("SD3Transformer2DModel", {**_SD3, "num_layers": 38, "qk_norm": "rms_norm"}),
    "hunyuan-video": (
        "HunyuanVideoTransformer3DModel",
        {
            **_TWO_STREAMS,
            "in_channels": 4,
            "num_refiner_layers": 2,
            "num_single_layers": 2,
            "pooled_projection_dim": 10,
            "text_embed_dim": 12,
        },
    ),
}


def miniature(id: str) -> nn.Module:
    """Diffusers' model of a base model, small."""
    name, config = MINIATURES[id]
    torch.manual_seed(0)
    return getattr(diffusers, name).from_config(config)


# Blocks of a deep miniature that adapters change: the first, one after those that attend twice, the last.
_BLOCKS = {0, 13, 23, 37}


def layers_of(model: nn.Module, original: Original, seed: int = 0) -> Layers:
    """An adapter of every linear layer, in some blocks of a deep model."""
    draws = torch.Generator().manual_seed(seed)
    shared: dict[str, Tensor] = {}
    layers: Layers = {}
    for path, module in model.named_modules():
        number = re.match(r"transformer_blocks\.(\d+)\.", path)
        if isinstance(module, nn.Linear) and (number is None or int(number[1]) in _BLOCKS | {1}):
            rows, columns = module.weight.shape
            alone = original(path).module == path
            name = re.sub("_[qkv](?=_|$)", "", path) if alone else original(path).module
            down = shared.setdefault(name, torch.randn(RANK, columns, generator=draws))
            layers[path] = down, torch.randn(rows, RANK, generator=draws)
    return layers


def fused(layers: Layers, original: Original) -> Layers:
    """The layers of the original model's modules."""
    held: dict[str, dict[int, tuple[Tensor, Tensor]]] = {}
    for path, (down, up) in layers.items():
        part = original(path)
        half = up.shape[0] // 2
        rows = torch.cat([up[half:], up[:half]]) if part.swapped else up
        held.setdefault(part.module, {})[part.number] = down, rows
    return {
        module: (parts[0][0], torch.cat([parts[number][1] for number in sorted(parts)]))
        for module, parts in held.items()
    }


# How keys are spelled.


def dotted(layers: Layers, prefix: str, factors: tuple[str, str] = ("lora_A", "lora_B")) -> dict[str, Tensor]:
    """Names with dots, no alpha: the scaling is 1."""
    down, up = factors
    return {
        f"{prefix}{path}.{factor}.weight": tensor
        for path, pair in layers.items()
        for factor, tensor in zip((down, up), pair)
    }


def with_alpha(layers: Layers, prefix: str, flat: bool = True) -> dict[str, Tensor]:
    """kohya's leaves, with an alpha of half the rank; names with underscores, or as they are."""
    tensors: dict[str, Tensor] = {}
    for path, (down, up) in layers.items():
        name = prefix + (path.replace(".", "_") if flat else path)
        tensors[f"{name}.lora_down.weight"] = down
        tensors[f"{name}.lora_up.weight"] = 2 * up
        tensors[f"{name}.alpha"] = torch.tensor(RANK / 2)
    return tensors


# Names of the original models.


def _renamed(path: str, names: Mapping[str, str]) -> str:
    """The path with a whole step, or several, replaced by the first that fits."""
    for canonical, original in names.items():
        if re.search(rf"(^|\.){re.escape(canonical)}(\.|$)", path):
            return re.sub(rf"(^|(?<=\.)){re.escape(canonical)}(?=\.|$)", original, path)
    return path


def _blocks(path: str) -> str:
    if path.startswith("single_transformer_blocks."):
        return path.replace("single_transformer_blocks.", "single_blocks.")
    return re.sub(r"^transformer_blocks\.", "double_blocks.", path)


_QKV = re.compile(r"^(.*)attn\.(?:to_([qkv])|add_([qkv])_proj)$")


def _qkv(path: str, image: str, text: str) -> Part | None:
    match = _QKV.match(path)
    if match is None:
        return None
    block, q, added = match.groups()
    return Part(_blocks(block) + (image if q else text), "qkv".index(q or added))


_BFL = {
    "attn.to_out.0": "img_attn.proj",
    "attn.to_add_out": "txt_attn.proj",
    "x_embedder": "img_in",
    "context_embedder": "txt_in",
}
_BFL_MLP = {
    "ff.net.0.proj": "img_mlp.0",
    "ff.net.2": "img_mlp.2",
    "ff_context.net.0.proj": "txt_mlp.0",
    "ff_context.net.2": "txt_mlp.2",
}


def chroma(path: str) -> Part:
    """Chroma's names are FLUX.1's; the network of modulation has its own."""
    if path.startswith("single_"):
        block, _, inside = path.partition(".attn.") if ".attn." in path else path.rpartition(".")
        if inside == "proj_out":
            return Part(_blocks(block) + ".linear2")
        return Part(_blocks(block) + ".linear1", ["to_q", "to_k", "to_v", "proj_mlp"].index(inside))
    if path == "proj_out":
        return Part("final_layer.linear")
    if path.startswith("distilled"):
        return Part(_renamed(path, {"linear_1": "in_layer", "linear_2": "out_layer"}))
    return _qkv(path, "img_attn.qkv", "txt_attn.qkv") or Part(_renamed(_blocks(path), _BFL | _BFL_MLP))


def flux2(path: str) -> Part:
    """FLUX.2's: the blocks of one stream are fused by diffusers, too."""
    names = {
        "attn.to_qkv_mlp_proj": "linear1",
        "ff.linear_in": "img_mlp.0",
        "ff.linear_out": "img_mlp.2",
        "ff_context.linear_in": "txt_mlp.0",
        "ff_context.linear_out": "txt_mlp.2",
        "time_guidance_embed.timestep_embedder.linear_1": "time_in.in_layer",
        "time_guidance_embed.timestep_embedder.linear_2": "time_in.out_layer",
        "time_guidance_embed.guidance_embedder.linear_1": "guidance_in.in_layer",
        "time_guidance_embed.guidance_embedder.linear_2": "guidance_in.out_layer",
        "proj_out": "final_layer.linear",
    }
    if path == "norm_out.linear":
        return Part("final_layer.adaLN_modulation.1", swapped=True)
    if "stream_modulation" in path:
        return Part(path.replace(".linear", ".lin"))
    if path.startswith("single_") and path.endswith("attn.to_out"):
        return Part(_blocks(path).replace("attn.to_out", "linear2"))
    return _qkv(path, "img_attn.qkv", "txt_attn.qkv") or Part(_renamed(_blocks(path), _BFL | names))


def qwen_image(path: str) -> Part:
    """Qwen-Image has diffusers' names."""
    return Part(path)


def sd3(blocks: int) -> Original:
    """Stability AI's names for a model of so many blocks."""
    names = {
        "attn.to_out.0": "x_block.attn.proj",
        "attn2.to_out.0": "x_block.attn2.proj",
        "attn.to_add_out": "context_block.attn.proj",
        "ff.net.0.proj": "x_block.mlp.fc1",
        "ff.net.2": "x_block.mlp.fc2",
        "ff_context.net.0.proj": "context_block.mlp.fc1",
        "ff_context.net.2": "context_block.mlp.fc2",
        "norm1.linear": "x_block.adaLN_modulation.1",
        "norm1_context.linear": "context_block.adaLN_modulation.1",
        "time_text_embed.timestep_embedder.linear_1": "t_embedder.mlp.0",
        "time_text_embed.timestep_embedder.linear_2": "t_embedder.mlp.2",
        "time_text_embed.text_embedder.linear_1": "y_embedder.mlp.0",
        "time_text_embed.text_embedder.linear_2": "y_embedder.mlp.2",
        "norm_out.linear": "final_layer.adaLN_modulation.1",
        "proj_out": "final_layer.linear",
    }
    last = f"joint_blocks.{blocks - 1}.context_block.adaLN_modulation.1"

    def original(path: str) -> Part:
        if match := re.match(r"^transformer_blocks\.(\d+)\.attn2\.to_([qkv])$", path):
            return Part(f"joint_blocks.{match[1]}.x_block.attn2.qkv", "qkv".index(match[2]))
        if part := _qkv(path, "x_block.attn.qkv", "context_block.attn.qkv"):
            return part._replace(module=part.module.replace("double_blocks", "joint_blocks"))
        module = _renamed(_blocks(path).replace("double_blocks", "joint_blocks"), names)
        return Part(module, swapped=module in (last, "final_layer.adaLN_modulation.1"))

    return original


def hunyuan_video(path: str) -> Part:
    """Tencent's names."""
    if path.startswith("context_embedder."):
        names = {
            "context_embedder.proj_in": "txt_in.input_embedder",
            "context_embedder.time_text_embed.timestep_embedder.linear_1": "txt_in.t_embedder.mlp.0",
            "context_embedder.time_text_embed.timestep_embedder.linear_2": "txt_in.t_embedder.mlp.2",
            "context_embedder.time_text_embed.text_embedder": "txt_in.c_embedder",
        }
        inside = {
            "attn.to_out.0": "self_attn_proj",
            "ff.net.0.proj": "mlp.fc1",
            "ff.net.2": "mlp.fc2",
            "norm_out.linear": "adaLN_modulation.1",
        }
        block = path.replace("context_embedder.token_refiner.refiner_blocks", "txt_in.individual_token_refiner.blocks")
        return _qkv(block, "self_attn_qkv", "") or Part(_renamed(_renamed(block, inside), names))
    if path.startswith("single_"):
        block, inside = re.match(r"^(single_transformer_blocks\.\d+)\.(.*)$", path).groups()  # type: ignore[union-attr]
        names = {"proj_out": "linear2", "norm.linear": "modulation.linear"}
        if inside in names:
            return Part(f"{_blocks(block)}.{names[inside]}")
        return Part(f"{_blocks(block)}.linear1", ["attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"].index(inside))
    names = {
        "attn.to_out.0": "img_attn_proj",
        "attn.to_add_out": "txt_attn_proj",
        "ff.net.0.proj": "img_mlp.fc1",
        "ff.net.2": "img_mlp.fc2",
        "ff_context.net.0.proj": "txt_mlp.fc1",
        "ff_context.net.2": "txt_mlp.fc2",
        "norm1.linear": "img_mod.linear",
        "norm1_context.linear": "txt_mod.linear",
        "time_text_embed.timestep_embedder.linear_1": "time_in.mlp.0",
        "time_text_embed.timestep_embedder.linear_2": "time_in.mlp.2",
        "time_text_embed.guidance_embedder.linear_1": "guidance_in.mlp.0",
        "time_text_embed.guidance_embedder.linear_2": "guidance_in.mlp.2",
        "time_text_embed.text_embedder.linear_1": "vector_in.in_layer",
        "time_text_embed.text_embedder.linear_2": "vector_in.out_layer",
        "proj_out": "final_layer.linear",
        "norm_out.linear": "final_layer.adaLN_modulation.1",
    }
    module = _renamed(_blocks(path), names)
    return _qkv(path, "img_attn_qkv", "txt_attn_qkv") or Part(module, swapped=module.startswith("final_layer.ada"))


ORIGINALS: dict[str, Original] = {
    "chroma": chroma,
    "flux2-dev": flux2,
    "flux2-klein-9b": flux2,
    "qwen-image": qwen_image,
    "sd3": sd3(24),
    "sd35-medium": sd3(24),
    "sd35-large": sd3(38),
    "hunyuan-video": hunyuan_video,
}
