"""What a PEFT folder holds beside LoRA layers: whole modules, and rows of an embedding for some of its tokens."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from mergelab.checks import short_repr
from mergelab.errors import FormatError

# In the names of extras the tensors of a saved module stand under this, as they do in a live model of PEFT.
_MODULE = ".modules_to_save."
_TOKENS = ".token_adapter."
_ROWS = f"{_TOKENS}trainable_tokens_delta"
# Which tokens the rows belong to: a field of the config in a folder, a tensor of its own among the extras, so that two
# adapters with other tokens are told apart wherever extras are compared.
_INDICES = f"{_TOKENS}token_indices"
_PREFIX = "base_model.model."
_LORA_STEP = re.compile(r"\.lora_[^.]+(\.|$)")

Extras = Mapping[str, Tensor]


def check_own(keys: Iterable[str], modules: Iterable[str]) -> None:
    """Raise `FormatError` for a tensor that stands under a LoRA layer's own path and is none of a plain LoRA's.

    Args:
        keys: of tensors that are in no role of a LoRA layer.
        modules: the names of the modules that have LoRA layers.
    """
    known = set(modules)
    for key in keys:
        steps = key.split(".")
        owner = next((path for i in range(1, len(steps)) if (path := ".".join(steps[:i])) in known), None)
        if owner or _LORA_STEP.search(key):
            raise FormatError(
                f"{short_key(key)} is a part of the LoRA layer {short_key(owner or key[: key.find('.lora_')])} that "
                "plain LoRA does not have: the layer computes something else, which this version of mergelab does not "
                "read; convert the adapter to a plain LoRA with the tool that wrote it"
            )


def short_key(key: str) -> str:
    """A key of a file as messages show it."""
    return repr(key if len(key) <= 160 else f"{key[:157]}...")


def read_saved(tensors: Extras, config: Mapping[str, Any], component: str) -> dict[str, Tensor]:
    """Extras by canonical name from the other tensors of a PEFT folder.

    Args:
        tensors: by the folder's keys; not those of LoRA layers.
        config: the folder's, of which `modules_to_save` and `trainable_token_indices` are read.
        component: of the folder's layers.

    Raises:
        FormatError: a field that makes no sense; rows of tokens without their indices, or indices without rows.
    """
    modules, tokens = _modules(config.get("modules_to_save")), _tokens(config.get("trainable_token_indices"))
    extras: dict[str, Tensor] = {}
    found: set[str] = set()
    for key, tensor in tensors.items():
        path = key.removeprefix(_PREFIX)
        if _TOKENS in path:
            owner = path.partition(_TOKENS)[0]
            name = next((name for name in tokens if owner.endswith(name)), None)
            if path != f"{owner}{_ROWS}" or name is None or tensor.dim() != 2 or len(tokens[name]) != len(tensor):
                raise FormatError(
                    f"{short_key(key)} holds trained rows of tokens, shape {tuple(tensor.shape)}, and "
                    f"trainable_token_indices is {short_repr(config.get('trainable_token_indices'))}: expected an "
                    "index for every row"
                )
            found.add(name)
            extras[f"{component}.{path}"] = tensor
            extras[f"{component}.{owner}{_INDICES}"] = torch.tensor(tokens[name])
        elif saved := _saved_name(path, modules):
            extras[f"{component}.{saved}"] = tensor
        else:
            extras[f"model.{path}"] = tensor
    missing = [name for name in tokens if name not in found and not any(tokens[name] == tokens[f] for f in found)]
    if missing:
        raise FormatError(
            f"trainable_token_indices names {missing[0] or 'tokens'!r}, and no tensor ...{_ROWS} holds their rows: the "
            "folder is incomplete"
        )
    return extras


def _saved_name(path: str, modules: Iterable[str]) -> str | None:
    """The name of a saved module's tensor, marked where the module ends; None for any other tensor."""
    if _MODULE in path:
        raise FormatError(
            f"{short_key(path)} is named as in a live model of PEFT, expected the names that its save_pretrained writes"
        )
    steps = path.split(".")
    owners = (".".join(steps[:i]) for i in range(1, len(steps)))
    # As PEFT finds the modules: by the ends of their paths, the outermost one.
    owner = next((owner for owner in owners if any(owner.endswith(name) for name in modules)), None)
    return f"{owner}{_MODULE}{path[len(owner) + 1 :]}" if owner else None


def _modules(field: object) -> list[str]:
    names: list[Any] = field if isinstance(field, list) else [field] if field else []
    if not all(isinstance(name, str) and name for name in names):
        raise FormatError(f"modules_to_save is {short_repr(field)}, expected the names of modules")
    return names


def _tokens(field: object) -> dict[str, list[int]]:
    """Indices by the module's name; the name is "" where the config has a list, for the one embedding."""
    given: dict[str, Any] = field if isinstance(field, dict) else {"": field} if field else {}
    for indices in given.values():
        numbers = indices if isinstance(indices, list) else [None]
        if not all(type(i) is int and 0 <= i < 2**31 for i in numbers):
            raise FormatError(
                f"trainable_token_indices is {short_repr(field)}, expected indices of tokens, or a list of them for "
                "each embedding"
            )
    return {name: indices for name, indices in given.items() if indices}


def is_saved(key: str) -> bool:
    """Whether an extra is of a saved module, or trained rows of an embedding; no file but a PEFT folder can hold them.

    Example:
        >>> is_saved("model.score.modules_to_save.weight"), is_saved("transformer.norm_q.weight")
        (True, False)
    """
    return _MODULE in key or key.endswith((_ROWS, _INDICES))


def written_path(key: str) -> str | None:
    """An extra's path in a PEFT folder; None for what stands in its config.

    Example:
        >>> written_path("model.score.modules_to_save.weight"), written_path("model.norm.weight")
        ('score.weight', 'norm.weight')
    """
    return None if key.endswith(_INDICES) else key.partition(".")[2].replace(_MODULE, ".", 1)


def saved_fields(extras: Extras) -> dict[str, Any]:
    """The fields of a PEFT config by which PEFT finds saved modules and rows of tokens; none where there are none.

    Raises:
        FormatError: rows whose tokens are not known (two adapters with the same rows for other tokens).
    """
    modules = sorted({key.partition(".")[2].partition(_MODULE)[0] for key in extras if _MODULE in key})
    tokens = {}
    for key in (key for key in extras if key.endswith(_ROWS)):
        owner = key.removesuffix(_ROWS)
        indices = extras.get(f"{owner}{_INDICES}")
        if indices is None or indices.dim() != 1 or len(indices) != len(extras[key]):
            raise FormatError(f"{key} holds trained rows of tokens, and it is not known which tokens they belong to")
        tokens[owner.partition(".")[2]] = indices.tolist()
    fields = {"modules_to_save": modules, "trainable_token_indices": tokens}
    return {field: value for field, value in fields.items() if value}
