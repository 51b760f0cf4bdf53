"""Which base model an adapter is for, and which it is not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import mergelab as ml
from mergelab.formats.architectures import detect

CROSS = "unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_k"
DOUBLE = "transformer.transformer_blocks.{}.attn.to_q"
QWEN = "transformer.transformer_blocks.0.img_mlp.net.2"
SD1_HEADER = {"modelspec.architecture": "stable-diffusion-v1/lora"}
FLUX2_HEADER = {"modelspec.architecture": "Flux.2-dev/lora"}
SINGLE = "transformer.single_transformer_blocks.{}.attn.to_q"

CASES: dict[str, tuple[dict[str, tuple[int, ...]], dict[str, str], str | None]] = {
    "SD 1.5": ({CROSS: (1280, 768)}, {}, "sd15"),
    "SD 2": ({CROSS: (1280, 1024)}, {}, "sd2"),
    "SDXL": ({CROSS: (1280, 2048)}, {}, "sdxl"),
    "both encoders, a UNet of another layout": (
        {CROSS: (64, 32), "text_encoder_2.text_model.encoder.layers.0.mlp.fc1": (64, 32)},
        {},
        None,
    ),
    "SDXL by depth": ({CROSS.replace("blocks.0", "blocks.9"): (64, 32)}, {}, "sdxl"),
    "a small UNet that says what it is": (
        {CROSS: (64, 32)},
        {"modelspec.architecture": "stable-diffusion-v1/lora"},
        "sd15",
    ),
    "FLUX": ({DOUBLE.format(18): (3072, 3072), SINGLE.format(37): (3072, 3072)}, {}, "flux"),
    "a small FLUX": ({SINGLE.format(0): (128, 128)}, {}, "flux"),
    "HunyuanVideo": ({DOUBLE.format(19): (3072, 3072), SINGLE.format(39): (3072, 3072)}, {}, None),
    "FLUX.2": ({DOUBLE.format(3): (6144, 6144)}, {}, None),
    "a FLUX.2 by its header": (
        {"transformer.x_embedder": (64, 32)},
        {"modelspec.architecture": "Flux.2-dev/lora"},
        None,
    ),
    "SD 3": ({DOUBLE.format(3): (1536, 1536)}, {}, None),
    "Qwen-Image": (
        {DOUBLE.format(3): (3072, 3072), QWEN: (3072, 12288)},
        {},
        None,
    ),
    "T5 alone": ({"text_encoder_2.encoder.block.0.layer.0.SelfAttention.q": (4096, 4096)}, {}, "flux"),
    "CLIP-G alone": ({"text_encoder_2.text_model.encoder.layers.0.mlp.fc1": (5120, 1280)}, {}, "sdxl"),
    "CLIP-L alone": ({"text_encoder.text_model.encoder.layers.0.mlp.fc1": (3072, 768)}, {}, None),
    "a text model": ({"model.model.layers.0.self_attn.q_proj": (64, 64)}, {}, None),
}


@pytest.mark.parametrize("case", CASES)
def test_detect(case: str) -> None:
    """From names and shapes first, then from the header."""
    shapes, metadata, expected = CASES[case]
    assert detect(shapes, metadata) == expected


def test_pissa_is_refused(tmp_path: Path) -> None:
    """Its factors belong to a base model that was changed at the start of training."""
    folder = tmp_path
    ml.load({"unet.conv_in.lora_A.weight": torch.ones(2, 3), "unet.conv_in.lora_B.weight": torch.ones(4, 2)}).save(
        folder / "a", format="peft"
    )
    config = json.loads((folder / "a" / "adapter_config.json").read_text())
    (folder / "a" / "adapter_config.json").write_text(json.dumps({**config, "init_lora_weights": "pissa_niter_4"}))
    with pytest.raises(ml.FormatError, match="pissa_niter_4"):
        ml.load(folder / "a")
