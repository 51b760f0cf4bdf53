"""Which of the written formats a file is in, and how it spells the modules of an unknown model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from mergelab.formats import reading
from mergelab.formats.keys import group_keys
from mergelab.formats.prefixes import COMPONENTS
from mergelab.formats.writers import FACTOR_SUFFIXES
from mergelab.layer import AdapterData

_COMFY = ("diffusion_model.", "text_encoders.")
_DIFFUSERS = tuple(f"{component}." for component in COMPONENTS)


def parse(
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, str],
    source: str,
    *,
    config: Mapping[str, Any] | None = None,
    **options: Any,
) -> AdapterData:
    """As `reading.parse`, with the dialect of the file."""
    data = reading.parse(tensors, metadata, source, config=config, **options)
    dialect = "peft" if config is not None else dialect_of(tensors)
    spelling: dict[str, str] = {}
    if data.architecture is None:
        modules = [name for name, module in group_keys(tensors).modules.items() if "down" in module.tensors]
        spelling = dict(zip(data.layers, modules)) if len(modules) == len(data.layers) else {}
    return replace(data, dialect=dialect, spelling=spelling)


def dialect_of(keys: Iterable[str]) -> str | None:
    """The format that the keys of a file have in common; None where that is none of those that are written.

    Example:
        >>> dialect_of(["lora_unet_mid_block_attentions_0_proj_in.lora_down.weight"]), dialect_of(["a.lora_A.weight"])
        ('kohya', None)
    """
    suffixes = tuple(suffix for pair in FACTOR_SUFFIXES for suffix in pair)
    kinds = {_kind(key) for key in keys if key.endswith(suffixes)}
    return kinds.pop() if len(kinds) == 1 else None


def _kind(key: str) -> str | None:
    if key.startswith(("lora_", "lycoris_")) and key.count(".") == 2 and key.endswith(FACTOR_SUFFIXES[0]):
        return "kohya"
    if key.startswith(_COMFY):
        return "comfy"
    return (
        "diffusers" if key.startswith(_DIFFUSERS) and key.endswith((*FACTOR_SUFFIXES[1], *FACTOR_SUFFIXES[2])) else None
    )
