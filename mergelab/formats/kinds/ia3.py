"""(IA)3: a factor for each input or output of a weight (LyCORIS)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import Tensor

from mergelab.formats.kinds.kind import Kind, ModuleTensors, Target, dense_layer, leaves, number_in
from mergelab.layer import DerivedLayer


def _to_layer(module: ModuleTensors, scaling: float | None, target: Target) -> DerivedLayer:
    """`W * factors`, along the inputs where `on_input` is set, else along the outputs."""
    module.check({"ia3", "on_input"} <= set(module.tensors), "weight and on_input")
    along, shape = (1 if number_in(module, "on_input") else 0), target.shape
    factors = module.tensors["ia3"]
    module.check(factors.numel() == shape[along], f"{shape[along]} factors")
    assert target.weight is not None
    view = [1] * len(shape)
    view[along] = shape[along]
    return dense_layer("(IA)3", shape, partial(_difference, target.weight, factors.float().reshape(view)))


def _difference(read: Callable[[], Tensor], factors: Tensor) -> Tensor:
    return read().float() * factors


IA3 = Kind(
    name="(IA)3",
    leaves=leaves((r"\.on_input", "on_input")),
    marks=frozenset({"on_input", "ia3"}),
    to_layer=_to_layer,
    needs_base=True,
)
"""Its factors are called `weight`, which only the `on_input` beside them tells from another tensor."""
