"""LTX-Video (2B and 13B), and LTX-2, which adds audio: in most modules named alike by diffusers and Lightricks."""

from __future__ import annotations

from mergelab.formats.architectures.architecture import Architecture
from mergelab.formats.architectures.evidence import Evidence
from mergelab.formats.architectures.naming import Block, Holds, Naming, holds

_ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
_FEED_FORWARD = ("net.0.proj", "net.2")
_EMBEDDER = ("emb.timestep_embedder.linear_1", "emb.timestep_embedder.linear_2", "linear")


def _same(parents: str, paths: tuple[str, ...]) -> dict[str, Holds]:
    return {f"{parent}.{path}": holds(f"{parent}.{path}") for parent in parents.split() for path in paths}


def _block(attentions: str, paths: tuple[str, ...], feed_forwards: str, count: int) -> Block:
    norms = {f"{name}.{x}_norm": f"{name}.norm_{x}" for name in attentions.split() for x in ("q", "k")}
    modules = _same(attentions, paths) | _same(feed_forwards, _FEED_FORWARD)
    return Block("transformer_blocks.{}", "transformer_blocks.{}", modules, norms, count)


def _naming(block: Block, embedders: dict[str, str], projections: dict[str, str]) -> Naming:
    top = {f"{a}.{path}": holds(f"{b}.{path}") for a, b in embedders.items() for path in _EMBEDDER}
    return Naming("transformer", (block,), top | {a: holds(b) for a, b in projections.items()}, linear=True)


_EMBEDDERS = {"adaln_single": "time_embed"}
_PROJECTIONS = {
    "patchify_proj": "proj_in",
    "proj_out": "proj_out",
    "caption_projection.linear_1": "caption_projection.linear_1",
    "caption_projection.linear_2": "caption_projection.linear_2",
}
_LTX2_ATTENTION = "attn1 attn2 audio_attn1 audio_attn2 audio_to_video_attn video_to_audio_attn"
_LTX2_EMBEDDERS = {
    "audio_adaln_single": "audio_time_embed",
    "av_ca_video_scale_shift_adaln_single": "av_cross_attn_video_scale_shift",
    "av_ca_audio_scale_shift_adaln_single": "av_cross_attn_audio_scale_shift",
    "av_ca_a2v_gate_adaln_single": "av_cross_attn_video_a2v_gate",
    "av_ca_v2a_gate_adaln_single": "av_cross_attn_audio_v2a_gate",
    "prompt_adaln_single": "prompt_adaln",
    "audio_prompt_adaln_single": "audio_prompt_adaln",
}
_LTX2_PROJECTIONS = {
    "audio_patchify_proj": "audio_proj_in",
    "audio_proj_out": "audio_proj_out",
    "audio_caption_projection.linear_1": "audio_caption_projection.linear_1",
    "audio_caption_projection.linear_2": "audio_caption_projection.linear_2",
}
# Between text encoder and denoiser; a checkpoint has them within the denoiser.
CONNECTORS = Naming(
    component="connectors",
    blocks=tuple(
        Block(
            f"{medium}_embeddings_connector.transformer_1d_blocks.{{}}",
            f"{medium}_connector.transformer_blocks.{{}}",
            _same("attn1", (*_ATTENTION, "to_gate_logits")) | _same("ff", _FEED_FORWARD),
        )
        for medium in ("video", "audio")
    ),
    top={
        f"text_embedding_projection.{medium}aggregate_embed": holds(f"{medium}text_proj_in")
        for medium in ("", "video_", "audio_")
    },
    linear=True,
)
_OWN_NAMES = r"(^|\.)audio_|video_to_audio_attn|\.to_gate_logits$|^av_cross_attn_|^prompt_adaln\."
_LAYERS, _LAYERS_13B, _LAYERS_LTX2 = 28, 48, 48
_WIDTH, _LARGE_WIDTH = 2048, 4096
_WIDE = r"^transformer_blocks\.\d+\.(attn[12]\.to_(q|out\.0)|attn1\.to_[kv]|ff\.net\.0\.proj)$"
_TEXT = r"\.attn2\.to_[kv]$"
_CAPTION = r"^caption_projection\.linear_1$"
_T5_WIDTH, _GEMMA_WIDTH = 4096, 3840


def _is_ltx_video(evidence: Evidence, layers: int, other_width: int) -> bool:
    return (
        evidence.may_be({"transformer_blocks": layers}, _WIDE, {other_width})
        and not evidence.named(_OWN_NAMES)
        and _GEMMA_WIDTH not in evidence.inputs(_CAPTION)
        # Anima has a narrower text embedding.
        and 1024 not in evidence.inputs(_TEXT)
    )


def _fits(evidence: Evidence) -> bool:
    return _is_ltx_video(evidence, _LAYERS, _LARGE_WIDTH)


def _proves(evidence: Evidence) -> bool:
    # Anima's self-attention has this shape, too.
    return _fits(evidence) and (_WIDTH, _WIDTH) in evidence.weights(_TEXT)


def _fits_13b(evidence: Evidence) -> bool:
    return _is_ltx_video(evidence, _LAYERS_13B, _WIDTH)


def _proves_13b(evidence: Evidence) -> bool:
    # The blocks alone may be those of LTX-2, trained without audio.
    return _fits_13b(evidence) and (_LARGE_WIDTH, _T5_WIDTH) in evidence.weights(_CAPTION)


def _fits_ltx2(evidence: Evidence) -> bool:
    if evidence.denoiser is None:
        return evidence.has(CONNECTORS.component)
    own = evidence.may_be({"transformer_blocks": _LAYERS_LTX2}, _WIDE, {_WIDTH})
    return own and _T5_WIDTH not in evidence.inputs(_CAPTION)


def _proves_ltx2(evidence: Evidence) -> bool:
    return _fits_ltx2(evidence) and (
        evidence.named(_OWN_NAMES) or _GEMMA_WIDTH in evidence.inputs(_CAPTION) or evidence.has(CONNECTORS.component)
    )


_NUMBER_2 = r"(?:[-_ ]?v(?:ideo)?)?[-_ ]?2(?!b)"
LTX_VIDEO = Architecture(
    id="ltx-video",
    title="LTX-Video",
    denoiser="transformer",
    naming=_naming(_block("attn1 attn2", _ATTENTION, "ff", _LAYERS), _EMBEDDERS, _PROJECTIONS),
    proves=_proves,
    fits=_fits,
    suggests=_fits,
    header=rf"ltx(?!{_NUMBER_2})(?!.*13b)",
    modelspec="lightricks-ltx-video/lora",
    base_version="ltx_video",
    kohya=None,
    repository="Lightricks/LTX-Video",
    task="text-to-video",
    model_class="LTXVideoTransformer3DModel",
    model_config={
        "attention_head_dim": 64,
        "caption_channels": _T5_WIDTH,
        "cross_attention_dim": _WIDTH,
        "in_channels": 128,
        "num_attention_heads": 32,
        "num_layers": _LAYERS,
    },
)
LTX_VIDEO_13B = Architecture(
    id="ltx-video-13b",
    title="LTX-Video 13B",
    denoiser="transformer",
    naming=_naming(_block("attn1 attn2", _ATTENTION, "ff", _LAYERS_13B), _EMBEDDERS, _PROJECTIONS),
    proves=_proves_13b,
    fits=_fits_13b,
    suggests=_fits_13b,
    header=rf"ltx(?!{_NUMBER_2}).*13b",
    modelspec="lightricks-ltx-video-13b/lora",
    base_version="ltx_video_13b",
    kohya=None,
    repository="Lightricks/LTX-Video-0.9.7-dev",
    task="text-to-video",
    model_class="LTXVideoTransformer3DModel",
    model_config={
        **LTX_VIDEO.model_config,
        "attention_head_dim": 128,
        "cross_attention_dim": _LARGE_WIDTH,
        "num_layers": _LAYERS_13B,
    },
)
LTX2 = Architecture(
    id="ltx-2",
    title="LTX-2",
    denoiser="transformer",
    naming=_naming(
        _block(_LTX2_ATTENTION, (*_ATTENTION, "to_gate_logits"), "ff audio_ff", _LAYERS_LTX2),
        _EMBEDDERS | _LTX2_EMBEDDERS,
        _PROJECTIONS | _LTX2_PROJECTIONS,
    ),
    companions=(CONNECTORS,),
    proves=_proves_ltx2,
    fits=_fits_ltx2,
    suggests=_fits_ltx2,
    header=rf"ltx{_NUMBER_2}",
    modelspec="lightricks-ltx-video-2/lora",
    base_version="ltx2",
    kohya=None,
    repository="Lightricks/LTX-2",
    task="text-to-video",
    model_class="LTX2VideoTransformer3DModel",
    # Of LTX-2.3, with the caption projections, which 2.0 alone has: all modules of both.
    model_config={
        "attention_head_dim": 128,
        "audio_attention_head_dim": 64,
        "audio_cross_attention_dim": 2048,
        "audio_cross_attn_mod": True,
        "audio_gated_attn": True,
        "audio_num_attention_heads": 32,
        "caption_channels": _GEMMA_WIDTH,
        "cross_attention_dim": _LARGE_WIDTH,
        "cross_attn_mod": True,
        "gated_attn": True,
        "in_channels": 128,
        "num_attention_heads": 32,
        "num_layers": _LAYERS_LTX2,
        "use_prompt_embeddings": True,
    },
)
