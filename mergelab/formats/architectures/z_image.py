"""Z-Image: diffusers' names are Tongyi's own; ComfyUI has q, k and v in one module."""

from __future__ import annotations

from mergelab.formats.architectures.architecture import Architecture, Kohya
from mergelab.formats.architectures.evidence import Evidence
from mergelab.formats.architectures.naming import Block, Naming, holds

_WIDTH = 3840
_COUNTS = {"layers": 30, "noise_refiner": 2, "context_refiner": 2}
_QKV = ("attention.to_q", "attention.to_k", "attention.to_v")
_MODULES = (*_QKV, "attention.to_out.0", "feed_forward.w1", "feed_forward.w2", "feed_forward.w3")
_NORMS = {
    "attention.q_norm": "attention.norm_q",
    "attention.k_norm": "attention.norm_k",
    **{path: path for path in ("attention_norm1", "attention_norm2", "ffn_norm1", "ffn_norm2")},
}
_FUSED = {
    "attention.to_out": holds("attention.to_out.0"),
    "attention.qkv": holds(*_QKV),
    "attention.out": holds("attention.to_out.0"),
}


def _blocks(root: str, count: int) -> tuple[Block, Block]:
    """The blocks of one kind, named as in diffusers, then as in ComfyUI; only the text's are not modulated."""
    path = f"{root}.{{}}"
    modules = _MODULES if root == "context_refiner" else (*_MODULES, "adaLN_modulation.0")
    same = Block(path, path, {module: holds(module) for module in modules}, _NORMS, count)
    return same, Block(path, path, _FUSED, count=count)


_SAME = """
    all_x_embedder.2-1 all_final_layer.2-1.linear all_final_layer.2-1.adaLN_modulation.1 cap_embedder.1
    t_embedder.mlp.0 t_embedder.mlp.2
""".split()
_NAMING = Naming(
    component="transformer",
    blocks=tuple(block for root, count in _COUNTS.items() for block in _blocks(root, count)),
    top={
        **{path: holds(path) for path in _SAME},
        "x_embedder": holds("all_x_embedder.2-1"),
        "final_layer.linear": holds("all_final_layer.2-1.linear"),
        "final_layer.adaLN_modulation.1": holds("all_final_layer.2-1.adaLN_modulation.1"),
    },
    linear=True,
)

_WIDE = r"\.(attention\.to_[qkv]|feed_forward\.w[13])$"
# Lumina 2 and Ideogram 4, whose blocks have such names in the original models.
_OTHER_WIDTHS = {2304, 4608}


def _fits(evidence: Evidence) -> bool:
    return evidence.may_be(_COUNTS, _WIDE, _OTHER_WIDTHS)


def _proves(evidence: Evidence) -> bool:
    return _fits(evidence) and (_WIDTH in evidence.inputs(_WIDE) or evidence.named(r"\.adaLN_modulation\.0$"))


Z_IMAGE = Architecture(
    id="z-image",
    title="Z-Image",
    denoiser="transformer",
    naming=_NAMING,
    proves=_proves,
    fits=_fits,
    suggests=_fits,
    header=r"z[-_]?image",
    modelspec="z-image/lora",
    base_version="z_image",
    kohya=Kohya({}, network_module="networks.lora_zimage"),
    repository="Tongyi-MAI/Z-Image-Turbo",
    model_class="ZImageTransformer2DModel",
    model_config={
        "all_f_patch_size": [1],
        "all_patch_size": [2],
        "axes_dims": [32, 48, 48],
        "cap_feat_dim": 2560,
        "dim": _WIDTH,
        "in_channels": 16,
        "n_heads": 30,
        "n_kv_heads": 30,
        "n_layers": 30,
        "n_refiner_layers": 2,
    },
)
