"""(IA)3 as PEFT has it: a weight times a factor for each output, its bias too, or for each input (feed-forward)."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial

from torch import Tensor

from mergelab.checks import short_repr
from mergelab.errors import LayerError
from mergelab.formats.kinds.kind import Kind, ModuleTensors, Target, dense_layer, leaves
from mergelab.layer import DerivedLayer


def _to_layer(module: ModuleTensors, scaling: float | None, target: Target) -> DerivedLayer:
    """`W * (factors - 1)`: no factor changes nothing where it is 1."""
    factors, along = module.tensors["peft_ia3"], _along(module, target)
    module.check(factors.numel() == target.shape[along], f"{target.shape[along]} factors")
    view = [1] * len(target.shape)
    view[along] = target.shape[along]
    assert target.weight is not None
    return dense_layer("(IA)3", target.shape, partial(_difference, target.weight, factors.float().reshape(view)))


def _difference(read: Callable[[], Tensor], factors: Tensor) -> Tensor:
    return read().float() * (factors - 1)


def _bias(module: ModuleTensors, target: Target) -> Tensor | None:
    """The bias of outputs is multiplied, too."""
    if _along(module, target) == 1 or target.bias is None or (bias := target.bias()) is None:
        return None
    return bias * (module.tensors["peft_ia3"].float().flatten() - 1)


def _along(module: ModuleTensors, target: Target) -> int:
    """1 for inputs, 0 for outputs: the shape tells, but for convolutions, where the config does."""
    factors, key = module.tensors["peft_ia3"], module.keys["peft_ia3"]
    if factors.dim() == 2 and (factors.shape[0] == 1) != (factors.shape[1] == 1):
        return 1 if factors.shape[0] == 1 else 0
    fields = target.config.get("feedforward_modules") or []
    if str(target.config.get("peft_type")).upper() != "IA3":
        raise LayerError(
            f"{key!r} is of an (IA)3 of PEFT, whose config says whether its factors are those of inputs; load its "
            "folder, with adapter_config.json"
        )
    path = key.removeprefix("base_model.model.").partition(".ia3_l")[0]
    try:
        if isinstance(fields, str):
            return int(re.fullmatch(fields, path) is not None)
        return int(any(path.endswith(str(name)) for name in fields))
    except (re.error, TypeError, OverflowError, RecursionError):
        raise LayerError(f"feedforward_modules is {short_repr(fields)}, expected names of modules") from None


PEFT_IA3 = Kind(
    name="(IA)3 of PEFT",
    leaves=leaves((r"\.ia3_l(\.[^.]+)?", "peft_ia3")),
    marks=frozenset({"peft_ia3"}),
    to_layer=_to_layer,
    needs_base=True,
    bias=_bias,
)
