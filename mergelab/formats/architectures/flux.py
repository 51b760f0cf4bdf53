"""FLUX.1 (dev, schnell, Krea, Kontext, Fill, Control): Black Forest Labs' names are fused, diffusers' split."""

from __future__ import annotations

import re

from mergelab.formats.architectures import text_encoders
from mergelab.formats.architectures.architecture import Architecture, Kohya
from mergelab.formats.architectures.double_stream import (
    ATTENTION,
    DOUBLE_NORMS,
    FLUX1_WIDTH,
    MLP,
    QKV,
    SINGLE,
    SINGLE_NORMS,
    fused_stream,
    fused_streams,
    has_flux2_ratio,
    may_be_width,
    widths,
)
from mergelab.formats.architectures.evidence import Evidence
from mergelab.formats.architectures.naming import Block, Naming, holds

_DOUBLES, _SINGLES = 19, 38
_DOUBLE = Block(
    "double_blocks.{}",
    "transformer_blocks.{}",
    {
        **ATTENTION,
        **MLP,
        "img_mod.lin": holds("norm1.linear"),
        "txt_mod.lin": holds("norm1_context.linear"),
    },
    norms=DOUBLE_NORMS,
    count=_DOUBLES,
)
_SINGLE = Block(
    "single_blocks.{}",
    "single_transformer_blocks.{}",
    {**SINGLE, "modulation.lin": holds("norm.linear")},
    norms=SINGLE_NORMS,
    count=_SINGLES,
)
# XLabs trains q, k, v of a single block by themselves; ComfyUI has a name of its own for them.
_SINGLE_QKV = Block(
    "single_blocks.{}",
    "single_transformer_blocks.{}",
    {"attn.qkv": holds(*QKV), "linear1_qkv": holds(*QKV)},
    count=_SINGLES,
)

_NAMING = Naming(
    component="transformer",
    blocks=(_DOUBLE, _SINGLE, _SINGLE_QKV, fused_streams(_DOUBLES), fused_stream(_SINGLES)),
    top={
        "img_in": holds("x_embedder"),
        "txt_in": holds("context_embedder"),
        "time_in.in_layer": holds("time_text_embed.timestep_embedder.linear_1"),
        "time_in.out_layer": holds("time_text_embed.timestep_embedder.linear_2"),
        "vector_in.in_layer": holds("time_text_embed.text_embedder.linear_1"),
        "vector_in.out_layer": holds("time_text_embed.text_embedder.linear_2"),
        "guidance_in.in_layer": holds("time_text_embed.guidance_embedder.linear_1"),
        "guidance_in.out_layer": holds("time_text_embed.guidance_embedder.linear_2"),
        "final_layer.linear": holds("proj_out"),
        "final_layer.adaLN_modulation.1": holds("norm_out.linear", swapped=True),
    },
    input_layer="img_in",
    linear=True,
)

# Chroma, whose blocks are named alike, has none of them.
_MODULATION = r"\.norm1?(_context)?\.linear$|^(time_text_embed|norm_out)\."


def _may_be(evidence: Evidence) -> bool:
    return may_be_width(evidence, FLUX1_WIDTH) and not has_flux2_ratio(evidence)


def _is_deep(evidence: Evidence) -> bool:
    """Whether the last block is there. HunyuanVideo has one more of either kind, Qwen-Image has many more."""
    return evidence.blocks("transformer_blocks") == _DOUBLES or evidence.blocks("single_transformer_blocks") == _SINGLES


def _proves(evidence: Evidence) -> bool:
    """What models with such names have not, together: modulation, as many blocks; or CLIP beside a T5."""
    both = evidence.has("text_encoder") and evidence.has("text_encoder_2")
    return (both or (_is_deep(evidence) and evidence.named(_MODULATION))) and _may_be(evidence)


def _fits(evidence: Evidence) -> bool:
    return _may_be(evidence) or text_encoders.alone(evidence)


def _suggests(evidence: Evidence) -> bool:
    """By far the most frequent of those with such blocks, or with so many of them; and of miniatures."""
    if evidence.denoiser is None:
        return text_encoders.has_t5(evidence)
    found = widths(evidence)
    frequent = (
        evidence.blocks("single_transformer_blocks") > 0
        or _is_deep(evidence)
        or evidence.named(_MODULATION)
        or (found and FLUX1_WIDTH not in found)
    )
    return bool(frequent) and _may_be(evidence)


_XLABS = re.compile(r"^(.*?)(double|single)_blocks\.(\d+)\.processor\.(qkv|proj)_lora([12]?)\.(down|up)\.weight$")


def _respell(key: str) -> str:
    """XLabs' keys name attention processors: lora1 belongs to the image, lora2 to the text.

    Example:
        >>> _respell("double_blocks.7.processor.qkv_lora2.down.weight")
        'double_blocks.7.txt_attn.qkv.lora_down.weight'
    """
    match = _XLABS.match(key)
    if not match:
        return key
    prefix, kind, number, part, stream, factor = match.groups()
    if kind == "single":
        module = "attn.qkv" if part == "qkv" else "linear2"
    else:
        module = f"{'txt' if stream == '2' else 'img'}_attn.{part}"
    return f"{prefix}{kind}_blocks.{number}.{module}.lora_{factor}.weight"


FLUX = Architecture(
    id="flux",
    title="FLUX.1",
    denoiser="transformer",
    naming=_NAMING,
    proves=_proves,
    fits=_fits,
    suggests=_suggests,
    header=r"flux(?![._-]?[23])",
    modelspec="flux-1-dev/lora",
    base_version="flux1",
    kohya=Kohya(
        {"text_encoder": "lora_te1", "text_encoder_2": "lora_te3"},
        network_module="networks.lora_flux",
    ),
    text_encoders={"text_encoder": "clip", "text_encoder_2": "t5"},
    respell=_respell,
    any_size=True,
    repository="black-forest-labs/FLUX.1-dev",
    model_class="FluxTransformer2DModel",
    model_config={
        "attention_head_dim": 128,
        "guidance_embeds": True,
        "in_channels": 64,
        "joint_attention_dim": 4096,
        "num_attention_heads": 24,
        "num_layers": 19,
        "num_single_layers": 38,
        "patch_size": 1,
        "pooled_projection_dim": 768,
    },
)
