"""The text encoder as open_clip names it, in single files of SDXL (its second) and SD 2.x: CLIP with fused q, k, v."""

from __future__ import annotations

import re

from mergelab.formats.architectures.fused import OriginalModule
from mergelab.formats.names import Located

_PREFIXES = {
    "conditioner.embedders.1.model.": "text_encoder_2",
    "cond_stage_model.model.": "text_encoder",
}
_BLOCK = re.compile(r"transformer\.resblocks\.(\d+)\.(.+)")
_MODULES = {
    "attn.in_proj": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "attn.out_proj": ("self_attn.out_proj",),
    "mlp.c_fc": ("mlp.fc1",),
    "mlp.c_proj": ("mlp.fc2",),
}


def split_key(key: str) -> tuple[str, str]:
    """A module and its tensor: open_clip's `in_proj_weight` is no module's `weight`, but stands for one.

    Example:
        >>> split_key("mlp.c_fc.bias"), split_key("attn.in_proj_weight")
        (('mlp.c_fc', 'bias'), ('attn.in_proj', 'weight'))
    """
    module, _, leaf = key.rpartition(".")
    return (f"{module}.in_proj", leaf[8:]) if leaf in ("in_proj_weight", "in_proj_bias") else (module, leaf)


def located(module: str) -> Located | None:
    """Where a module of open_clip's is; None if it is none, or one that has no place in diffusers' model.

    Example:
        >>> found = located("conditioner.embedders.1.model.transformer.resblocks.3.attn.in_proj")
        >>> found.component, found.original.parts[2]
        ('text_encoder_2', 'text_model.encoder.layers.3.self_attn.v_proj')
    """
    for prefix, component in _PREFIXES.items():
        match = _BLOCK.fullmatch(module.removeprefix(prefix)) if module.startswith(prefix) else None
        if match and match[2] in _MODULES:
            parts = tuple(f"text_model.encoder.layers.{match[1]}.{part}" for part in _MODULES[match[2]])
            return Located(component, module, OriginalModule(module, parts))
    return None
