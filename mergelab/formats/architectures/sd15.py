"""Stable Diffusion 1.x."""

from __future__ import annotations

from mergelab.formats.architectures.architecture import Architecture, Kohya
from mergelab.formats.architectures.evidence import Evidence
from mergelab.formats.architectures.unet import Level, fits_unet, is_like_sdxl, text_widths, unet_naming

_LEVELS = (Level(320, True), Level(640, True), Level(1280, True), Level(1280, False))
# Blocks that SDXL does not have.
_OWN_BLOCKS = r"^(down_blocks\.(0\.attentions|3)|up_blocks\.3)\."


def _proves(evidence: Evidence) -> bool:
    return text_widths(evidence) == {768}


def _suggests(evidence: Evidence) -> bool:
    return evidence.denoiser == "unet" and not is_like_sdxl(evidence) and evidence.named(_OWN_BLOCKS)


SD15 = Architecture(
    id="sd15",
    title="SD 1.x",
    denoiser="unet",
    naming=unet_naming(_LEVELS, has_added_embedding=False),
    text_encoders={"text_encoder": "clip"},
    proves=_proves,
    fits=fits_unet,
    suggests=_suggests,
    header="stable-diffusion-v1|sd_v1",
    modelspec="stable-diffusion-v1/lora",
    base_version="sd_v1",
    kohya=Kohya({"text_encoder": "lora_te"}, original_names=False),
    any_size=True,
    repository="stable-diffusion-v1-5/stable-diffusion-v1-5",
    model_class="UNet2DConditionModel",
    model_config={
        "attention_head_dim": 8,
        "block_out_channels": [320, 640, 1280, 1280],
        "cross_attention_dim": 768,
        "down_block_types": ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
        "sample_size": 64,
        "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"],
    },
)
