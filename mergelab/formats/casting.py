"""The one cast to the dtype of a file: nothing overflows, and nothing is lost below the smallest number it can hold."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mergelab.errors import OutputError
from mergelab.formats.balancing import balanced, lost_in, pairs_of
from mergelab.linalg.workspace import Workspace, threads


def cast(tensors: dict[str, Tensor], dtype: torch.dtype | None) -> dict[str, Tensor]:
    """The tensors of a file in another dtype; None keeps each in its own.

    Where a plain cast would lose more of a layer than rounding does, its factors are balanced first.

    Raises:
        OutputError: a value that is not finite, or overflows; or a layer or an extra that loses more than rounding
            explains, about one eps of the dtype.
    """
    with threads() as pool:
        lane = Workspace(pool)
        lane.each(lambda item: _check_range(*item, dtype), tensors.items())
        if dtype is None:
            return tensors
        pairs = [pair for pair in pairs_of(tensors) if _is_narrowed(pair.down, dtype) or _is_narrowed(pair.up, dtype)]
        loses = list(lane.map(lambda pair: pair.loses(dtype), pairs))
        changed: dict[str, Tensor] = {}
        for pair in balanced(pairs, loses, dtype):
            _refuse(f"layer {pair.layer}", pair.lost_share(dtype), dtype)
            changed |= {pair.down_key: pair.down, pair.up_key: pair.up}
        tensors = tensors | changed
        extras = set(tensors) - {key for pair in pairs for key in (pair.down_key, pair.up_key)}

        def converted(item: tuple[str, Tensor]) -> Tensor:
            key, tensor = item
            if not _is_cast(key, tensor):
                return tensor
            if key in extras and _is_narrowed(tensor, dtype):
                _refuse(key, float(lost_in(dtype, tensor.reshape(1, -1))), dtype)
            return tensor.to(dtype)

        return dict(zip(tensors, lane.map(converted, tensors.items())))


def _is_cast(key: str, tensor: Tensor) -> bool:
    return tensor.is_floating_point() and not key.endswith(".alpha") and tensor.numel() > 0


def _is_narrowed(tensor: Tensor, dtype: torch.dtype) -> bool:
    """Whether some numbers of the tensor's dtype are none of the other."""
    return torch.promote_types(tensor.dtype, dtype) != dtype


def _check_range(key: str, tensor: Tensor, dtype: torch.dtype | None) -> None:
    if not _is_cast(key, tensor):
        return
    largest = float(tensor.abs().max())
    if not math.isfinite(largest):
        raise OutputError(f"{key} holds NaN or infinity and is not written")
    if dtype is not None and largest > torch.finfo(dtype).max:
        raise OutputError(
            f"{key} has values up to {largest:.3g}, more than {dtype} can hold; save it as bfloat16 or float32"
        )


def _refuse(what: str, share: float, dtype: torch.dtype) -> None:
    if share > torch.finfo(dtype).eps:
        raise OutputError(
            f"{what}: {100 * share:.3g} % of it would be lost below the smallest numbers that {dtype} can hold; save "
            "it as bfloat16 or float32"
        )
