"""Which base model an adapter is for, told from names and shapes, then from the header."""

from __future__ import annotations

import re
from collections.abc import Mapping

ARCHITECTURES = ("sd15", "sd2", "sdxl", "flux")

# Width of the text embedding that cross-attention reads.
_CROSS_ATTENTION = {768: "sd15", 1024: "sd2", 2048: "sdxl"}
# Width of Stable Diffusion 3's transformers, whose modules are named as FLUX's double blocks are.
_SD3_WIDTHS = (1536, 2432)
_FLUX2_WIDTHS = (6144,)
_FLUX_BLOCKS = {"transformer_blocks": 19, "single_transformer_blocks": 38}


def detect(shapes: Mapping[str, tuple[int, ...]], metadata: Mapping[str, str]) -> str | None:
    """ "sd15", "sd2", "sdxl", "flux" or None.

    Args:
        shapes: canonical layer name -> shape of the weight, `(out, in[, kh, kw])`.
        metadata: the header's strings.
    """
    by_component: dict[str, dict[str, tuple[int, ...]]] = {}
    for name, shape in shapes.items():
        component, _, path = name.partition(".")
        by_component.setdefault(component, {})[path] = shape
    if "transformer" in by_component:
        return _transformer(by_component["transformer"], metadata)
    if "unet" in by_component:
        return _unet(by_component, metadata)
    second = by_component.get("text_encoder_2", {})
    if any(path.startswith("encoder.block.") for path in second):
        return "flux"
    if second:
        return "sdxl"
    first = by_component.get("text_encoder", {})
    if any(1024 in shape[:2] for path, shape in first.items() if ".self_attn." in path):
        return "sd2"
    return _declared(metadata) if first else None


def _transformer(shapes: Mapping[str, tuple[int, ...]], metadata: Mapping[str, str]) -> str | None:
    if any("to_qkv_mlp_proj" in path or re.search(r"\.(img|txt)_m(lp|od)\.", path) for path in shapes):
        return None
    blocks = [m.groups() for path in shapes if (m := re.match(r"((?:single_)?transformer_blocks)\.(\d+)\.", path))]
    if any(int(number) >= _FLUX_BLOCKS[kind] for kind, number in blocks):
        return None  # deeper: HunyuanVideo, Qwen-Image, ...
    widths = {shape[1] for path, shape in shapes.items() if re.search(r"\.attn\.(to|add)_[qkv]", path)}
    if widths & {*_SD3_WIDTHS, *_FLUX2_WIDTHS}:
        return None
    attends = any(".attn." in path for path in shapes) or any(kind.startswith("single") for kind, _ in blocks)
    return "flux" if attends or _declared(metadata) == "flux" else None


def _unet(components: Mapping[str, Mapping[str, tuple[int, ...]]], metadata: Mapping[str, str]) -> str | None:
    shapes = components["unet"]
    widths = {shape[1] for path, shape in shapes.items() if re.search(r"\.attn2\.to_[kv]$", path)}
    known = {_CROSS_ATTENTION[width] for width in widths if width in _CROSS_ATTENTION}
    if len(known) == 1 and len(widths) == 1:
        return known.pop()
    if declared := _declared(metadata):
        return declared
    depth = [int(m[1]) for path in shapes if (m := re.search(r"\.transformer_blocks\.(\d+)\.", path))]
    # A second text encoder beside a text embedding of unknown width is that of a model of another layout.
    second = "text_encoder_2" in components and not widths
    if max(depth, default=0) > 0 or second or any("add_embedding" in p for p in shapes):
        return "sdxl"
    if any(re.match(r"(down_blocks\.(0\.attentions|3)|up_blocks\.3)\.", path) for path in shapes):
        return "sd15"
    return None


def _declared(metadata: Mapping[str, str]) -> str | None:
    """What the header says: modelspec first, then kohya's base model version."""
    text = f"{metadata.get('modelspec.architecture', '')} {metadata.get('ss_base_model_version', '')}".lower()
    for needle, architecture in (
        (r"flux(?!\W?2)", "flux"),
        ("stable-diffusion-xl", "sdxl"),
        ("sdxl", "sdxl"),
        ("stable-diffusion-v2", "sd2"),
        ("sd_v2", "sd2"),
        ("stable-diffusion-v1", "sd15"),
        ("sd_v1", "sd15"),
    ):
        if re.search(needle, text):
            return architecture
    return None
