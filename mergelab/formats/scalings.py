"""The scaling of a module that has no alpha of its own: from a PEFT config, or from a file's header."""

from __future__ import annotations

import json
import math
import re
import warnings
from collections.abc import Callable, Mapping
from typing import Any

from mergelab.checks import is_number, short_repr
from mergelab.errors import FormatError
from mergelab.formats.messages import about
from mergelab.formats.peft_config import DEFAULT_ALPHA, check_config

# The scaling of a module by its component, path and rank; None: alpha is the rank.
ScalingOf = Callable[[str, str, int], float | None]


def config_scaling(config: Mapping[str, Any], has_base: bool = False) -> Callable[[str, int], float | None]:
    """The scaling of a module by its path and rank, from the fields of a PEFT config.

    `alpha / rank`, or `alpha / sqrt(rank)` with `use_rslora`; `alpha_pattern` is matched as PEFT does: a regular
    expression at the end of the path, the first that matches. A rank of 0 is one that the tensors do not tell: of LoKr,
    which PEFT scales by that of its config all the same, and of kinds without one.

    Raises:
        FormatError: a field that makes it another adapter, or an alpha that is no number.
    """
    check_config(config, has_base)
    peft_type = str(config.get("peft_type") or "LORA").upper()
    alpha_of = _by_path(config, "lora_alpha" if peft_type == "LORA" else "alpha", "alpha_pattern", DEFAULT_ALPHA)
    rank_of = _by_path(config, "r", "rank_pattern", DEFAULT_ALPHA) if peft_type == "LOKR" else lambda path: 0

    def scaling(path: str, rank: int) -> float | None:
        rank = rank or rank_of(path)
        if not rank:
            return None
        return alpha_of(path) / math.sqrt(rank) if config.get("use_rslora") else alpha_of(path) / rank

    return scaling


def _by_path(config: Mapping[str, Any], field: str, patterns_field: str, usual: int) -> Callable[[str], Any]:
    """A number of the config for a module's path, where a pattern may say another."""
    default, patterns = config.get(field, usual), config.get(patterns_field) or {}
    if not isinstance(patterns, dict):
        raise FormatError(f"{patterns_field} is a {type(patterns).__name__}, expected patterns with numbers")
    for value in (default, *patterns.values()):
        if not is_number(value):
            raise FormatError(f"{field} or {patterns_field} holds {short_repr(value)}, expected finite numbers")
    compiled = [(_compiled(pattern, patterns_field), number) for pattern, number in patterns.items()]
    return lambda path: next((number for pattern, number in compiled if pattern.match(path)), default)


def header_scaling(metadata: Mapping[str, str]) -> ScalingOf:
    """Scalings from diffusers' `lora_adapter_metadata`: one config per component, its fields prefixed with it."""
    by_component = {}
    for name, config in _header_configs(metadata).items():
        with about(f"lora_adapter_metadata in the header{f', {short_repr(name)}' if name else ''}"):
            by_component[name] = _lora_scaling(config)
    if "" in by_component:
        return for_all_components(by_component[""])

    def scaling_of(component: str, path: str, rank: int) -> float | None:
        return by_component[component](path, rank) if component in by_component else None

    return scaling_of


def says_dora(metadata: Mapping[str, str]) -> bool:
    """Whether the header says so of some component."""
    return any(config.get("use_dora") for config in _header_configs(metadata).values())


def _header_configs(metadata: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """The configs by component; by "" the one without a prefix that a model's own `save_lora_adapter` writes."""
    raw = metadata.get("lora_adapter_metadata")
    if not raw:
        return {}
    try:
        flat = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"lora_adapter_metadata in the header is no JSON: {error}") from None
    if not isinstance(flat, dict):
        raise FormatError(f"lora_adapter_metadata in the header: expected an object, found {type(flat).__name__}")
    if any("." not in key for key in flat):
        return {"": flat}
    configs: dict[str, dict[str, Any]] = {}
    for key, value in flat.items():
        component, _, option = key.partition(".")
        configs.setdefault(component, {})[option] = value
    return configs


def _lora_scaling(config: Mapping[str, Any]) -> Callable[[str, int], float | None]:
    """Of a header's config, which is a LoRA's."""
    if str(kind := config.get("peft_type") or "LORA").upper() != "LORA":
        raise FormatError(f"peft_type is {short_repr(kind)}, expected 'LORA'")
    return config_scaling(config)


def for_all_components(scaling: Callable[[str, int], float | None]) -> ScalingOf:
    """The scaling by path alone."""
    return lambda component, path, rank: scaling(path, rank)


def _compiled(pattern: object, field: str) -> re.Pattern[str]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # a "[[" may mean something else one day
            return re.compile(rf"(.*\.)?({pattern})$")
    except (re.error, OverflowError, RecursionError) as error:
        raise FormatError(f"{field} holds {pattern!r}, expected a regular expression: {error}") from None
