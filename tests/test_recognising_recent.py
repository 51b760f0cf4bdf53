"""Which of the newer base models an adapter is for, by names and shapes of a file, and by what trainers say of it."""

from __future__ import annotations

import pytest
import torch

import mergelab as ml
from mergelab.formats.architectures import ARCHITECTURES, Evidence

Shapes = dict[str, tuple[int, int]]

ATTN1 = "transformer.transformer_blocks.3.attn1.to_q"
ATTN2 = "transformer.transformer_blocks.3.attn2.to_k"
CASES: dict[str, tuple[Shapes, str | None]] = {
    "Z-Image": ({"diffusion_model.layers.29.attention.to_q": (3840, 3840)}, "z-image"),
    "Z-Image in ComfyUI's names": ({"diffusion_model.layers.0.attention.qkv": (11520, 3840)}, "z-image"),
    "a small one": ({"diffusion_model.layers.0.attention.qkv": (48, 16)}, "z-image"),
    "its feed-forward part": ({"diffusion_model.layers.0.feed_forward.w1": (10240, 3840)}, "z-image"),
    "as deep as Ideogram 4": ({"diffusion_model.layers.33.attention.qkv": (13824, 4608)}, None),
    "Lumina 2": ({"diffusion_model.layers.0.attention.qkv": (3840, 2304)}, "lumina2"),
    "Lumina 2 in diffusers' names": ({"transformer.layers.25.attn.to_k": (768, 2304)}, "lumina2"),
    "its feed-forward part, in both original names": (
        {"diffusion_model.layers.0.feed_forward.w1": (9216, 2304)},
        "lumina2",
    ),
    "of Z-Image or Lumina 2": ({"diffusion_model.layers.0.feed_forward.w1": (64, 16)}, None),
    "Krea 2": ({"diffusion_model.blocks.27.attn.wk": (1536, 6144)}, "krea2"),
    "Krea 2 or FLUX.2": ({"transformer.transformer_blocks.7.attn.to_q": (6144, 6144)}, None),
    "Krea 2 in diffusers' names": (
        {
            "transformer.transformer_blocks.20.attn.to_q": (6144, 6144),
            "transformer.transformer_blocks.20.attn.to_k": (1536, 6144),
        },
        "krea2",
    ),
    "its gates": ({"transformer.transformer_blocks.0.attn.to_gate": (16, 16)}, "krea2"),
    "Wan 14B": ({"diffusion_model.blocks.39.self_attn.q": (5120, 5120)}, "wan-14b"),
    "Wan 14B, from images": ({"diffusion_model.blocks.0.cross_attn.k_img": (5120, 5120)}, "wan-14b"),
    "Wan 5B": ({"lora_unet_blocks_29_ffn_0": (14336, 3072)}, "wan-5b"),
    "Wan 1.3B": ({"pipe.dit.blocks.0.cross_attn.o": (1536, 1536)}, "wan-1.3b"),
    "Wan 1.3B in diffusers' names": ({"transformer.blocks.0.attn2.to_v": (1536, 1536)}, "wan-1.3b"),
    "a small Wan": ({"diffusion_model.blocks.0.self_attn.q": (16, 16)}, None),
    "a small Wan that is deep": ({"diffusion_model.blocks.30.self_attn.q": (16, 16)}, "wan-14b"),
    "LTX-Video": ({ATTN1: (2048, 2048), ATTN2: (2048, 2048)}, "ltx-video"),
    "LTX-Video or Anima": ({ATTN1: (2048, 2048)}, None),
    "LTX-Video 13B or LTX-2": ({ATTN1: (4096, 4096), ATTN2: (4096, 4096)}, None),
    "LTX-Video 13B": ({ATTN1: (4096, 4096), "transformer.caption_projection.linear_1": (4096, 4096)}, "ltx-video-13b"),
    "LTX-2": ({ATTN1: (4096, 4096), ATTN1.replace("attn1", "audio_attn1"): (2048, 2048)}, "ltx-2"),
    "LTX-2.3": ({ATTN1.replace("to_q", "to_gate_logits"): (32, 4096)}, "ltx-2"),
    "HiDream": ({"diffusion_model.double_stream_blocks.0.block.ff_i.shared_experts.w1": (3584, 2560)}, "hidream"),
    "Anima": ({"lora_unet_blocks_27_self_attn_q_proj": (2048, 2048)}, "anima"),
    "Anima in diffusers' names": ({ATTN1: (2048, 2048), ATTN2: (2048, 1024)}, "anima"),
}


def architecture(shapes: Shapes) -> str | None:
    """Of a file of rank one."""
    file = {}
    for name, (out, inner) in shapes.items():
        file |= {f"{name}.lora_A.weight": torch.ones(1, inner), f"{name}.lora_B.weight": torch.ones(out, 1)}
    return ml.load(file).architecture


@pytest.mark.parametrize("case", CASES)
def test_from_names_and_shapes(case: str) -> None:
    """Models that look alike do not prove each other."""
    shapes, expected = CASES[case]
    assert architecture(shapes) == expected


# What SwarmUI, sd-scripts, musubi-tuner, OneTrainer and AI-toolkit write.
HEADERS: dict[str, set[str]] = {
    "z-image/lora": {"z-image"},
    "Z-Image/lora": {"z-image"},
    "z_image": {"z-image"},
    "zimage": {"z-image"},
    "lumina-2/lora": {"lumina2"},
    "lumina2": {"lumina2"},
    "krea-2/lora": {"krea2"},
    "krea2": {"krea2"},
    "wan": {"wan-14b", "wan-5b", "wan-1.3b"},
    "wan2.1/lora": {"wan-14b", "wan-5b", "wan-1.3b"},
    "wan_2.1": {"wan-14b", "wan-5b", "wan-1.3b"},
    "wan_2.2_14b": {"wan-14b"},
    "wan_2.2_5b": {"wan-5b"},
    "wan-2_1-text2video-1_3b/lora": {"wan-1.3b"},
    "wan-2_1-text2video-14b/lora": {"wan-14b"},
    "wan-2_2-ti2v-5b/lora": {"wan-5b"},
    "lightricks-ltx-video": {"ltx-video"},
    "lightricks-ltx-video-2/lora": {"ltx-2"},
    "lightricks-ltx-video-2-3": {"ltx-2"},
    "ltx2": {"ltx-2"},
    "hidream-i1/lora": {"hidream"},
    "hidream_i1": {"hidream"},
    "hidream_o1_image": set(),
    "anima/lora": {"anima"},
    "Anima/lora": {"anima"},
    "anima-preview/lora": {"anima"},
    "anima-unknown": {"anima"},
    "animatediff": set(),
}


@pytest.mark.parametrize("header", HEADERS)
def test_from_the_header(header: str) -> None:
    """Each says what it means, under either key."""
    for key in ("modelspec.architecture", "ss_base_model_version"):
        evidence = Evidence.of({}, {key: header})
        assert {id for id, known in ARCHITECTURES.items() if evidence.says(known.header)} == HEADERS[header]
