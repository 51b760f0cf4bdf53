"""Differences that no low rank can hold: of norms, kept beside the layers; and those of nothing at all."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from mergelab.errors import FormatError, LayerError
from mergelab.formats.kinds import ModuleTensors
from mergelab.formats.names import Located
from mergelab.layer import NORM_SUFFIX
from mergelab.tables import counted


def differences_of(
    modules: Mapping[str, ModuleTensors], located: Mapping[str, Located]
) -> tuple[dict[str, ModuleTensors], dict[str, Tensor], tuple[str, ...]]:
    """The modules without what is said here, the differences of norms by canonical name, and what was dropped.

    Full differences that are zero throughout, which some tools write for all that they did not train, change nothing.
    """
    kept: dict[str, ModuleTensors] = {}
    norms: dict[str, Tensor] = {}
    zeros: list[str] = []
    for name, module in modules.items():
        rest = module
        for role in ("diff", "bias"):
            tensor = module.tensors.get(role)
            is_difference = tensor is not None and not module.keys[role].endswith(".bias")
            if tensor is None or not is_difference or not tensor.is_floating_point():
                continue
            if tensor.numel() and not tensor.any():
                zeros.append(module.keys[role])
                rest = rest.without(role)
            elif role == "diff" and tensor.dim() == 1:
                if not bool(tensor.float().isfinite().all()):
                    raise LayerError(
                        f"{module.keys[role]!r} holds values that are NaN or infinite; the file is damaged"
                    )
                where = located[name]
                norms[f"{where.component}.{where.path}{NORM_SUFFIX}"] = tensor
                rest = rest.without(role)
        if set(rest.tensors) - {"alpha"} or rest is module:
            kept[name] = rest
    if zeros and not kept and not norms:
        raise FormatError(f"all it holds are {counted(len(zeros), 'difference')} of zeros: it changes nothing")
    notes = (f"{counted(len(zeros), 'difference')} of zeros dropped ({zeros[0]!r} the first)",) if zeros else ()
    return kept, norms, notes
