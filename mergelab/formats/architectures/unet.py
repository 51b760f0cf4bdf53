"""The UNet of Stable Diffusion: diffusers' names and those of the original implementation ("sgm"), for any depth.

Both UNets have two residual blocks per level on the way down and three on the way up, each with an attention block
beside it where the level attends.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from mergelab.formats.architectures import text_encoders
from mergelab.formats.architectures.evidence import Evidence
from mergelab.formats.architectures.naming import Block, Holds, Naming, holds

_RESNET = {
    "in_layers.0": holds("norm1"),
    "in_layers.2": holds("conv1"),
    "emb_layers.1": holds("time_emb_proj"),
    "out_layers.0": holds("norm2"),
    "out_layers.3": holds("conv2"),
}
_WIDENED = _RESNET | {"skip_connection": holds("conv_shortcut")}
_TOP = {
    "input_blocks.0.0": holds("conv_in"),
    "time_embed.0": holds("time_embedding.linear_1"),
    "time_embed.2": holds("time_embedding.linear_2"),
    "out.0": holds("conv_norm_out"),
    "out.2": holds("conv_out"),
}
_ADDED = {
    "label_emb.0.0": holds("add_embedding.linear_1"),
    "label_emb.0.2": holds("add_embedding.linear_2"),
}
# Within the attention blocks, whose modules are named alike; and what diffusers' UNet has beside the tables.
_INSIDE = """
    attentions transformer_blocks proj_in proj_out proj norm norm1 norm2 norm3 attn1 attn2 to_q to_k to_v to_out ff net
    time_embedding add_embedding linear_1 linear_2 label_emb
"""


class Level(NamedTuple):
    """One resolution of the UNet: its width, and whether it has attention blocks."""

    width: int
    attends: bool


def unet_naming(levels: Sequence[Level], has_added_embedding: bool) -> Naming:
    """The names of a UNet.

    Args:
        levels: from the widest image to the narrowest.
        has_added_embedding: whether the size of the image is embedded beside the time.
    """
    blocks = [*_way_down(levels), *_middle(), *_way_up(levels)]
    top: dict[str, Holds] = _TOP | (_ADDED if has_added_embedding else {})
    return Naming("unet", tuple(blocks), top, frozenset(_INSIDE.split()), endings={"to_out": "to_out.0"})


def _way_down(levels: Sequence[Level]) -> Iterator[Block]:
    width = levels[0].width
    for i, level in enumerate(levels):
        for layer in range(2):
            resnet = _RESNET if level.width == width else _WIDENED
            yield from _pair(f"input_blocks.{3 * i + layer + 1}", f"down_blocks.{i}", layer, resnet, level.attends)
            width = level.width
        if i < len(levels) - 1:
            yield Block(f"input_blocks.{3 * i + 3}.0", f"down_blocks.{i}.downsamplers.0", {"op": holds("conv")})


def _middle() -> Iterator[Block]:
    yield Block("middle_block.0", "mid_block.resnets.0", _RESNET)
    yield Block("middle_block.1", "mid_block.attentions.0")
    yield Block("middle_block.2", "mid_block.resnets.1", _RESNET)


def _way_up(levels: Sequence[Level]) -> Iterator[Block]:
    for i, level in enumerate(reversed(levels)):
        for layer in range(3):
            # Each reads what the way down has left as well, and so is widened.
            yield from _pair(f"output_blocks.{3 * i + layer}", f"up_blocks.{i}", layer, _WIDENED, level.attends)
        if i < len(levels) - 1:
            # Behind the attention block, or in its place where the level has none.
            original = f"output_blocks.{3 * i + 2}.{2 if level.attends else 1}"
            yield Block(original, f"up_blocks.{i}.upsamplers.0", {"conv": holds("conv")})


def _pair(original: str, canonical: str, layer: int, resnet: dict[str, Holds], attends: bool) -> Iterator[Block]:
    yield Block(f"{original}.0", f"{canonical}.resnets.{layer}", resnet)
    if attends:
        yield Block(f"{original}.1", f"{canonical}.attentions.{layer}")


def text_widths(evidence: Evidence) -> set[int]:
    """Widths of the text embedding that cross-attention reads: 768, 1024 and 2048 in SD 1.x, SD 2.x and SDXL."""
    return evidence.inputs(r"\.attn2\.to_[kv]$") if evidence.denoiser == "unet" else set()


def fits_unet(evidence: Evidence) -> bool:
    """A UNet, or the first text encoder alone: the header may say of which Stable Diffusion."""
    return evidence.denoiser == "unet" or text_encoders.alone(evidence)


def is_like_sdxl(evidence: Evidence) -> bool:
    """Several transformers in one attention block, a second text encoder, or an embedding of sizes.

    A second text encoder beside a text embedding of unknown width is that of a model of another layout.
    """
    return (
        evidence.blocks("transformer_blocks") > 1
        or (evidence.has("text_encoder_2") and not text_widths(evidence))
        or evidence.named("add_embedding")
    )
