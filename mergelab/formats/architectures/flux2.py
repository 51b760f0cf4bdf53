"""FLUX.2 dev, klein 9B and klein 4B: wider layers than FLUX.1's, one modulation for all blocks, one size for each.

A block of one stream computes q, k, v and the layer beside them in one module in diffusers' model, too.
"""

from __future__ import annotations

from mergelab.formats.architectures.architecture import Architecture, Kohya
from mergelab.formats.architectures.double_stream import (
    ATTENTION,
    DOUBLE_NORMS,
    FLUX1_WIDTH,
    SINGLE_NORMS,
    attends_to_text,
    fused_streams,
    has_flux1_ratio,
    is_width,
    may_be_width,
)
from mergelab.formats.architectures.evidence import Evidence
from mergelab.formats.architectures.naming import Block, Naming, holds

_DOUBLE = {
    **ATTENTION,
    "img_mlp.0": holds("ff.linear_in"),
    "img_mlp.2": holds("ff.linear_out"),
    "txt_mlp.0": holds("ff_context.linear_in"),
    "txt_mlp.2": holds("ff_context.linear_out"),
}
_SINGLE = {"linear1": holds("attn.to_qkv_mlp_proj"), "linear2": holds("attn.to_out")}
_MODULATIONS = ("double_stream_modulation_img", "double_stream_modulation_txt", "single_stream_modulation")
_TOP = {
    "img_in": holds("x_embedder"),
    "txt_in": holds("context_embedder"),
    "time_in.in_layer": holds("time_guidance_embed.timestep_embedder.linear_1"),
    "time_in.out_layer": holds("time_guidance_embed.timestep_embedder.linear_2"),
    **{f"{name}.lin": holds(f"{name}.linear") for name in _MODULATIONS},
    "final_layer.linear": holds("proj_out"),
    "final_layer.adaLN_modulation.1": holds("norm_out.linear", swapped=True),
}
# Distilled models take no guidance.
_GUIDANCE = {
    "guidance_in.in_layer": holds("time_guidance_embed.guidance_embedder.linear_1"),
    "guidance_in.out_layer": holds("time_guidance_embed.guidance_embedder.linear_2"),
}


def _naming(doubles: int, singles: int, guided: bool) -> Naming:
    return Naming(
        component="transformer",
        blocks=(
            Block("double_blocks.{}", "transformer_blocks.{}", _DOUBLE, norms=DOUBLE_NORMS, count=doubles),
            Block("single_blocks.{}", "single_transformer_blocks.{}", _SINGLE, norms=SINGLE_NORMS, count=singles),
            fused_streams(doubles),
        ),
        top=_TOP | (_GUIDANCE if guided else {}),
        linear=True,
    )


def _has_own_names(evidence: Evidence) -> bool:
    """Whether a module is FLUX.2's alone: some of FLUX.1's have these names, too, but other proportions."""
    return (
        evidence.named(r"_stream_modulation")
        or 9 in evidence.ratios(r"\.to_qkv_mlp_proj$")
        or 6 in evidence.ratios(r"\.linear_in$")
        or 1 / 3 in evidence.ratios(r"\.linear_out$")
        or 1 / 4 in evidence.ratios(r"^single_.*\.to_out$")
    )


def _model(
    size: str, title: str, width: int, blocks: tuple[int, int], context: int, header: str, guided: bool = False
) -> Architecture:
    """One of the models: its width and its numbers of blocks of two streams and of one."""

    def proves(evidence: Evidence) -> bool:
        # Attention alone is enough where no other model of two streams is as wide.
        tells = _has_own_names(evidence) or (width != FLUX1_WIDTH and attends_to_text(evidence))
        return tells and is_width(evidence, width)

    def fits(evidence: Evidence) -> bool:
        return may_be_width(evidence, width) and not has_flux1_ratio(evidence)

    def suggests(evidence: Evidence) -> bool:
        return fits(evidence) and _has_own_names(evidence)

    return Architecture(
        id=f"flux2-{size}",
        title=f"FLUX.2 {title}",
        denoiser="transformer",
        naming=_naming(*blocks, guided),
        proves=proves,
        fits=fits,
        suggests=suggests,
        header=header,
        modelspec=f"flux.2-{size}/lora",
        base_version=f"flux_2_{size.replace('-', '_')}",
        kohya=Kohya({}, network_module="networks.lora_flux_2"),
        repository=f"black-forest-labs/FLUX.2-{title.replace(' ', '-')}",
        model_class="Flux2Transformer2DModel",
        model_config={
            "attention_head_dim": 128,
            "guidance_embeds": guided,
            "in_channels": 128,
            "joint_attention_dim": context,
            "mlp_ratio": 3.0,
            "num_attention_heads": width // 128,
            "num_layers": blocks[0],
            "num_single_layers": blocks[1],
            "patch_size": 1,
            "timestep_guidance_channels": 256,
        },
    )


_NAME = r"flux[._-]?2"
_KLEIN = rf"{_NAME}[._-]?klein[._-]?(base[._-]?)?"
FLUX2_DEV = _model("dev", "dev", 6144, (8, 48), 15360, rf"{_NAME}(?![._-]?klein)", guided=True)
FLUX2_KLEIN_9B = _model("klein-9b", "klein 9B", 4096, (8, 24), 12288, rf"{_KLEIN}9b")
FLUX2_KLEIN_4B = _model("klein-4b", "klein 4B", 3072, (5, 20), 7680, rf"{_KLEIN}4b")
