"""Models of two streams have many names in common: what tells them apart in a file, and what a header does."""

from __future__ import annotations

import pytest

from mergelab.formats.architectures import ARCHITECTURES, Evidence
from mergelab.formats.recognising import detect

Shapes = dict[str, tuple[int, ...]]


def attention(width: int, blocks: int) -> Shapes:
    """Fused attention of blocks of two streams, by Black Forest Labs' names."""
    inside = {"qkv": (3 * width, width), "proj": (width, width)}
    return {
        f"diffusion_model.double_blocks.{number}.{stream}_attn.{module}": shape
        for number in range(blocks)
        for stream in ("img", "txt")
        for module, shape in inside.items()
    }


def split(width: int, blocks: int) -> Shapes:
    """The same by diffusers' names."""
    names = ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")
    return {f"transformer.transformer_blocks.{n}.attn.{name}": (width, width) for n in range(blocks) for name in names}


def one_stream(width: int, ratio: int, number: int = 0) -> Shapes:
    return {f"lora_unet_single_blocks_{number}_linear1": (ratio * width, width)}


HUNYUAN = {f"diffusion_model.double_blocks.{n}.img_attn_qkv": (9216, 3072) for n in range(3)} | {
    f"diffusion_model.double_blocks.{n}.img_mlp.fc1": (12288, 3072) for n in range(3)
}
SD3 = "transformer.transformer_blocks.{}.norm1.linear"

CASES: dict[str, tuple[Shapes, str | None]] = {
    # Names alone do not tell FLUX.1, Chroma, FLUX.2 klein 4B; how many blocks there are does, or how wide they are.
    "few blocks of 3072": (attention(3072, 4), None),
    "few blocks of 3072, split": (split(3072, 4), None),
    "19 blocks of 3072": (attention(3072, 19), "flux"),
    "19 blocks of 3072, split": (split(3072, 19), "flux"),
    "FLUX.2 dev by its width": (attention(6144, 4), "flux2-dev"),
    "FLUX.2 dev by its width, split": (split(6144, 4), "flux2-dev"),
    "FLUX.2 klein 9B by its width": (attention(4096, 4), "flux2-klein-9b"),
    "FLUX.1 by the ratio of its layers": (one_stream(3072, 7), "flux"),
    "FLUX.2 dev by ratio and width": (one_stream(6144, 9), "flux2-dev"),
    "FLUX.2 klein 9B by ratio and width": (one_stream(4096, 9), "flux2-klein-9b"),
    "FLUX.2 klein 4B by ratio and width": (one_stream(3072, 9), "flux2-klein-4b"),
    "a small FLUX.1": (one_stream(64, 7), "flux"),
    "a small FLUX.2 of any size": (one_stream(64, 9), None),
    "a small FLUX.2 by its depth": (one_stream(32, 9, 47), "flux2-dev"),
    "a mlp of FLUX.1": ({"diffusion_model.double_blocks.1.img_mlp.0": (12288, 3072)}, None),
    "a mlp of FLUX.2 klein 4B": ({"diffusion_model.double_blocks.1.img_mlp.0": (18432, 3072)}, "flux2-klein-4b"),
    "a mlp's end of FLUX.2 klein 4B": ({"diffusion_model.double_blocks.1.txt_mlp.2": (3072, 9216)}, "flux2-klein-4b"),
    "Chroma by its network": (
        attention(3072, 19) | {"diffusion_model.distilled_guidance_layer.layers.4.in_layer": (5120, 5120)},
        "chroma",
    ),
    "modulation, which Chroma has not": (
        attention(3072, 3) | {"diffusion_model.double_blocks.0.img_mod.lin": (18432, 3072)},
        "flux",
    ),
    "Qwen-Image by its depth": (split(3072, 60), "qwen-image"),
    "Qwen-Image by its names": (
        {"lora_unet_transformer_blocks_7_img_mlp_net_0_proj": (12288, 3072)},
        "qwen-image",
    ),
    "HunyuanVideo by its depth": (split(3072, 20) | one_stream(3072, 7, 39), "hunyuan-video"),
    "HunyuanVideo's own names, few blocks": (HUNYUAN, "hunyuan-video"),
    "SD 3.5 large by its width": (split(2432, 4), "sd35-large"),
    "SD 3 or 3.5 medium": (split(1536, 4), None),
    "SD 3 medium by its modulation": ({SD3.format(0): (9216, 1536)}, "sd3"),
    "SD 3.5 medium by its modulation": (split(1536, 4) | {SD3.format(0): (13824, 1536)}, "sd35-medium"),
    "SD 3.5 medium, where it is modulated as 3": ({SD3.format(13): (9216, 1536)}, None),
    "SD 3.5 medium by its second attention": (
        split(1536, 4) | {"transformer.transformer_blocks.0.attn2.to_q": (1536, 1536)},
        "sd35-medium",
    ),
    "a width of no model": (split(3584, 4), None),
}


@pytest.mark.parametrize("case", CASES)
def test_what_tells_them_apart(case: str) -> None:
    """Without a header; what may be another's is not told."""
    shapes, expected = CASES[case]
    assert detect(shapes, {}) == expected


@pytest.mark.parametrize("id", ["flux", "chroma", "flux2-klein-4b"])
def test_a_header_decides_between_models_that_look_alike(id: str) -> None:
    """Few blocks of attention, 3072 wide."""
    assert detect(attention(3072, 4), {"modelspec.architecture": ARCHITECTURES[id].modelspec}) == id


@pytest.mark.parametrize("id", ["flux2-dev", "sd3", "sd35-large"])
def test_a_header_is_not_believed_against_the_width(id: str) -> None:
    """Of another model of those names."""
    for shapes in (attention(3072, 4), split(3072, 4)):
        assert detect(shapes, {"modelspec.architecture": ARCHITECTURES[id].modelspec}) is None


# What tools write: sd-scripts, musubi-tuner, AI-toolkit, SwarmUI.
HEADERS = {
    "flux-1-dev/lora": "flux",
    "Flux.1-dev/lora": "flux",
    "flux.1": "flux",
    "flux.1_kontext": "flux",
    "flux_kontext": "flux",
    "chroma": "chroma",
    "chroma/lora": "chroma",
    "chroma_radiance": None,
    "zeta-chroma": None,
    "zeta_chroma": None,
    "flux2": "flux2-dev",
    "flux_2_dev": "flux2-dev",
    "Flux.2-dev/lora": "flux2-dev",
    "flux2_klein_4b": "flux2-klein-4b",
    "flux_2_klein_9b": "flux2-klein-9b",
    "Flux.2-klein-9b/lora": "flux2-klein-9b",
    "flux.2-klein-4b/lora": "flux2-klein-4b",
    "Qwen-Image/lora": "qwen-image",
    "Qwen-Image-Edit-2511/lora": "qwen-image",
    "qwen_image_edit_plus": "qwen-image",
    "qwen-image-2512": "qwen-image",
    "qwen-image-2.1": None,
    "hunyuan-video/lora": "hunyuan-video",
    "hunyuan_video": "hunyuan-video",
    "hunyuan_video_1_5": None,
    "hunyuan-video-1.5/lora": None,
    "framepack": None,
    "stable-diffusion-3-medium/lora": "sd3",
    "medium": "sd3",
    "stable-diffusion-v3-medium/lora": "sd3",
    "stable-diffusion-3-5-medium/lora": "sd35-medium",
    "stable-diffusion-v3.5-medium/lora": "sd35-medium",
    "5-medium": "sd35-medium",
    "stable-diffusion-3-3-5-large/lora": "sd35-large",
    "stable-diffusion-v3.5-large/lora": "sd35-large",
    "5-large": "sd35-large",
}


@pytest.mark.parametrize("key", ["modelspec.architecture", "ss_base_model_version"])
@pytest.mark.parametrize("said", HEADERS)
def test_what_tools_write_into_headers(said: str, key: str) -> None:
    """Is known as one model's, or as no known one's."""
    evidence = Evidence.of({}, {key: said})
    found = [a.id for a in ARCHITECTURES.values() if evidence.says(a.header)]
    assert found == [HEADERS[said]] if HEADERS[said] else not found


def test_a_header_may_name_a_family() -> None:
    """AI-toolkit says no more of Stable Diffusion 3 than that it is that; its width or its layers say which."""
    header = {"ss_base_model_version": "sd_3"}
    assert detect(split(2432, 4), header) == "sd35-large"
    assert detect(split(1536, 4), header) is None


def test_framepack_is_not_hunyuan_video() -> None:
    """Though it has its blocks."""
    assert detect(HUNYUAN, {"ss_base_model_version": "hunyuan_video"}) == "hunyuan-video"
    assert detect(HUNYUAN, {"ss_base_model_version": "framepack"}) is None
