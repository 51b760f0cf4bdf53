"""PEFT's files and the fields of its config: those honoured or harmless, and those that make it another adapter."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mergelab.checks import short_repr
from mergelab.errors import FormatError
from mergelab.formats.kinds.starts import STARTS
from mergelab.formats.peft_kinds import check_fields

PEFT_CONFIG = "adapter_config.json"
PEFT_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
DEFAULT_ALPHA = 8
"""PEFT's `lora_alpha` where a config leaves it out. (Its default for `r` is 8 too, but the tensors say their rank.)"""

HONOURED = frozenset(
    """
    peft_type lora_alpha alpha_pattern use_rslora use_dora lora_bias bias init_lora_weights modules_to_save
    trainable_token_indices
    """.split()
)
"""Fields that change what an adapter is, and are read or checked."""

HARMLESS = frozenset(
    """
    r rank_pattern target_modules exclude_modules layers_to_transform layers_pattern fan_in_fan_out
    task_type auto_mapping peft_version base_model_name_or_path revision inference_mode runtime_config megatron_core
    lora_dropout loftq_config eva_config corda_config lora_ga_config qalora_group_size
    merge_weights lora_dtype lorap_lr_ratio lorap_emb_lr
    """.split()
)
"""Fields that the tensors say as well, and those of the training, the base model and the run: not read.

The configs of a way to begin (`eva_config`, ...) count only with its name in `init_lora_weights`, which is checked, and
stay behind when PEFT converts such an adapter to a plain one. The last row is of older versions and of ms-swift.
"""

REFUSED = {
    "use_qalora": "is a QALoRA, whose lora_A reads a pooled input",
    "use_bdlora": "is a BD-LoRA, whose factors are block-diagonal and stored as their blocks",
    "alora_invocation_tokens": "is an activated LoRA, which acts only after its tokens",
    "arrow_config": "is a router between other adapters",
    "kasa_config": "is a KaSA adapter, which truncates the base model and has a diagonal between its factors",
    "monteclora_config": "is a MonteCLoRA, which draws samples around its factors",
    "velora_config": "is a VeLoRA, with a projection of its own in every layer",
    "layer_replication": "is for a model that repeats layers of its base model",
    "target_parameters": "changes parameters that are no weights of layers",
    "megatron_config": "is for Megatron's parallel layers, of which it may be one part",
    "ensure_weight_tying": "ties the changes of several layers",
}
"""Fields that make it another adapter when they are set, and what it is then."""

_PLAIN_STARTS = ("true", "false", "none", "gaussian", "eva", "orthogonal", "mica")
_CONVERTIBLE_STARTS = ("pissa", "olora", "corda", "lora_ga")


def check_config(config: Mapping[str, Any], has_base: bool = False) -> None:
    """Raise `FormatError` for a field that is set (to anything but None, False, 0 or empty) and neither honoured nor
    harmless.

    Args:
        config: the fields.
        has_base: whether the base model's weights are given, from which some starts can be computed again.

    Example:
        >>> check_config({"r": 8, "lora_alpha": 16, "use_dora": False, "a_field_of_next_year": None})
        >>> check_config({"use_qalora": True})
        Traceback (most recent call last):
            ...
        mergelab.errors.FormatError: is a QALoRA, whose lora_A reads a pooled input (use_qalora), which this version ...
    """
    _check_bias(config.get("bias"))
    peft_type = str(config.get("peft_type") or "LORA").upper()
    if peft_type != "LORA":
        check_fields(peft_type, config)
        return
    for field, value in config.items():
        if not value or field in HARMLESS:
            continue
        if field in REFUSED:
            raise FormatError(
                f"{REFUSED[field]} ({field}), which this version of mergelab does not read; it reads plain LoRA: "
                "convert the adapter with the tool that wrote it"
            )
        if field not in HONOURED:
            raise FormatError(
                f"sets {short_repr(field)} to {short_repr(value)}, and mergelab does not know what that changes; "
                "expected the fields of a plain LoRA: convert the adapter to one with the tool that wrote it"
            )
    _check_start(config.get("init_lora_weights"), has_base)


def _check_bias(bias: object) -> None:
    if bias and bias != "none":
        raise FormatError(
            f"bias is {short_repr(bias)}: the adapter replaces whole biases of its base model, which no weight can "
            "scale; expected 'none', or the differences that lora_bias trains"
        )


def _check_start(start: object, has_base: bool) -> None:
    name = str(start).lower()
    if not start or name in _PLAIN_STARTS or (has_base and name in STARTS):
        return
    convert = "convert it with the tool that wrote it"
    if name.startswith(_CONVERTIBLE_STARTS):
        convert = "convert it with PEFT's save_pretrained, given path_initial_model_for_weight_conversion"
    if name in STARTS:
        convert += ", or give the weights as they were before that, load(folder, base='model.safetensors')"
    elif name != "loftq":
        raise FormatError(
            f"init_lora_weights is {short_repr(start)}, which may have changed the base model at the start of "
            f"training; expected one of True, False, {', '.join(map(repr, _PLAIN_STARTS[3:]))}: {convert}"
        )
    raise FormatError(
        f"init_lora_weights is {short_repr(start)}: the adapter belongs to a base model that it changed at the start "
        f"of training, and is no plain LoRA; {convert}"
    )
