"""DoRA: a change of a weight's direction by another adapter, and of the norms of its rows or columns."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from mergelab.formats.kinds.kind import Kind, ModuleTensors, Target, dense_layer, leaves
from mergelab.layer import DerivedLayer, Layer, matrices

InnerKind = Callable[[ModuleTensors], Kind]


@dataclass(frozen=True, eq=False)
class _Decomposed:
    """`V / norm(V) * magnitude - weight` with `V = weight + inner`: the norm of the sum, as LyCORIS and PEFT have it.

    Attributes:
        inner: the change of the direction.
        magnitude: `(out,)`, or `(in,)` with `of_columns`: the norms are then over outputs and taps.
        weight: reads the weight.
    """

    inner: Layer
    magnitude: Tensor
    of_columns: bool
    weight: Callable[[], Tensor]

    def __call__(self) -> Tensor:
        weight = self.weight().float().reshape(self.inner.shape)
        moved = weight + matrices(self.inner).delta().reshape(weight.shape)
        kept = 1 if self.of_columns else 0
        norm = torch.linalg.vector_norm(moved, dim=[d for d in range(moved.dim()) if d != kept], keepdim=True)
        # LyCORIS adds this to the norm, so that a row of zeros stays one.
        scale = self.magnitude.float().reshape(norm.shape) / (norm + torch.finfo(torch.float32).eps)
        return moved * scale - weight


def dora(inner_kind: InnerKind) -> Kind:
    """The kind, which asks for that of the module without its magnitudes."""

    def inner(module: ModuleTensors) -> tuple[ModuleTensors, Kind]:
        rest = module.without("magnitude", "peft_magnitude")
        return rest, inner_kind(rest)

    def shape(module: ModuleTensors) -> tuple[int, ...]:
        rest, kind = inner(module)
        return kind.shape(rest)

    def dim(module: ModuleTensors) -> int:
        rest, kind = inner(module)
        return kind.dim(rest)

    def to_layer(module: ModuleTensors, scaling: float | None, target: Target) -> DerivedLayer:
        rest, kind = inner(module)
        module.check(bool(rest.tensors), "a change of the direction beside the magnitudes")
        layer = kind.to_layer(rest, scaling, target)
        role = "magnitude" if "magnitude" in module.tensors else "peft_magnitude"
        magnitude, rows, columns = module.tensors[role], *layer.shape[:2]
        # LyCORIS has (out, 1) or (1, in), with kernels (out, 1, 1, 1) or (1, in, 1, 1); PEFT the outputs alone.
        of_columns = role == "magnitude" and magnitude.dim() > 1 and magnitude.shape[0] == 1 and rows > 1
        fits = magnitude.numel() == (columns if of_columns else rows)
        module.check(fits, f"{columns if of_columns else rows} magnitudes")
        assert target.weight is not None
        return dense_layer("DoRA", layer.shape, _Decomposed(layer, magnitude, of_columns, target.weight))

    return Kind(
        name="DoRA",
        leaves=leaves(
            (r"\.dora_scale", "magnitude"), (r"\.lora_magnitude_vector(\.[^.]+)?(\.weight)?", "peft_magnitude")
        ),
        marks=frozenset({"magnitude", "peft_magnitude"}),
        to_layer=to_layer,
        shape=shape,
        dim=dim,
        needs_base=True,
    )
