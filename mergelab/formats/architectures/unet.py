"""The UNet of Stable Diffusion: names of the original implementation ("sgm") and those of diffusers.

Both UNets have two residual blocks per level, SDXL at three levels and SD 1.x and 2.x at four.
"""

from __future__ import annotations

import re

_RESNET = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}
_TOP = {
    "input_blocks.0.0": "conv_in",
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "label_emb.0.0": "add_embedding.linear_1",
    "label_emb.0.2": "add_embedding.linear_2",
    "out.0": "conv_norm_out",
    "out.2": "conv_out",
}
_MIDDLE = {"0": "resnets.0", "1": "attentions.0", "2": "resnets.1"}
_RESNET_BACK = {v: k for k, v in _RESNET.items()}
_TOP_BACK = {v: k for k, v in _TOP.items()}
_MIDDLE_BACK = {v: k for k, v in _MIDDLE.items()}
SGM_ROOTS = frozenset({"input_blocks", "middle_block", "output_blocks", "time_embed", "label_emb", "out"})


def diffusers_of(path: str) -> str | None:
    """The diffusers name of a module of the original UNet; None if there is none.

    Example:
        >>> diffusers_of("input_blocks.4.1.transformer_blocks.0.attn1.to_q")
        'down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q'
    """
    if path in _TOP:
        return _TOP[path]
    if match := re.fullmatch(r"middle_block\.([012])\.(.+)", path):
        return _inside(f"mid_block.{_MIDDLE[match[1]]}", match[2])
    if match := re.fullmatch(r"input_blocks\.(\d+)\.(\d)\.(.+)", path):
        level, layer = divmod(int(match[1]) - 1, 3)
        if layer == 2:
            return f"down_blocks.{level}.downsamplers.0.conv" if match[3] == "op" else None
        kind = {"0": "resnets", "1": "attentions"}.get(match[2])
        return _inside(f"down_blocks.{level}.{kind}.{layer}", match[3]) if kind and int(match[1]) else None
    if match := re.fullmatch(r"output_blocks\.(\d+)\.(\d)\.(.+)", path):
        level, layer = divmod(int(match[1]), 3)
        if match[2] != "0" and match[3] == "conv":
            return f"up_blocks.{level}.upsamplers.0.conv"
        kind = {"0": "resnets", "1": "attentions"}.get(match[2])
        return _inside(f"up_blocks.{level}.{kind}.{layer}", match[3]) if kind else None
    return None


def sgm_of(path: str) -> str | None:
    """The original name of a module of the diffusers UNet of SDXL; None if there is none.

    Example:
        >>> sgm_of("up_blocks.1.upsamplers.0.conv")
        'output_blocks.5.2.conv'
    """
    if path in _TOP_BACK:
        return _TOP_BACK[path]
    if match := re.fullmatch(r"mid_block\.((?:resnets|attentions)\.\d)\.(.+)", path):
        return _back(f"middle_block.{_MIDDLE_BACK[match[1]]}", match[1], match[2]) if match[1] in _MIDDLE_BACK else None
    if match := re.fullmatch(r"(down|up)_blocks\.(\d+)\.(resnets|attentions)\.(\d+)\.(.+)", path):
        way, level, kind, layer, rest = match.groups()
        index = 3 * int(level) + int(layer) + (way == "down")
        blocks = "input_blocks" if way == "down" else "output_blocks"
        return _back(f"{blocks}.{index}.{int(kind == 'attentions')}", kind, rest)
    if match := re.fullmatch(r"down_blocks\.(\d+)\.downsamplers\.0\.conv", path):
        return f"input_blocks.{3 * int(match[1]) + 3}.0.op"
    if match := re.fullmatch(r"up_blocks\.(\d+)\.upsamplers\.0\.conv", path):
        return f"output_blocks.{3 * int(match[1]) + 2}.2.conv"
    return None


def _inside(block: str, rest: str) -> str | None:
    if ".resnets." in block:
        return f"{block}.{_RESNET[rest]}" if rest in _RESNET else None
    return f"{block}.{rest}"


def _back(block: str, kind: str, rest: str) -> str | None:
    if kind.startswith("resnets"):
        return f"{block}.{_RESNET_BACK[rest]}" if rest in _RESNET_BACK else None
    return f"{block}.{rest}"
