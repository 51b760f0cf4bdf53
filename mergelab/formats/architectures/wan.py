"""Wan 2.1 and 2.2, in three sizes: video from text, and from an image, whose embedding 2.1 reads beside the text's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mergelab.formats.architectures.architecture import Architecture, Kohya, Rule
from mergelab.formats.architectures.evidence import Evidence
from mergelab.formats.architectures.naming import Block, Naming, holds

_MODULES = {
    **{
        f"{original}.{path}": holds(f"{canonical}.{part}")
        for original, canonical in (("self_attn", "attn1"), ("cross_attn", "attn2"))
        for path, part in (("q", "to_q"), ("k", "to_k"), ("v", "to_v"), ("o", "to_out.0"))
    },
    "ffn.0": holds("ffn.net.0.proj"),
    "ffn.2": holds("ffn.net.2"),
}
_IMAGE_MODULES = {
    "cross_attn.k_img": holds("attn2.add_k_proj"),
    "cross_attn.v_img": holds("attn2.add_v_proj"),
}
_NORMS = {
    "norm3": "norm2",
    "self_attn.norm_q": "attn1.norm_q",
    "self_attn.norm_k": "attn1.norm_k",
    "cross_attn.norm_q": "attn2.norm_q",
    "cross_attn.norm_k": "attn2.norm_k",
}
_IMAGE_NORMS = {"cross_attn.norm_k_img": "attn2.norm_added_k"}
_IMAGE_EMBEDDING = Block(
    "img_emb.proj",
    "condition_embedder.image_embedder",
    {"1": holds("ff.net.0.proj"), "3": holds("ff.net.2")},
    norms={"0": "norm1", "4": "norm2"},
)
_TOP = {
    "patch_embedding": holds("patch_embedding"),
    "time_embedding.0": holds("condition_embedder.time_embedder.linear_1"),
    "time_embedding.2": holds("condition_embedder.time_embedder.linear_2"),
    "time_projection.1": holds("condition_embedder.time_proj"),
    "text_embedding.0": holds("condition_embedder.text_embedder.linear_1"),
    "text_embedding.2": holds("condition_embedder.text_embedder.linear_2"),
    "head.head": holds("proj_out"),
}
_WIDTHS = frozenset({1536, 3072, 5120})
_WIDE = r"^blocks\.\d+\.(attn[12]\.|ffn\.net\.0\.)|^condition_embedder\.time_proj$"


def _naming(layers: int, reads_images: bool) -> Naming:
    modules, norms = (_MODULES | _IMAGE_MODULES, _NORMS | _IMAGE_NORMS) if reads_images else (_MODULES, _NORMS)
    block = Block("blocks.{}", "blocks.{}", modules, norms, layers)
    blocks = (block, _IMAGE_EMBEDDING) if reads_images else (block,)
    return Naming("transformer", blocks, _TOP)


def _rules(width: int, layers: int) -> tuple[Rule, Rule]:
    """What proves one of the sizes, and what fits it."""

    def fits(evidence: Evidence) -> bool:
        return evidence.may_be({"blocks": layers}, _WIDE, _WIDTHS - {width})

    def proves(evidence: Evidence) -> bool:
        return fits(evidence) and width in evidence.inputs(_WIDE)

    return proves, fits


def _wan(
    size: str, header: str, modelspec: str, base_version: str, repository: str, config: Mapping[str, Any]
) -> Architecture:
    width = config["num_attention_heads"] * 128
    proves, fits = _rules(width, config["num_layers"])
    return Architecture(
        id=f"wan-{size.lower()}",
        title=f"Wan {size}",
        denoiser="transformer",
        naming=_naming(config["num_layers"], "image_dim" in config),
        proves=proves,
        fits=fits,
        suggests=fits,
        header=header,
        modelspec=modelspec,
        base_version=base_version,
        kohya=Kohya({}, network_module="networks.lora_wan"),
        repository=repository,
        task="text-to-video",
        model_class="WanTransformer3DModel",
        model_config={"attention_head_dim": 128, "freq_dim": 256, "text_dim": 4096, **config},
    )


# A header may say "wan" alone, of any size.
_OF_1_3B, _OF_5B, _OF_14B = r"1[._]3b", r"(?<!\d)5b", "14b"
# In two sizes the configuration is that of the models that read an image (2.1 I2V, Fun), which have all modules.
WAN_1_3B = _wan(
    "1.3B",
    rf"(?<![a-z])wan(?!.*(?:{_OF_5B}|{_OF_14B}))",
    "wan-2_1-text2video-1_3b/lora",
    "wan_2.1_1.3b",
    "Wan-AI/Wan2.1-T2V-1.3B-Diffusers",
    {
        "added_kv_proj_dim": 1536,
        "ffn_dim": 8960,
        "image_dim": 1280,
        "in_channels": 36,
        "num_attention_heads": 12,
        "num_layers": 30,
        "out_channels": 16,
    },
)
WAN_5B = _wan(
    "5B",
    rf"(?<![a-z])wan(?!.*(?:{_OF_1_3B}|{_OF_14B}))",
    "wan-2_2-ti2v-5b/lora",
    "wan_2.2_5b",
    "Wan-AI/Wan2.2-TI2V-5B-Diffusers",
    {"ffn_dim": 14336, "in_channels": 48, "num_attention_heads": 24, "num_layers": 30, "out_channels": 48},
)
WAN_14B = _wan(
    "14B",
    rf"(?<![a-z])wan(?!.*(?:{_OF_1_3B}|{_OF_5B}))",
    "wan-2_1-text2video-14b/lora",
    "wan_2.1_14b",
    "",  # 2.1 or 2.2, from words or from an image: layers do not tell
    {
        "added_kv_proj_dim": 5120,
        "ffn_dim": 13824,
        "image_dim": 1280,
        "in_channels": 36,
        "num_attention_heads": 40,
        "num_layers": 40,
        "out_channels": 16,
    },
)
