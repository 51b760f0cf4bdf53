"""Full differences: the change itself (LyCORIS "full", trainers of Wan, extracted files)."""

from __future__ import annotations

from mergelab.formats.kinds.kind import Kind, ModuleTensors, Target, dense_layer, leaves, scaling_of
from mergelab.layer import DerivedLayer


def _to_layer(module: ModuleTensors, scaling: float | None, target: Target) -> DerivedLayer:
    """The difference as it is: alpha has no meaning."""
    delta = module.tensors["diff"]
    module.check(delta.dim() >= 2 and bool(delta.numel()), "a weight's shape, (out, in[, kh, kw])")
    return dense_layer("full", tuple(delta.shape), lambda: delta.float(), scaling_of(module, 0, None))


def _shape(module: ModuleTensors) -> tuple[int, ...]:
    shape = tuple(module.tensors["diff"].shape)
    return shape if len(shape) >= 2 else ()


FULL = Kind(
    name="full differences",
    leaves=leaves((r"\.(diff|w_norm)", "diff")),
    marks=frozenset({"diff"}),
    to_layer=_to_layer,
    shape=_shape,
)
