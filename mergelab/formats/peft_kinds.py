"""PEFT's adapters beside LoRA: the fields of their configs, and the kinds of tensors that are theirs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mergelab.checks import short_repr
from mergelab.errors import FormatError
from mergelab.formats.kinds import ModuleTensors, kind_of
from mergelab.formats.saved_modules import short_key

# What PEFT's configs have in common: what is trained, how, and where.
_COMMON = """
    peft_type bias modules_to_save target_modules exclude_modules layers_to_transform layers_pattern task_type
    auto_mapping peft_version base_model_name_or_path revision inference_mode runtime_config
"""


@dataclass(frozen=True)
class PeftKind:
    """One of PEFT's adapters.

    Attributes:
        kinds: the names of the kinds whose tensors it may have.
        fields: of its config, those that are read and those that change nothing.
    """

    kinds: tuple[str, ...]
    fields: frozenset[str]

    @classmethod
    def of(cls, kind: str, fields: str) -> PeftKind:
        return cls((kind,), frozenset(f"{_COMMON} {fields}".split()))


# Scalings are by alpha and r (`scalings`); a rotation's fields are read where it is computed (`kinds`). Trained modules
# are the same, whatever they began with or was dropped meanwhile.
PEFT_KINDS: Mapping[str, PeftKind] = {
    "LOHA": PeftKind.of(
        "LoHa",
        "r rank_pattern alpha alpha_pattern rank_dropout module_dropout use_effective_conv2d init_weights",
    ),
    "LOKR": PeftKind.of(
        "LoKr",
        "r rank_pattern alpha alpha_pattern rank_dropout module_dropout use_effective_conv2d init_weights "
        "decompose_both decompose_factor rank_dropout_scale",
    ),
    "OFT": PeftKind.of(
        "OFT of PEFT",
        "r oft_block_size module_dropout init_weights coft eps block_share use_cayley_neumann num_cayley_neumann_terms "
        "rank_pattern alpha_pattern",
    ),
    "BOFT": PeftKind.of(
        "BOFT of PEFT",
        "boft_block_size boft_block_num boft_n_butterfly_factor boft_dropout init_weights",
    ),
    "IA3": PeftKind.of("(IA)3 of PEFT", "feedforward_modules init_ia3_weights"),
}
_LORA = ("LoRA and LoCon", "DoRA")


def check_fields(peft_type: str, config: Mapping[str, Any]) -> None:
    """Raise `FormatError` for a type that is not read, or a field that is set and not known.

    Example:
        >>> check_fields("LOHA", {"peft_type": "LOHA", "r": 8, "alpha": 16})
        >>> check_fields("LOHA", {"peft_type": "LOHA", "lora_alpha": 16})
        Traceback (most recent call last):
            ...
        mergelab.errors.FormatError: sets 'lora_alpha' to 16, which no LOHA has; ...
    """
    kind = PEFT_KINDS.get(peft_type)
    if kind is None:
        raise FormatError(
            f"peft_type is {short_repr(config.get('peft_type'))}, expected 'LORA', or one of {', '.join(PEFT_KINDS)}"
        )
    for field, value in config.items():
        if value and field not in kind.fields:
            raise FormatError(
                f"sets {short_repr(field)} to {short_repr(value)}, which no {peft_type} has; mergelab does not know "
                "what that changes"
            )


def check_modules(modules: Mapping[str, ModuleTensors], config: Mapping[str, Any] | None, is_dora: bool) -> None:
    """Raise `FormatError` unless the tensors are of the kind that a config says.

    Args:
        modules: of the file.
        config: beside it; None where there is none.
        is_dora: whether the header says so of some of them.
    """
    kinds = {name: kind_of(module).name for name, module in modules.items() if set(module.tensors) - {"bias", "alpha"}}
    if config is not None:
        peft_type = str(config.get("peft_type") or "LORA").upper()
        expected = PEFT_KINDS[peft_type].kinds if peft_type in PEFT_KINDS else _LORA
        if other := next((name for name, kind in kinds.items() if kind not in expected), None):
            raise FormatError(f"its config says {peft_type}, and {_key(modules[other])} is of {kinds[other]}")
        plain = [name for name, kind in kinds.items() if config.get("use_dora") and kind != "DoRA"]
    else:
        plain = list(kinds) if is_dora and "DoRA" not in kinds.values() else []
    if plain:
        raise FormatError(
            f"its config says that it is a DoRA (use_dora), and {_key(modules[plain[0]])} has no magnitudes beside it; "
            "the file is incomplete"
        )


def _key(module: ModuleTensors) -> str:
    return short_key(next(iter(module.keys.values())))
