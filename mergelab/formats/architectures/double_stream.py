"""What transformers of two streams have in common: image and text attend to each other, each by modules of its own.

These models have many names in common, and some their widths. What tells them apart is how often a block can occur
(`Block.count`), names that one of them alone has, the published widths, and how many times wider a layer is than the
model.
"""

from __future__ import annotations

from mergelab.formats.architectures.evidence import Evidence
from mergelab.formats.architectures.naming import Block, holds

QKV = ("attn.to_q", "attn.to_k", "attn.to_v")
ADDED_QKV = ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj")

# Rows of the tables of Black Forest Labs' models, which others have taken over.
ATTENTION = {
    "img_attn.qkv": holds(*QKV),
    "txt_attn.qkv": holds(*ADDED_QKV),
    "img_attn.proj": holds("attn.to_out.0"),
    "txt_attn.proj": holds("attn.to_add_out"),
}
MLP = {
    "img_mlp.0": holds("ff.net.0.proj"),
    "img_mlp.2": holds("ff.net.2"),
    "txt_mlp.0": holds("ff_context.net.0.proj"),
    "txt_mlp.2": holds("ff_context.net.2"),
}
SINGLE = {"linear1": holds(*QKV, "proj_mlp", rest=4), "linear2": holds("proj_out")}
DOUBLE_NORMS = {
    "img_attn.norm.query_norm": "attn.norm_q",
    "img_attn.norm.key_norm": "attn.norm_k",
    "txt_attn.norm.query_norm": "attn.norm_added_q",
    "txt_attn.norm.key_norm": "attn.norm_added_k",
}
SINGLE_NORMS = {"norm.query_norm": "attn.norm_q", "norm.key_norm": "attn.norm_k"}

_STREAMS = "transformer_blocks.{}"
_STREAM = "single_transformer_blocks.{}"

# Inputs of these modules are as many as the model is wide.
_FROM_STREAM = (
    r"\.(attn2?\.(to_[qkv]|add_[qkv]_proj|to_qkv_mlp_proj)|proj_mlp|(ff(_context)?|(img|txt)_mlp)\.net\.0\.proj"
    r"|ff(_context)?\.linear_in|norm1?(_context)?\.linear|(img|txt)_mod\.1)$"
)
# And outputs of these.
_TO_STREAM = r"\.(to_out\.0|to_add_out|net\.2|linear_out)$|^single_.*\.(proj_out|to_out)$"
FLUX1_WIDTH = 3072
"""Also of Chroma, FLUX.2 klein 4B, Qwen-Image and HunyuanVideo."""
_WIDTHS = {1536, 2432, FLUX1_WIDTH, 3584, 4096, 6144}
"""Of published models of two streams: a model of another width, a miniature, may be any of them."""


def fused_streams(count: int) -> Block:
    """Names of nunchaku and diffusers, whose fused q, k, v have a module of their own beside the usual ones."""
    added = dict.fromkeys(("attn.add_qkv_proj", "attn.to_added_qkv"), holds(*ADDED_QKV))
    return Block(_STREAMS, _STREAMS, {"attn.to_qkv": holds(*QKV), **added}, count=count)


def fused_stream(count: int) -> Block:
    """The same for a block of one stream."""
    return Block(_STREAM, _STREAM, {"attn.to_qkv": holds(*QKV)}, count=count)


def widths(evidence: Evidence) -> set[int]:
    """How wide the model is, as its modules tell that read a stream or write to one."""
    read = {shape[1] for shape in evidence.weights(_FROM_STREAM)}
    return read | {shape[0] for shape in evidence.weights(_TO_STREAM)}


def is_width(evidence: Evidence, width: int) -> bool:
    """Whether the modules tell this width and no other."""
    return widths(evidence) == {width}


def may_be_width(evidence: Evidence, width: int) -> bool:
    """Whether it is a transformer and no module tells the width of another published model."""
    return evidence.denoiser == "transformer" and not widths(evidence) & (_WIDTHS - {width})


def attends_to_text(evidence: Evidence) -> bool:
    """Whether a module of the text's attention is there, which models of one stream do not have."""
    return evidence.named(r"\.attn\.(add_[qkv]_proj|to_add_out)$")


def has_flux2_ratio(evidence: Evidence) -> bool:
    """Whether layers, read by the names of FLUX.1, are as wide as FLUX.2's: 6 and 3 times the model, not 4."""
    return (
        6 in evidence.ratios(r"\.(proj_mlp|net\.0\.proj)$")
        or 1 / 3 in evidence.ratios(r"\.net\.2$")
        or 1 / 4 in evidence.ratios(r"^single_.*\.proj_out$")
    )


def has_flux1_ratio(evidence: Evidence) -> bool:
    """Whether layers, read by the names of FLUX.2, are as wide as FLUX.1's."""
    return (
        4 in evidence.ratios(r"\.linear_in$")
        or 1 / 4 in evidence.ratios(r"\.linear_out$")
        or 7 in evidence.ratios(r"\.to_qkv_mlp_proj$")
        or 1 / 5 in evidence.ratios(r"^single_.*\.to_out$")
    )
