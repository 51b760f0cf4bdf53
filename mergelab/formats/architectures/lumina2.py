"""Lumina Image 2.0: the original model has q, k and v in one module, of unequal sizes (grouped-query attention)."""

from __future__ import annotations

from mergelab.formats.architectures.architecture import Architecture, Kohya
from mergelab.formats.architectures.evidence import Evidence
from mergelab.formats.architectures.naming import Block, Naming, holds

_WIDTH = 2304
_COUNTS = {"layers": 26, "noise_refiner": 2, "context_refiner": 2}
_MODULES = {
    "attention.qkv": holds("attn.to_q", "attn.to_k", "attn.to_v", shares=(3, 1, 1)),
    "attention.out": holds("attn.to_out.0"),
    "feed_forward.w1": holds("feed_forward.linear_1"),
    "feed_forward.w2": holds("feed_forward.linear_2"),
    "feed_forward.w3": holds("feed_forward.linear_3"),
}
_MODULATION = {"adaLN_modulation.1": holds("norm1.linear")}
_NORMS = {
    "attention.q_norm": "attn.norm_q",
    "attention.k_norm": "attn.norm_k",
    "attention_norm2": "norm2",
    "ffn_norm1": "ffn_norm1",
    "ffn_norm2": "ffn_norm2",
}


def _block(root: str, count: int) -> Block:
    """The blocks of one kind; only the text's are not modulated."""
    path, text = f"{root}.{{}}", root == "context_refiner"
    modules = _MODULES if text else _MODULES | _MODULATION
    return Block(path, path, modules, _NORMS | {"attention_norm1": "norm1" if text else "norm1.norm"}, count)


_NAMING = Naming(
    component="transformer",
    blocks=tuple(_block(root, count) for root, count in _COUNTS.items()),
    top={
        "x_embedder": holds("x_embedder"),
        "cap_embedder.1": holds("time_caption_embed.caption_embedder.1"),
        "t_embedder.mlp.0": holds("time_caption_embed.timestep_embedder.linear_1"),
        "t_embedder.mlp.2": holds("time_caption_embed.timestep_embedder.linear_2"),
        "final_layer.adaLN_modulation.1": holds("norm_out.linear_1"),
        "final_layer.linear": holds("norm_out.linear_2"),
    },
    linear=True,
)

_WIDE = r"\.(attn\.to_[qkv]|feed_forward\.linear_[13]|attn\.to_out\.0)$"
# Z-Image, whose blocks have such names in ComfyUI, and Ideogram 4; OmniGen 2 has them in diffusers.
_OTHER_WIDTHS = {2520, 3840, 4608}


def _fits(evidence: Evidence) -> bool:
    return evidence.may_be(_COUNTS, _WIDE, _OTHER_WIDTHS)


def _proves(evidence: Evidence) -> bool:
    return _fits(evidence) and _WIDTH in evidence.inputs(_WIDE)


LUMINA2 = Architecture(
    id="lumina2",
    title="Lumina 2",
    denoiser="transformer",
    naming=_NAMING,
    proves=_proves,
    fits=_fits,
    suggests=_fits,
    header="lumina",
    modelspec="lumina-2/lora",
    base_version="lumina2",
    kohya=Kohya({}, network_module="networks.lora_lumina"),
    repository="Alpha-VLLM/Lumina-Image-2.0",
    model_class="Lumina2Transformer2DModel",
    model_config={
        "axes_dim_rope": [32, 32, 32],
        "cap_feat_dim": 2304,
        "hidden_size": _WIDTH,
        "in_channels": 16,
        "multiple_of": 256,
        "num_attention_heads": 24,
        "num_kv_heads": 8,
        "num_layers": 26,
        "num_refiner_layers": 2,
        "patch_size": 2,
        "sample_size": 128,
    },
)
