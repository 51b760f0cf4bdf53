"""Stable Diffusion XL, and the models with its keys: Illustrious, Pony, NoobAI."""

from __future__ import annotations

from mergelab.formats.architectures import text_encoders
from mergelab.formats.architectures.architecture import Architecture, Kohya
from mergelab.formats.architectures.evidence import Evidence
from mergelab.formats.architectures.unet import Level, fits_unet, is_like_sdxl, text_widths, unet_naming

_LEVELS = (Level(320, False), Level(640, True), Level(1280, True))


def _proves(evidence: Evidence) -> bool:
    if evidence.denoiser == "unet":
        widths = text_widths(evidence)
        return widths == {2048} or (evidence.blocks("transformer_blocks") > 1 and not widths & {768, 1024})
    return False


def _suggests(evidence: Evidence) -> bool:
    if evidence.denoiser is None:
        return evidence.has("text_encoder_2") and not text_encoders.has_t5(evidence)
    return evidence.denoiser == "unet" and is_like_sdxl(evidence)


SDXL = Architecture(
    id="sdxl",
    title="SDXL",
    denoiser="unet",
    naming=unet_naming(_LEVELS, has_added_embedding=True),
    text_encoders={"text_encoder": "clip", "text_encoder_2": "clip"},
    proves=_proves,
    fits=fits_unet,
    suggests=_suggests,
    header="stable-diffusion-xl|sdxl",
    modelspec="stable-diffusion-xl-v1-base/lora",
    base_version="sdxl_base_v1-0",
    kohya=Kohya({"text_encoder": "lora_te1", "text_encoder_2": "lora_te2"}),
    any_size=True,
    repository="stabilityai/stable-diffusion-xl-base-1.0",
    model_class="UNet2DConditionModel",
    model_config={
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "attention_head_dim": [5, 10, 20],
        "block_out_channels": [320, 640, 1280],
        "cross_attention_dim": 2048,
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
        "projection_class_embeddings_input_dim": 2816,
        "sample_size": 128,
        "transformer_layers_per_block": [1, 2, 10],
        "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
        "use_linear_projection": True,
    },
)
