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


def config_scaling(config: Mapping[str, Any]) -> Callable[[str, int], float]:
    """The scaling of a module by its path and rank, from the fields of a PEFT config.

    `alpha / rank`, or `alpha / sqrt(rank)` with `use_rslora`; `alpha_pattern` is matched as PEFT does: a regular
    expression at the end of the path, the first that matches.

    Raises:
        FormatError: a field that makes it another adapter, or an alpha that is no number.
    """
    check_config(config)
    default = config.get("lora_alpha", DEFAULT_ALPHA)
    patterns = config.get("alpha_pattern") or {}
    if not isinstance(patterns, dict):
        raise FormatError(f"alpha_pattern is a {type(patterns).__name__}, expected patterns with numbers")
    for value in (default, *patterns.values()):
        if not is_number(value):
            raise FormatError(f"lora_alpha or alpha_pattern holds {short_repr(value)}, expected finite numbers")

    compiled = [(_compiled(pattern), alpha) for pattern, alpha in patterns.items()]

    def scaling(path: str, rank: int) -> float:
        alpha = next((alpha for pattern, alpha in compiled if pattern.match(path)), default)
        return alpha / math.sqrt(rank) if config.get("use_rslora") else alpha / rank

    return scaling


def header_scaling(metadata: Mapping[str, str]) -> ScalingOf:
    """Scalings from diffusers' `lora_adapter_metadata`: one config per component, its fields prefixed with it."""
    raw = metadata.get("lora_adapter_metadata")
    if not raw:
        return lambda component, path, rank: None
    try:
        flat = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"lora_adapter_metadata in the header is no JSON: {error}") from None
    if not isinstance(flat, dict):
        raise FormatError(f"lora_adapter_metadata in the header: expected an object, found {type(flat).__name__}")
    if any("." not in key for key in flat):  # a model's own save_lora_adapter: one config, without a prefix
        with about("lora_adapter_metadata in the header"):
            return for_all_components(config_scaling(flat))
    configs: dict[str, dict[str, Any]] = {}
    for key, value in flat.items():
        component, _, option = key.partition(".")
        configs.setdefault(component, {})[option] = value
    by_component = {}
    for name, config in configs.items():
        with about(f"lora_adapter_metadata in the header, {short_repr(name)}"):
            by_component[name] = config_scaling(config)

    def scaling_of(component: str, path: str, rank: int) -> float | None:
        return by_component[component](path, rank) if component in by_component else None

    return scaling_of


def for_all_components(scaling: Callable[[str, int], float]) -> ScalingOf:
    """The scaling by path alone."""
    return lambda component, path, rank: scaling(path, rank)


def _compiled(pattern: object) -> re.Pattern[str]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # a "[[" may mean something else one day
            return re.compile(rf"(.*\.)?({pattern})$")
    except (re.error, OverflowError, RecursionError) as error:
        raise FormatError(f"alpha_pattern holds {pattern!r}, expected a regular expression: {error}") from None
