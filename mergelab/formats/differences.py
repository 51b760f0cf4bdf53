"""Differences that no low rank can hold: of norms, kept beside the layers; and those of nothing at all."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor

from mergelab.errors import FormatError, LayerError
from mergelab.formats.architectures.architecture import Architecture
from mergelab.formats.kinds import ModuleTensors
from mergelab.formats.names import is_module_of, locate
from mergelab.formats.prefixes import strip
from mergelab.layer import BIAS_SUFFIX, NORM_SUFFIX
from mergelab.tables import counted

_SUFFIXES = {"diff": NORM_SUFFIX, "bias": BIAS_SUFFIX}


class Parted(NamedTuple):
    """The modules of a file, the norms by themselves.

    Attributes:
        layers: modules that change a matrix or a kernel.
        norms: modules that change a norm.
        notes: what was dropped.
    """

    layers: dict[str, ModuleTensors]
    norms: dict[str, ModuleTensors]
    notes: tuple[str, ...]


def parted(modules: Mapping[str, ModuleTensors]) -> Parted:
    """Set norms apart, and drop differences of zeros, as some tools write for all that they did not train."""
    layers: dict[str, ModuleTensors] = {}
    norms: dict[str, ModuleTensors] = {}
    zeros: list[str] = []
    for name, module in modules.items():
        none = [role for role in _SUFFIXES if _is_zero(module, role)]
        zeros += [module.keys[role] for role in none]
        rest = module.without(*none)
        diff = module.tensors.get("diff")
        if diff is not None and diff.dim() == 1:
            norms[name] = rest
        elif set(rest.tensors) - {"alpha"} or not none:
            layers[name] = rest
    notes = (f"{counted(len(zeros), 'difference')} of zeros dropped ({zeros[0]!r} the first)",) if zeros else ()
    return Parted(layers, norms, notes)


def _is_zero(module: ModuleTensors, role: str) -> bool:
    """Whether a tensor is a difference as it is, and of zeros: of a bias of PEFT the scaling would count."""
    tensor = module.tensors.get(role)
    if tensor is None or module.keys[role].endswith(".bias"):
        return False
    # A few values tell most tensors from zeros, and the rest of a file stays unread.
    return not tensor.reshape(-1)[:64].any() and not tensor.any()


def extras_of(
    norms: Mapping[str, ModuleTensors], names: Architecture | None, component: str | None
) -> dict[str, Tensor]:
    """The differences of norms by canonical name.

    Raises:
        FormatError: a norm of no model that is known.
        LayerError: a module has something else beside them, or values that are not finite.
    """
    extras = {}
    for module, where in locate(norms, names, component).items():
        own = names.naming.norm(strip(module, names.naming)[1]) if names else None
        canonical = (
            f"{names.naming.component}.{own}" if names and own else where.name or f"{where.component}.{where.path}"
        )
        if not (own or where.original or (names and is_module_of(names, canonical))):
            key, of_whom = next(iter(norms[module].keys.values())), names.title if names else "a model that is known"
            raise FormatError(
                f"{key!r} is the difference of a norm, and of none of {of_whom}; nothing is dropped in silence: remove "
                "it from the file, or report the tool that wrote it"
            )
        for role, tensor in norms[module].tensors.items():
            key = norms[module].keys[role]
            if role not in _SUFFIXES or not tensor.is_floating_point():
                raise LayerError(f"{key!r} stands beside the difference of a norm, which has none; the file is damaged")
            if not bool(tensor.float().isfinite().all()):
                raise LayerError(f"{key!r} holds NaN or infinity; the file is damaged")
            extras[f"{canonical}{_SUFFIXES[role]}"] = tensor
    return extras
