"""Qwen-Image and Qwen-Image-Edit: blocks of two streams only. Diffusers' names are those of the original model."""

from __future__ import annotations

from mergelab.formats.architectures.architecture import Architecture, Kohya
from mergelab.formats.architectures.double_stream import (
    ADDED_QKV,
    FLUX1_WIDTH,
    QKV,
    attends_to_text,
    fused_streams,
    may_be_width,
)
from mergelab.formats.architectures.evidence import Evidence
from mergelab.formats.architectures.naming import Block, Naming, holds

_BLOCKS = 60
_STREAMS = ("img", "txt")
_INSIDE = (
    *QKV,
    *ADDED_QKV,
    "attn.to_out.0",
    "attn.to_add_out",
    *(f"{stream}_{part}" for stream in _STREAMS for part in ("mod.1", "mlp.net.0.proj", "mlp.net.2")),
)
_NORMS = ("attn.norm_q", "attn.norm_k", "attn.norm_added_q", "attn.norm_added_k")
_TOP = (
    "img_in",
    "txt_in",
    "time_text_embed.timestep_embedder.linear_1",
    "time_text_embed.timestep_embedder.linear_2",
    "norm_out.linear",
    "proj_out",
)
_NAMING = Naming(
    component="transformer",
    blocks=(
        Block(
            "transformer_blocks.{}",
            "transformer_blocks.{}",
            {path: holds(path) for path in _INSIDE},
            norms={path: path for path in _NORMS},
            count=_BLOCKS,
        ),
        fused_streams(_BLOCKS),
    ),
    top={path: holds(path) for path in _TOP},
    input_layer="img_in",
    linear=True,
)
# The deepest other model with such attention is Stable Diffusion 3.5 large.
_DEEPEST_OTHER = 38


def _proves(evidence: Evidence) -> bool:
    deep = evidence.blocks("transformer_blocks") > _DEEPEST_OTHER and attends_to_text(evidence)
    return _fits(evidence) and (deep or evidence.named(r"^transformer_blocks\.\d+\.(img|txt)_(mod|mlp)\."))


def _fits(evidence: Evidence) -> bool:
    return may_be_width(evidence, FLUX1_WIDTH)


QWEN_IMAGE = Architecture(
    id="qwen-image",
    title="Qwen-Image",
    denoiser="transformer",
    naming=_NAMING,
    proves=_proves,
    fits=_fits,
    header=r"qwen[_-]?image(?![_-]?2\.?[01]\b)",
    modelspec="qwen-image/lora",
    base_version="qwen_image",
    kohya=Kohya({}, network_module="networks.lora_qwen_image"),
    repository="Qwen/Qwen-Image",
    model_class="QwenImageTransformer2DModel",
    model_config={
        "attention_head_dim": 128,
        "guidance_embeds": False,
        "in_channels": 64,
        "joint_attention_dim": 3584,
        "num_attention_heads": 24,
        "num_layers": _BLOCKS,
        "out_channels": 16,
        "patch_size": 2,
    },
)
