"""What is taken for an adapter and is none is named as what it is."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

import mergelab as ml
from mergelab.formats.strangers import check_adapter
from tests.files import LAYER, lora, numbers, write
from tests.keymaps import keymaps
from tests.refusing import Refused

BLOCK, SINGLE = "transformer_blocks.0", "single_transformer_blocks.0"


def packed(name: str, rank: int = 16) -> dict[str, Tensor]:
    """As nunchaku's `to_nunchaku` writes a layer: (inputs, rank) and (outputs, rank), no `.weight`."""
    return {f"{name}.lora_{end}": torch.zeros(32, rank, dtype=torch.bfloat16) for end in ("down", "up")}


KEYS: dict[str, tuple[dict[str, Tensor], str]] = {
    "nunchaku": ({**packed(f"{BLOCK}.qkv_proj"), **packed(f"{BLOCK}.mlp_fc1")}, "packed for nunchaku; give the file"),
    "nunchaku, single blocks": (packed(f"{SINGLE}.mlp_fc2"), "packed for nunchaku"),
    "nunchaku, modulation": (packed(f"{BLOCK}.norm1_context.linear"), "packed for nunchaku"),
    "nunchaku, with layers left alone": ({**packed(f"{BLOCK}.out_proj"), **lora("proj_out")}, "packed for nunchaku"),
    "nunchaku, Qwen-Image": (
        {f"{BLOCK}.attn.to_qkv.proj_{end}": numbers(8, 4) for end in ("down", "up")},
        "packed for nunchaku",
    ),
    "nunchaku, whole model": (
        {f"{BLOCK}.qkv_proj.{leaf}": numbers(8) for leaf in ("qweight", "wscales", "smooth")}
        | packed(f"{BLOCK}.qkv_proj"),
        "quantised model",
    ),
    "GPTQ": ({"model.layers.0.q_proj.qweight": numbers(8), "model.layers.0.q_proj.scales": numbers(8)}, "quantised"),
    "checkpoint": (
        {"model.diffusion_model.input_blocks.0.0.weight": numbers(4, 4), "first_stage_model.encoder.x": numbers(2)},
        "a whole checkpoint (a base model)",
    ),
    "FLUX": ({"double_blocks.0.img_attn.qkv.weight": numbers(8, 4)}, "holds the weights of a model"),
    "UNet": ({"down_blocks.0.resnets.0.conv1.weight": numbers(4, 4), "conv_in.bias": numbers(4)}, "weights of a model"),
    "VAE": ({"decoder.conv_in.weight": numbers(4, 4), "quant_conv.weight": numbers(4, 4)}, "is a VAE"),
    "ControlNet": ({"control_model.zero_convs.0.0.weight": numbers(4)}, "ControlNet"),
    "ControlNet of diffusers": ({"controlnet_down_blocks.0.weight": numbers(4)}, "ControlNet"),
    "ControlNet for FLUX": (
        {"controlnet_blocks.0.weight": numbers(4, 4), "x_embedder.weight": numbers(4)},
        "ControlNet",
    ),
    "T2I-Adapter": ({"adapter.body.0.resnets.0.block1.weight": numbers(4)}, "T2I-Adapter"),
    "Control-LoRA": ({"lora_controlnet": torch.zeros(0), "input_blocks.1.1.proj_in.up": numbers(4, 2)}, "Control-LoRA"),
    "IP-Adapter": (
        {"image_proj.proj.weight": numbers(4, 4), "ip_adapter.1.to_k_ip.weight": numbers(4, 4)},
        "is an IP-Adapter",
    ),
    "IP-Adapter FaceID": (
        {"image_proj.proj.0.weight": numbers(4, 4), "ip_adapter.0.to_q_lora.down.weight": numbers(2, 4)},
        "is an IP-Adapter",
    ),
    "IP-Adapter for FLUX": (
        {"double_blocks.0.processor.ip_adapter_double_stream_k_proj.weight": numbers(4, 4)},
        "is an IP-Adapter",
    ),
    "embedding": ({"emb_params": numbers(2, 8)}, "is a textual-inversion embedding"),
    "embedding of SDXL": ({"clip_l": numbers(2, 8), "clip_g": numbers(2, 8)}, "is a textual-inversion embedding"),
    "embedding of diffusers": ({"<style>": numbers(8)}, "is a textual-inversion embedding"),
}


@pytest.mark.parametrize("name", KEYS)
def test_tensors(name: str, tmp_path: Path, refused: Refused) -> None:
    """One sentence that names the file, the kind and a key; the same for a state dict."""
    tensors, what = KEYS[name]
    path = write(tmp_path / "x.safetensors", {key: tensor.clone() for key, tensor in tensors.items()})
    refused("inspect", path, needles=[str(path), what, "found '"])
    with pytest.raises(ml.FormatError, match="<state dict>: ") as caught:
        ml.load(tensors)
    assert what in str(caught.value)


FILES: dict[str, tuple[str, bytes, str]] = {
    "AI-Toolkit": (
        "merge.yaml",
        b"job: generate\nconfig:\n  process:\n  - model:\n      lora_paths:\n      - {path: a, weight: 1}\n",
        "is a configuration of AI-Toolkit: mergelab merge --config takes one",
    ),
    "AI-Toolkit, training": ("train.yaml", b"---\njob: extension\nconfig:\n  name: x\n", "AI-Toolkit"),
    "YAML": ("config.yml", b"loras: []\n", "is a YAML configuration"),
    "PEFT": (
        "adapter_config.json",
        b'{"r": 2, "peft_type": "LORA"}',
        "is the config of a PEFT adapter: give its folder",
    ),
    "LyCORIS": ("lycoris_config.json", b'{"algo": "lokr", "multiplier": 1.0}', "is a configuration of LyCORIS"),
    "LyCORIS preset": ("preset.toml", b'unet_target_module = ["Attention"]\n', "is a configuration of LyCORIS"),
    "JSON": ("workflow.json", b'{"nodes": []}', "is a JSON file"),
    "TOML": ("config.toml", b"[network]\n", "is a TOML configuration"),
    "GGUF": ("flux1-dev-Q4.gguf", b"GGUF\x03\x00\x00\x00", "is a GGUF file"),
    "GGUF by its content": ("flux.safetensors", b"GGUF\x03\x00\x00\x00", "is a GGUF file"),
    "LFS": ("x.safetensors", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "pointer of Git LFS"),
    "web page": ("x.safetensors", b"\n<!doctype HTML><html>", "is a web page"),
}


@pytest.mark.parametrize("name", FILES)
def test_files(name: str, tmp_path: Path, refused: Refused) -> None:
    """What is no safetensors file, by its content or its ending."""
    file, content, what = FILES[name]
    (tmp_path / file).write_bytes(content)
    refused("inspect", tmp_path / file, needles=[str(tmp_path / file), what, "expected safetensors"])


def test_adapters_are_none() -> None:
    """No file of any trainer is taken for one, nor layers beside an embedding or a whole norm."""
    for keymap in keymaps().values():
        check_adapter(keymap.shapes)
    check_adapter([*lora(), "clip_l", "emb_params"])
    check_adapter([*lora(), "transformer.transformer_blocks.0.attn.norm_q.weight"])
    assert list(ml.load({**lora(), "emb_params": numbers(2, 8)}).layers) == [LAYER]
