"""Anima: the modules of Cosmos-Predict2 2B, and a text conditioner of its own between text encoder and blocks."""

from __future__ import annotations

from mergelab.formats.architectures.architecture import Architecture, Kohya
from mergelab.formats.architectures.evidence import Evidence
from mergelab.formats.architectures.naming import Block, Naming, holds

_WIDTH, _TEXT_WIDTH, _MODULATION_RANK = 2048, 1024, 256
_LAYERS = 28
_MODULES = {
    **{
        f"{original}.{path}": holds(f"{canonical}.{part}")
        for original, canonical in (("self_attn", "attn1"), ("cross_attn", "attn2"))
        for path, part in (("q_proj", "to_q"), ("k_proj", "to_k"), ("v_proj", "to_v"), ("output_proj", "to_out.0"))
    },
    "mlp.layer1": holds("ff.net.0.proj"),
    "mlp.layer2": holds("ff.net.2"),
    **{
        f"adaln_modulation_{original}.{number}": holds(f"{canonical}.linear_{number}")
        for original, canonical in (("self_attn", "norm1"), ("cross_attn", "norm2"), ("mlp", "norm3"))
        for number in (1, 2)
    },
}
_NORMS = {
    f"{original}.{x}_norm": f"{canonical}.norm_{x}"
    for original, canonical in (("self_attn", "attn1"), ("cross_attn", "attn2"))
    for x in ("q", "k")
}
_NAMING = Naming(
    component="transformer",
    blocks=(Block("blocks.{}", "transformer_blocks.{}", _MODULES, _NORMS, _LAYERS),),
    top={
        "x_embedder.proj.1": holds("patch_embed.proj"),
        "t_embedder.1.linear_1": holds("time_embed.t_embedder.linear_1"),
        "t_embedder.1.linear_2": holds("time_embed.t_embedder.linear_2"),
        "final_layer.adaln_modulation.1": holds("norm_out.linear_1"),
        "final_layer.adaln_modulation.2": holds("norm_out.linear_2"),
        "final_layer.linear": holds("proj_out"),
    },
    linear=True,
)
_CONDITIONER_PATHS = (
    *(f"{attn}.{part}_proj" for attn in ("self_attn", "cross_attn") for part in ("q", "k", "v", "o")),
    "mlp.0",
    "mlp.2",
)
CONDITIONER = Naming(
    component="text_conditioner",
    blocks=(Block("llm_adapter.blocks.{}", "blocks.{}", {path: holds(path) for path in _CONDITIONER_PATHS}, count=6),),
    top={"llm_adapter.out_proj": holds("out_proj")},
    linear=True,
)

_WIDE = r"^transformer_blocks\.\d+\.(attn1\.|attn2\.to_(q|out\.0)$|ff\.net\.0\.)"
_TEXT = r"\.attn2\.to_[kv]$"
_MODULATION = r"\.norm[123]\.linear_1$"


def _fits(evidence: Evidence) -> bool:
    if evidence.denoiser is None:
        return evidence.has(CONDITIONER.component)
    # LTX-Video's blocks have these names in diffusers, and the 2B's this width.
    own_depth = evidence.may_be({"transformer_blocks": _LAYERS}, _WIDE, {4096, 5120})
    return own_depth and (_WIDTH, _WIDTH) not in evidence.weights(_TEXT)


def _proves(evidence: Evidence) -> bool:
    return _fits(evidence) and (
        (_WIDTH, _TEXT_WIDTH) in evidence.weights(_TEXT)
        or (_MODULATION_RANK, _WIDTH) in evidence.weights(_MODULATION)
        or evidence.has(CONDITIONER.component)
    )


ANIMA = Architecture(
    id="anima",
    title="Anima",
    denoiser="transformer",
    naming=_NAMING,
    companions=(CONDITIONER,),
    proves=_proves,
    fits=_fits,
    suggests=_fits,
    header=r"(?<![a-z])anima(?![a-z])",
    modelspec="anima/lora",
    base_version="anima",
    kohya=Kohya({}, network_module="networks.lora_anima"),
    model_class="CosmosTransformer3DModel",
    model_config={
        "adaln_lora_dim": _MODULATION_RANK,
        "attention_head_dim": 128,
        "concat_padding_mask": True,
        "extra_pos_embed_type": None,
        "in_channels": 16,
        "mlp_ratio": 4.0,
        "num_attention_heads": 16,
        "num_layers": _LAYERS,
        "out_channels": 16,
        "patch_size": [1, 2, 2],
        "text_embed_dim": _TEXT_WIDTH,
    },
)
