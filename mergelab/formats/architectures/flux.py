"""FLUX.1 (dev, schnell, Krea, Kontext, Fill, Control): Black Forest Labs' names are fused, diffusers' split."""

from __future__ import annotations

import re

from mergelab.formats.architectures import text_encoders
from mergelab.formats.architectures.architecture import Architecture, Kohya
from mergelab.formats.architectures.evidence import Evidence
from mergelab.formats.architectures.naming import Block, Naming, holds

_QKV = ("attn.to_q", "attn.to_k", "attn.to_v")
_DOUBLE = Block(
    "double_blocks.{}",
    "transformer_blocks.{}",
    {
        "img_attn.qkv": holds(*_QKV),
        "txt_attn.qkv": holds("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
        "img_attn.proj": holds("attn.to_out.0"),
        "txt_attn.proj": holds("attn.to_add_out"),
        "img_mlp.0": holds("ff.net.0.proj"),
        "img_mlp.2": holds("ff.net.2"),
        "txt_mlp.0": holds("ff_context.net.0.proj"),
        "txt_mlp.2": holds("ff_context.net.2"),
        "img_mod.lin": holds("norm1.linear"),
        "txt_mod.lin": holds("norm1_context.linear"),
    },
    norms={
        "img_attn.norm.query_norm": "attn.norm_q",
        "img_attn.norm.key_norm": "attn.norm_k",
        "txt_attn.norm.query_norm": "attn.norm_added_q",
        "txt_attn.norm.key_norm": "attn.norm_added_k",
    },
    count=19,
)
_SINGLE = Block(
    "single_blocks.{}",
    "single_transformer_blocks.{}",
    {
        "linear1": holds(*_QKV, "proj_mlp", rest=4),
        "linear2": holds("proj_out"),
        "modulation.lin": holds("norm.linear"),
    },
    norms={"norm.query_norm": "attn.norm_q", "norm.key_norm": "attn.norm_k"},
    count=38,
)
# XLabs trains q, k, v of a single block by themselves.
_SINGLE_XLABS = Block("single_blocks.{}", "single_transformer_blocks.{}", {"attn.qkv": holds(*_QKV)}, count=38)

_NAMING = Naming(
    component="transformer",
    blocks=(_DOUBLE, _SINGLE, _SINGLE_XLABS),
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

# Of Stable Diffusion 3 and of FLUX.2, whose modules have some of the names of FLUX.1's.
_OTHER_WIDTHS = {1536, 2432, 4096, 6144}
_WIDTH = 3072


def _contradicts(evidence: Evidence) -> bool:
    """Other models with such names: of another width, or with a feed-forward part of another size."""
    return bool(
        evidence.inputs(r"\.attn\.(to|add)_[qkv]") & _OTHER_WIDTHS
        or evidence.ratios(r"\.(proj_mlp|net\.0\.proj)$") - {4}
    )


def _proves(evidence: Evidence) -> bool:
    """What models with such names have not: modulation (Chroma), pooled text (Qwen-Image), CLIP beside a T5."""
    if evidence.denoiser is None:
        return text_encoders.has_t5(evidence)
    own = evidence.named(r"^single_transformer_blocks\.\d+\.norm\.linear$|^time_text_embed\.text_embedder")
    both = evidence.has("text_encoder") and evidence.has("text_encoder_2")
    return (own or both) and not _contradicts(evidence)


def _fits(evidence: Evidence) -> bool:
    if evidence.denoiser == "transformer":
        return not _contradicts(evidence)
    return text_encoders.alone(evidence)


def _suggests(evidence: Evidence) -> bool:
    """By far the most frequent of those with single blocks, or with as many double ones; alone in other widths."""
    if evidence.denoiser is None or _contradicts(evidence):
        return False
    attends = evidence.inputs(r"\.attn\.(to|add)_[qkv]")
    whole = evidence.blocks("single_transformer_blocks") > 0 or evidence.blocks("transformer_blocks") == _DOUBLE.count
    return whole or bool(attends and _WIDTH not in attends)


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
    text_encoders={"text_encoder": "clip", "text_encoder_2": "t5"},
    proves=_proves,
    fits=_fits,
    suggests=_suggests,
    header=r"flux(?!\W?2)",
    modelspec="flux-1-dev/lora",
    base_version="flux1",
    kohya=Kohya(
        {"text_encoder": "lora_te1", "text_encoder_2": "lora_te3"},
        network_module="networks.lora_flux",
        original_names=True,
    ),
    respell=_respell,
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
