"""The keys of a file in groups: which tensor of which module each is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import NamedTuple

from torch import Tensor

from mergelab.errors import FormatError
from mergelab.formats.architectures.registry import ARCHITECTURES
from mergelab.formats.kinds import KINDS, ModuleTensors, module_and_role, refused_kind
from mergelab.formats.names import bare
from mergelab.formats.prefixes import without_wrapping_steps
from mergelab.formats.strangers import EMBEDDING
from mergelab.tables import counted

_LONGEST_KEY = 500


@dataclass
class KeyGroups:
    """The tensors of a file: those of modules, textual-inversion embeddings, and what is neither."""

    modules: dict[str, ModuleTensors] = field(default_factory=dict)
    embeddings: dict[str, Tensor] = field(default_factory=dict)
    others: dict[str, Tensor] = field(default_factory=dict)


def group_keys(tensors: Mapping[str, Tensor]) -> KeyGroups:
    """Sort all keys of a file.

    Raises:
        FormatError: a kind that is not read, by its name; two tensors for one role.
    """
    groups = KeyGroups()
    refused: dict[str, list[str]] = {}
    for key, tensor in tensors.items():
        if len(key) > _LONGEST_KEY:
            raise FormatError(f"a key of {len(key)} characters ({key[:40]!r}...), expected names of layers")
        named = _named(key)
        if named.refused:
            refused.setdefault(named.refused, []).append(key)
        elif named.is_embedding:
            groups.embeddings[key] = tensor
        elif named.role:
            _add(groups.modules.setdefault(named.module, ModuleTensors()), named.role, key, tensor)
        else:
            groups.others[key] = tensor
    for module in groups.modules.values():  # (IA)3 calls its factors "weight", as anything may be called
        if on_input := module.keys.get("on_input"):
            factors = f"{on_input.removesuffix('.on_input')}.weight"
            if factors in groups.others:
                _add(module, "ia3", factors, groups.others.pop(factors))
    if refused:
        what = "; ".join(
            f"{name} ({counted(len(keys), 'tensor')}, {keys[0]!r} the first)" for name, keys in refused.items()
        )
        raise FormatError(
            f"holds {what}, which this version of mergelab does not read; it reads "
            f"{', '.join(kind.name for kind in KINDS)}: convert the adapter to a plain LoRA with the tool that wrote it"
        )
    return groups


class _Named(NamedTuple):
    """What a key says: a kind that is not read, an embedding, a module with a role, or nothing that is known."""

    refused: str = ""
    is_embedding: bool = False
    module: str = ""
    role: str = ""


@lru_cache(maxsize=1 << 14)  # the keys of a few large files: those of one trainer have the same
def _named(key: str) -> _Named:
    if name := refused_kind(key):
        return _Named(refused=name)
    if EMBEDDING.match(key):
        return _Named(is_embedding=True)
    named = module_and_role(_usual(key))
    return _Named(module=bare(named[0]), role=named[1]) if named else _Named()


def _usual(key: str) -> str:
    key = without_wrapping_steps(key)
    for architecture in ARCHITECTURES.values():
        key = architecture.respell(key)
    return key


def _add(module: ModuleTensors, role: str, key: str, tensor: Tensor) -> None:
    if role in module.tensors:
        raise FormatError(
            f"{module.keys[role]!r} and {key!r} are the same tensor of one layer; a file is expected to hold one "
            "adapter: save each by itself"
        )
    module.keys[role], module.tensors[role] = key, tensor
