"""Which of the written formats a file is in."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from mergelab.formats.prefixes import COMPONENTS
from mergelab.formats.writers import FACTOR_SUFFIXES
from mergelab.layer import AdapterData

_COMFY = ("diffusion_model.", "text_encoders.")
_DIFFUSERS = tuple(f"{component}." for component in COMPONENTS)


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
    of_diffusers = key.startswith(_DIFFUSERS) and key.endswith((*FACTOR_SUFFIXES[1], *FACTOR_SUFFIXES[2]))
    return "diffusers" if of_diffusers else None


def common_dialect(adapters: Sequence[AdapterData]) -> tuple[str | None, dict[str, str]]:
    """Dialect and spelling that several adapters agree in, for what is made of them.

    Example:
        >>> a, b = AdapterData({}, dialect="kohya", spelling={"x": "lora_x"}), AdapterData({}, dialect="comfy")
        >>> common_dialect([a, a]), common_dialect([a, b])
        (('kohya', {'x': 'lora_x'}), (None, {'x': 'lora_x'}))
    """
    dialects = {adapter.dialect for adapter in adapters}
    spellings: dict[str, set[str]] = {}
    for adapter in adapters:
        for name, spelt in adapter.spelling.items():
            spellings.setdefault(name, set()).add(spelt)
    agreed = {name: spelt.pop() for name, spelt in spellings.items() if len(spelt) == 1}
    return dialects.pop() if len(dialects) == 1 else None, agreed
