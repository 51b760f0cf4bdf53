"""Small files of tensors, good and bad, for the tests of what is refused."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

LAYER = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
OTHER = "unet.mid_block.attentions.0.proj_in"
TEXT = "text_encoder.text_model.encoder.layers.0.self_attn.q_proj"
A, B = f"{LAYER}.lora_A.weight", f"{LAYER}.lora_B.weight"
BIAS_SUFFIX, ALPHA = f"{LAYER}.lora_B.bias", f"{LAYER}.alpha"
KOHYA = "lora_unet_mid_block_resnets_0_conv1"
FORMATS = ("diffusers", "kohya", "peft")
OUTPUTS = {"diffusers": "out.safetensors", "kohya": "out.safetensors", "peft": "out"}
Tensors = dict[str, Tensor]


def numbers(*shape: int) -> Tensor:
    """Random numbers of order one, the same every time."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def lora(layer: str = LAYER, out: int = 8, inner: int = 8, rank: int = 2) -> Tensors:
    """The factors of one layer."""
    return {f"{layer}.lora_A.weight": numbers(rank, inner), f"{layer}.lora_B.weight": numbers(out, rank)}


def write(path: Path, *parts: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> Path:
    """A safetensors file, written by the safetensors package."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({key: tensor for part in parts for key, tensor in part.items()}, path, metadata)
    return path


def content(folder: Path) -> dict[str, str]:
    """Everything in a folder, hidden files as well, with a digest of each file."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "folder"
        for path in folder.rglob("*")
    }
