"""Krea 2: gated attention whose keys and values are narrower than its queries (grouped-query attention)."""

from __future__ import annotations

from mergelab.formats.architectures.architecture import Architecture, Kohya
from mergelab.formats.architectures.evidence import Evidence
from mergelab.formats.architectures.naming import Block, Naming, holds

_WIDTH, _KEY_WIDTH = 6144, 1536
_LAYERS, _TEXT_LAYERS = 28, 2
_QKV = ("attn.to_q", "attn.to_k", "attn.to_v")
_MODULES = {
    **{path: holds(part) for path, part in zip(("attn.wq", "attn.wk", "attn.wv"), _QKV)},
    "attn.wo": holds("attn.to_out.0"),
    "attn.gate": holds("attn.to_gate"),
    "mlp.gate": holds("ff.gate"),
    "mlp.up": holds("ff.up"),
    "mlp.down": holds("ff.down"),
}
_NORMS = {
    "prenorm": "norm1",
    "postnorm": "norm2",
    "attn.qknorm.qnorm": "attn.norm_q",
    "attn.qknorm.knorm": "attn.norm_k",
}


def _blocks(original: str, canonical: str, count: int, shares: tuple[int, ...]) -> tuple[Block, Block]:
    """The blocks of one kind: the original's, and diffusers' as SimpleTuner trains it, with q, k and v in one."""
    fused = {"attn.to_qkv": holds(*_QKV, shares=shares), "attn.to_out": holds("attn.to_out.0")}
    return Block(original, canonical, _MODULES, _NORMS, count), Block(canonical, canonical, fused, count=count)


_NAMING = Naming(
    component="transformer",
    blocks=(
        *_blocks("blocks.{}", "transformer_blocks.{}", _LAYERS, (4, 1, 1)),
        *_blocks("txtfusion.layerwise_blocks.{}", "text_fusion.layerwise_blocks.{}", _TEXT_LAYERS, (1, 1, 1)),
        *_blocks("txtfusion.refiner_blocks.{}", "text_fusion.refiner_blocks.{}", _TEXT_LAYERS, (1, 1, 1)),
    ),
    top={
        "first": holds("img_in"),
        "tmlp.0": holds("time_embed.linear_1"),
        "tmlp.2": holds("time_embed.linear_2"),
        "tproj.1": holds("time_mod_proj"),
        "txtmlp.1": holds("txt_in.linear_1"),
        "txtmlp.3": holds("txt_in.linear_2"),
        "txtfusion.projector": holds("text_fusion.projector"),
        "last.linear": holds("final_layer.linear"),
    },
    linear=True,
)

_KEYS = r"^transformer_blocks\.\d+\.attn\.to_[kv]$"
_OWN_NAMES = r"\.attn\.to_gate$|\.ff\.(gate|up|down)$|^text_fusion\.|^time_mod_proj$"


def _fits(evidence: Evidence) -> bool:
    # FLUX.2 has modules of such names and of this width, with square keys.
    return evidence.may_be({"transformer_blocks": _LAYERS}) and (_WIDTH, _WIDTH) not in evidence.weights(_KEYS)


def _proves(evidence: Evidence) -> bool:
    return _fits(evidence) and (evidence.named(_OWN_NAMES) or (_KEY_WIDTH, _WIDTH) in evidence.weights(_KEYS))


KREA2 = Architecture(
    id="krea2",
    title="Krea 2",
    denoiser="transformer",
    naming=_NAMING,
    proves=_proves,
    fits=_fits,
    header=r"krea[-_ ]?2",
    modelspec="krea-2/lora",
    base_version="krea2",
    kohya=Kohya({}, network_module="networks.lora_krea2"),
    repository="krea/Krea-2-Raw",
    model_class="Krea2Transformer2DModel",
    model_config={
        "attention_head_dim": 128,
        "in_channels": 64,
        "intermediate_size": 16384,
        "num_attention_heads": 48,
        "num_key_value_heads": 12,
        "num_layers": _LAYERS,
        "num_layerwise_text_blocks": _TEXT_LAYERS,
        "num_refiner_text_blocks": _TEXT_LAYERS,
        "num_text_layers": 12,
        "text_hidden_dim": 2560,
        "text_intermediate_size": 6912,
        "text_num_attention_heads": 20,
        "text_num_key_value_heads": 20,
        "timestep_embed_dim": 256,
    },
)
