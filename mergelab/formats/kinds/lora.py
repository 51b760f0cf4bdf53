"""LoRA, and LoCon, its form for convolutions: two factors, and for some a Tucker core between them."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mergelab.errors import LayerError
from mergelab.formats.kinds.kind import Kind, ModuleTensors, Target, leaves, scaling_of
from mergelab.formats.kinds.starts import start_of, without_start
from mergelab.formats.messages import about
from mergelab.layer import Layer, LoraLayer


def _to_layer(module: ModuleTensors, scaling: float | None, target: Target) -> Layer:
    """`scaling * up @ down`; without a scaling from elsewhere it is alpha / rank, or 1 where there is no alpha.

    Where a config says that they began with a part of the weight, without that.
    """
    tensors, keys = module.tensors, module.keys
    for role, other in (("down", "up"), ("up", "down")):
        if role not in tensors:
            if set(tensors) <= {"alpha", "scalar", "bias"}:
                raise LayerError(
                    f"{next(iter(keys.values()))!r} stands alone: the file has no other tensor of its layer"
                )
            present = keys.get(other) or next(iter(keys.values()))
            raise LayerError(
                f"{present!r} has no matching {'lora_A (down)' if role == 'down' else 'lora_B (up)'}; "
                "expected both factors of every layer: the file is incomplete"
            )
    down, up = tensors["down"], tensors["up"]
    with about(repr(keys["down"])):
        if "mid" in tensors:
            down = _fold_mid(down, tensors["mid"])
        if down.dim() != up.dim():
            down, up = _same_dims(down, up)
        layer = LoraLayer(down, up)
    layer = layer.scaled(scaling_of(module, _dim(module), scaling))
    return without_start(layer, start, target) if (start := start_of(target.config)) else layer


def _shape(module: ModuleTensors) -> tuple[int, ...]:
    down, up = module.tensors.get("down"), module.tensors.get("up")
    if down is None or up is None or down.dim() < 2 or not up.dim():
        return ()
    mid = module.tensors.get("mid")
    kernel = mid.shape[2:] if mid is not None and mid.dim() == 4 else down.shape[2:]
    shape = (up.shape[0], down.shape[1], *kernel)
    return shape if all(shape) else ()


def _dim(module: ModuleTensors) -> int:
    down = module.tensors.get("down")
    return down.shape[0] if down is not None and down.dim() else 0


def _fold_mid(down: Tensor, mid: Tensor) -> Tensor:
    """Tucker: `delta[o, i] = sum_pq up[o, p] mid[p, q, kh, kw] down[q, i]`; mid and down become one factor."""
    flat = down.dim() in (2, 4) and down.numel() == math.prod(down.shape[:2])
    if mid.dim() != 4 or not flat or not mid.numel() or not down.numel() or mid.shape[1] != down.shape[0]:
        raise LayerError(f"lora_mid {tuple(mid.shape)} and lora_down {tuple(down.shape)} do not fit together")
    return torch.einsum("pqhw,qi->pihw", mid.float(), down.flatten(1).float())


def _same_dims(down: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    """Some trainers drop the 1 x 1 kernel of one factor."""
    if up.dim() == 2:
        return down, up.reshape(*up.shape, *[1] * (down.dim() - 2))
    if down.dim() == 2:
        return down.reshape(*down.shape, *[1] * (up.dim() - 2)), up
    raise LayerError(f"lora_A {tuple(down.shape)} and lora_B {tuple(up.shape)} have different numbers of dimensions")


LORA = Kind(
    name="LoRA and LoCon",
    leaves=leaves(
        (r"\.lora_A(\.[^.]+)?\.weight", "down"),
        (r"\.lora_B(\.[^.]+)?\.weight", "up"),
        (r"(\.lora_down|\.lora\.down|\.lora_linear_layer\.down|_lora\.down)\.weight", "down"),
        (r"(\.lora_up|\.lora\.up|\.lora_linear_layer\.up|_lora\.up)\.weight", "up"),
        (r"\.lora_mid\.weight", "mid"),
    ),
    marks=frozenset({"down", "up", "mid"}),
    to_layer=_to_layer,
    shape=_shape,
    dim=_dim,
)
