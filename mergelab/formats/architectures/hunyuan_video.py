"""HunyuanVideo: FLUX.1's blocks, one more of each, behind a small transformer that refines the text.

The original names are Tencent's, which musubi-tuner and diffusion-pipe train by and ComfyUI reads.
"""

from __future__ import annotations

from mergelab.formats.architectures.architecture import Architecture, Kohya
from mergelab.formats.architectures.double_stream import (
    ADDED_QKV,
    FLUX1_WIDTH,
    QKV,
    SINGLE,
    fused_stream,
    fused_streams,
    has_flux2_ratio,
    may_be_width,
    widths,
)
from mergelab.formats.architectures.evidence import Evidence
from mergelab.formats.architectures.naming import Block, Naming, holds

_DOUBLES, _SINGLES = 20, 40
_DOUBLE = {
    "img_attn_qkv": holds(*QKV),
    "txt_attn_qkv": holds(*ADDED_QKV),
    "img_attn_proj": holds("attn.to_out.0"),
    "txt_attn_proj": holds("attn.to_add_out"),
    "img_mlp.fc1": holds("ff.net.0.proj"),
    "img_mlp.fc2": holds("ff.net.2"),
    "txt_mlp.fc1": holds("ff_context.net.0.proj"),
    "txt_mlp.fc2": holds("ff_context.net.2"),
    "img_mod.linear": holds("norm1.linear"),
    "txt_mod.linear": holds("norm1_context.linear"),
}
_DOUBLE_NORMS = {
    "img_attn_q_norm": "attn.norm_q",
    "img_attn_k_norm": "attn.norm_k",
    "txt_attn_q_norm": "attn.norm_added_q",
    "txt_attn_k_norm": "attn.norm_added_k",
}
_REFINER = {
    "self_attn_qkv": holds(*QKV),
    "self_attn_proj": holds("attn.to_out.0"),
    "mlp.fc1": holds("ff.net.0.proj"),
    "mlp.fc2": holds("ff.net.2"),
    "adaLN_modulation.1": holds("norm_out.linear"),
}
_NAMING = Naming(
    component="transformer",
    blocks=(
        Block("double_blocks.{}", "transformer_blocks.{}", _DOUBLE, norms=_DOUBLE_NORMS, count=_DOUBLES),
        Block(
            "single_blocks.{}",
            "single_transformer_blocks.{}",
            {**SINGLE, "modulation.linear": holds("norm.linear")},
            norms={"q_norm": "attn.norm_q", "k_norm": "attn.norm_k"},
            count=_SINGLES,
        ),
        Block(
            "txt_in.individual_token_refiner.blocks.{}",
            "context_embedder.token_refiner.refiner_blocks.{}",
            _REFINER,
            norms={"norm1": "norm1", "norm2": "norm2"},
            count=2,
        ),
        fused_streams(_DOUBLES),
        fused_stream(_SINGLES),
    ),
    top={
        "img_in.proj": holds("x_embedder.proj"),
        "txt_in.input_embedder": holds("context_embedder.proj_in"),
        "txt_in.t_embedder.mlp.0": holds("context_embedder.time_text_embed.timestep_embedder.linear_1"),
        "txt_in.t_embedder.mlp.2": holds("context_embedder.time_text_embed.timestep_embedder.linear_2"),
        "txt_in.c_embedder.linear_1": holds("context_embedder.time_text_embed.text_embedder.linear_1"),
        "txt_in.c_embedder.linear_2": holds("context_embedder.time_text_embed.text_embedder.linear_2"),
        "time_in.mlp.0": holds("time_text_embed.timestep_embedder.linear_1"),
        "time_in.mlp.2": holds("time_text_embed.timestep_embedder.linear_2"),
        "vector_in.in_layer": holds("time_text_embed.text_embedder.linear_1"),
        "vector_in.out_layer": holds("time_text_embed.text_embedder.linear_2"),
        "guidance_in.mlp.0": holds("time_text_embed.guidance_embedder.linear_1"),
        "guidance_in.mlp.2": holds("time_text_embed.guidance_embedder.linear_2"),
        "final_layer.linear": holds("proj_out"),
        "final_layer.adaLN_modulation.1": holds("norm_out.linear", swapped=True),
    },
)
_HEADER = r"hunyuan[_-]?video(?![_-]?1[._]5)"
_OTHER_HEADERS = r"framepack|hunyuan[_-]?(image|video[_-]?1[._]5)"
_OTHER_DOUBLES, _OTHER_SINGLES = 19, 38
"""FLUX.1 has so many blocks, with the same names in diffusers."""


def _proves(evidence: Evidence) -> bool:
    deep = evidence.blocks("single_transformer_blocks") > _OTHER_SINGLES or (
        evidence.blocks("transformer_blocks") > _OTHER_DOUBLES and evidence.blocks("single_transformer_blocks") > 0
    )
    return _fits(evidence) and (deep or evidence.named(r"^context_embedder\."))


def _fits(evidence: Evidence) -> bool:
    """FramePack has HunyuanVideo's modules, but is another model; one of another width has to say that it is this."""
    other = evidence.says(_OTHER_HEADERS) or has_flux2_ratio(evidence)
    told = evidence.says(_HEADER) or widths(evidence) <= {FLUX1_WIDTH}
    return told and may_be_width(evidence, FLUX1_WIDTH) and not other


HUNYUAN_VIDEO = Architecture(
    id="hunyuan-video",
    title="HunyuanVideo",
    denoiser="transformer",
    naming=_NAMING,
    proves=_proves,
    fits=_fits,
    header=_HEADER,
    modelspec="hunyuan-video/lora",
    base_version="hunyuan_video",
    kohya=Kohya({}),
    repository="hunyuanvideo-community/HunyuanVideo",
    task="text-to-video",
    model_class="HunyuanVideoTransformer3DModel",
    model_config={
        "attention_head_dim": 128,
        "guidance_embeds": True,
        "in_channels": 16,
        "mlp_ratio": 4.0,
        "num_attention_heads": 24,
        "num_layers": _DOUBLES,
        "num_refiner_layers": 2,
        "num_single_layers": _SINGLES,
        "out_channels": 16,
        "patch_size": 2,
        "patch_size_t": 1,
        "pooled_projection_dim": 768,
        "qk_norm": "rms_norm",
        "text_embed_dim": 4096,
    },
)
