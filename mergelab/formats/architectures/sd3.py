"""Stable Diffusion 3 medium, 3.5 medium and 3.5 large: blocks of two streams, q, k and v fused in the original.

The text's stream ends before the last block does: that has the text's q, k and v only, and its modulation the other
way round. The first 13 blocks of 3.5 medium attend to the image a second time.
"""

from __future__ import annotations

from mergelab.formats.architectures import text_encoders
from mergelab.formats.architectures.architecture import Architecture, Kohya, Rule
from mergelab.formats.architectures.double_stream import (
    ADDED_QKV,
    QKV,
    fused_streams,
    is_width,
    may_be_width,
)
from mergelab.formats.architectures.evidence import Evidence
from mergelab.formats.architectures.naming import Block, Naming, holds

_IMAGE = {
    "x_block.attn.qkv": holds(*QKV),
    "x_block.attn.proj": holds("attn.to_out.0"),
    "x_block.mlp.fc1": holds("ff.net.0.proj"),
    "x_block.mlp.fc2": holds("ff.net.2"),
    "x_block.adaLN_modulation.1": holds("norm1.linear"),
}
_TEXT_QKV = {"context_block.attn.qkv": holds(*ADDED_QKV)}
_TEXT = _TEXT_QKV | {
    "context_block.attn.proj": holds("attn.to_add_out"),
    "context_block.mlp.fc1": holds("ff_context.net.0.proj"),
    "context_block.mlp.fc2": holds("ff_context.net.2"),
    "context_block.adaLN_modulation.1": holds("norm1_context.linear"),
}
_LAST_TEXT = _TEXT_QKV | {"context_block.adaLN_modulation.1": holds("norm1_context.linear", swapped=True)}
_SECOND = {
    "x_block.attn2.qkv": holds("attn2.to_q", "attn2.to_k", "attn2.to_v"),
    "x_block.attn2.proj": holds("attn2.to_out.0"),
}
_NORMS = {
    "x_block.attn.ln_q": "attn.norm_q",
    "x_block.attn.ln_k": "attn.norm_k",
    "context_block.attn.ln_q": "attn.norm_added_q",
    "context_block.attn.ln_k": "attn.norm_added_k",
}
_SECOND_NORMS = {"x_block.attn2.ln_q": "attn2.norm_q", "x_block.attn2.ln_k": "attn2.norm_k"}
_TOP = {
    "x_embedder.proj": holds("pos_embed.proj"),
    "context_embedder": holds("context_embedder"),
    "t_embedder.mlp.0": holds("time_text_embed.timestep_embedder.linear_1"),
    "t_embedder.mlp.2": holds("time_text_embed.timestep_embedder.linear_2"),
    "y_embedder.mlp.0": holds("time_text_embed.text_embedder.linear_1"),
    "y_embedder.mlp.2": holds("time_text_embed.text_embedder.linear_2"),
    "final_layer.linear": holds("proj_out"),
    "final_layer.adaLN_modulation.1": holds("norm_out.linear", swapped=True),
}
_ORIGINAL, _CANONICAL = "joint_blocks.{}", "transformer_blocks.{}"
_WIDTH, _LARGE_WIDTH = 1536, 2432
_SECOND_BLOCKS = 13


def _naming(blocks: int, has_norms: bool, second: int = 0) -> Naming:
    """Of so many blocks, the last of them without the end of the text's stream."""
    norms, last = (_NORMS if has_norms else {}), str(blocks - 1)
    twice = Block(_ORIGINAL, _CANONICAL, _SECOND, norms=_SECOND_NORMS, count=second)
    return Naming(
        component="transformer",
        blocks=(
            Block(_ORIGINAL, _CANONICAL, _IMAGE | _TEXT, norms=norms, count=blocks - 1),
            Block(_ORIGINAL.replace("{}", last), _CANONICAL.replace("{}", last), _IMAGE | _LAST_TEXT, norms=norms),
            *([twice] if second else []),
            fused_streams(blocks),
        ),
        top=_TOP,
    )


def _has_second(evidence: Evidence) -> bool:
    """Whether blocks attend twice, as 3.5 medium's do: by their names, or as their modulation is wider for it."""
    return evidence.named(r"\.attn2\.") or 9 in evidence.ratios(r"\.norm1\.linear$")


def _has_single_modulation(evidence: Evidence) -> bool:
    """Whether a block that attends twice in 3.5 medium is modulated for one attention."""
    first = rf"^transformer_blocks\.({'|'.join(map(str, range(_SECOND_BLOCKS)))})\.norm1\.linear$"
    return 6 in evidence.ratios(first)


def _proves_medium(evidence: Evidence) -> bool:
    return is_width(evidence, _WIDTH) and _has_single_modulation(evidence) and not _has_second(evidence)


def _proves_35_medium(evidence: Evidence) -> bool:
    attends = evidence.named(r"\.attn\.") and _has_second(evidence)
    return attends and may_be_width(evidence, _WIDTH) and not _has_single_modulation(evidence)


def _proves_35_large(evidence: Evidence) -> bool:
    return is_width(evidence, _LARGE_WIDTH) and evidence.named(r"\.attn\.|\.norm1(_context)?\.linear$|^pos_embed\.")


def _model(
    id: str, title: str, proves: Rule, against: Rule, blocks: int, width: int, has_norms: bool = True, second: int = 0
) -> Architecture:
    """One of the models: what proves it, what speaks against it, how deep and wide it is."""

    def fits(evidence: Evidence) -> bool:
        if evidence.denoiser is None:
            return text_encoders.alone(evidence)
        return may_be_width(evidence, width) and not against(evidence)

    number, size = title.split()
    return Architecture(
        id=id,
        title=f"Stable Diffusion {title}",
        denoiser="transformer",
        naming=_naming(blocks, has_norms, second),
        text_encoders={"text_encoder": "clip", "text_encoder_2": "clip", "text_encoder_3": "t5"},
        proves=proves,
        fits=fits,
        header=_header(number, size),
        modelspec=f"stable-diffusion-v{number}-{size}/lora",
        base_version=f"{number.removeprefix('3.')}-{size}" if "." in number else size,
        projected=frozenset({"text_encoder", "text_encoder_2"}),
        kohya=Kohya(
            {"text_encoder": "lora_te1", "text_encoder_2": "lora_te2", "text_encoder_3": "lora_te3"},
            network_module="networks.lora_sd3",
        ),
        repository=f"stabilityai/stable-diffusion-{number}-{size}{'-diffusers' if number == '3' else ''}",
        model_class="SD3Transformer2DModel",
        model_config={
            "attention_head_dim": 64,
            "caption_projection_dim": width,
            "dual_attention_layers": list(range(second)),
            "in_channels": 16,
            "joint_attention_dim": 4096,
            "num_attention_heads": width // 64,
            "num_layers": blocks,
            "out_channels": 16,
            "patch_size": 2,
            "pooled_projection_dim": 2048,
            "pos_embed_max_size": 384 if second else 192,
            "qk_norm": "rms_norm" if has_norms else None,
            "sample_size": 128,
        },
    )


def _header(number: str, size: str) -> str:
    """SwarmUI's id ("stable-diffusion-v3.5-large"), and kohya's ("stable-diffusion-3-5-large", older "3-3-5").

    Kohya's base model version is the size alone ("medium", "5-large"), AI-toolkit's says no more than "sd_3".
    """
    if number == "3":
        return rf"stable-diffusion-v?3-{size}|(^| ){size}\b|sd_3\b"
    return rf"stable-diffusion-(v3\.5|(3-)?3-5)-{size}|(^| )(3-)?5-{size}\b|sd_3\b"


SD3 = _model("sd3", "3 medium", _proves_medium, _has_second, 24, _WIDTH, has_norms=False)
SD35_MEDIUM = _model(
    "sd35-medium", "3.5 medium", _proves_35_medium, _has_single_modulation, 24, _WIDTH, second=_SECOND_BLOCKS
)
SD35_LARGE = _model("sd35-large", "3.5 large", _proves_35_large, _has_second, 38, _LARGE_WIDTH)
