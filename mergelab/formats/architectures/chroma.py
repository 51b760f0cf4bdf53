"""Chroma: FLUX.1 without modulation in its blocks; one small network makes all of it.

Adapters of attention alone look like FLUX.1's: the header says which, or the user.
"""

from __future__ import annotations

from mergelab.formats.architectures import text_encoders
from mergelab.formats.architectures.architecture import Architecture, Kohya
from mergelab.formats.architectures.double_stream import (
    ATTENTION,
    DOUBLE_NORMS,
    FLUX1_WIDTH,
    MLP,
    SINGLE,
    SINGLE_NORMS,
    fused_stream,
    fused_streams,
    has_flux2_ratio,
    may_be_width,
)
from mergelab.formats.architectures.evidence import Evidence
from mergelab.formats.architectures.naming import Block, Naming, holds

_DOUBLES, _SINGLES = 19, 38
_NETWORK = "distilled_guidance_layer"
_NAMING = Naming(
    component="transformer",
    blocks=(
        Block("double_blocks.{}", "transformer_blocks.{}", ATTENTION | MLP, norms=DOUBLE_NORMS, count=_DOUBLES),
        Block("single_blocks.{}", "single_transformer_blocks.{}", SINGLE, norms=SINGLE_NORMS, count=_SINGLES),
        Block(
            f"{_NETWORK}.layers.{{}}",
            f"{_NETWORK}.layers.{{}}",
            {"in_layer": holds("linear_1"), "out_layer": holds("linear_2")},
            count=5,
        ),
        fused_streams(_DOUBLES),
        fused_stream(_SINGLES),
    ),
    top={
        "img_in": holds("x_embedder"),
        "txt_in": holds("context_embedder"),
        f"{_NETWORK}.in_proj": holds(f"{_NETWORK}.in_proj"),
        f"{_NETWORK}.out_proj": holds(f"{_NETWORK}.out_proj"),
        "final_layer.linear": holds("proj_out"),
    },
    input_layer="img_in",
    linear=True,
)


def _proves(evidence: Evidence) -> bool:
    return evidence.denoiser == "transformer" and evidence.named(rf"^{_NETWORK}\.")


def _fits(evidence: Evidence) -> bool:
    if evidence.denoiser is None:
        return text_encoders.alone(evidence)
    return may_be_width(evidence, FLUX1_WIDTH) and not has_flux2_ratio(evidence)


CHROMA = Architecture(
    id="chroma",
    title="Chroma",
    denoiser="transformer",
    naming=_NAMING,
    text_encoders={"text_encoder": "t5"},
    proves=_proves,
    fits=_fits,
    header=r"(?<!zeta[_-])chroma(?![_-]?radiance)",
    modelspec="chroma/lora",
    base_version="chroma",
    kohya=Kohya({"text_encoder": "lora_te3"}, network_module="networks.lora_flux"),
    repository="lodestones/Chroma1-HD",
    model_class="ChromaTransformer2DModel",
    model_config={
        "approximator_hidden_dim": 5120,
        "approximator_layers": 5,
        "approximator_num_channels": 64,
        "attention_head_dim": 128,
        "in_channels": 64,
        "joint_attention_dim": 4096,
        "num_attention_heads": 24,
        "num_layers": _DOUBLES,
        "num_single_layers": _SINGLES,
        "patch_size": 1,
    },
)
