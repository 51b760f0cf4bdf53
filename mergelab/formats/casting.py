"""The one cast to the dtype of a file: nothing overflows, and nothing is lost below the smallest number it can hold."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from typing import TypeVar

import torch
from torch import Tensor

from mergelab.errors import OutputError
from mergelab.formats.balancing import balanced, lost_in, pairs_of
from mergelab.linalg.workspace import Workspace, panels, threads

T = TypeVar("T")
R = TypeVar("R")

# Shares of the tensors for each thread, since they differ in size.
_SHARES = 8
# What holds numbers that a dtype cannot; where none of them does, float64 is left.
_WIDER = {torch.float16: (torch.bfloat16, torch.float32), torch.bfloat16: (torch.float32,)}


def cast(tensors: dict[str, Tensor], dtype: torch.dtype | None) -> dict[str, Tensor]:
    """The tensors of a file in another dtype; None keeps each in its own.

    Where a plain cast would lose more of a layer than rounding does, or one of its factors would overflow and their
    product would not, its factors are balanced first.

    Raises:
        OutputError: a value that is not finite, or overflows; or a layer or an extra that loses more than rounding
            explains, about one eps of the dtype.
    """
    with threads() as pool:
        workspace = Workspace(pool)
        largest = dict(zip(tensors, _in_shares(workspace, _largest, tensors.items())))
        if dtype is None:
            return tensors
        pairs = [pair for pair in pairs_of(tensors) if _is_narrowed(pair.down, dtype) or _is_narrowed(pair.up, dtype)]
        products = [largest[pair.down_key] * largest[pair.up_key] for pair in pairs]
        fit = {key for pair, p in zip(pairs, products) if p <= torch.finfo(dtype).max for key in pair.tensors}
        for key, value in largest.items():
            if key not in fit:
                _check_range(key, value, dtype)
        loses = list(_in_shares(workspace, lambda pair: pair.loses(dtype), pairs))
        changed: dict[str, Tensor] = {}
        for pair in balanced(pairs, loses, dtype):
            for item in pair.tensors.items():
                _check_range(item[0], _largest(item), dtype)
            _check_losses(f"layer {pair.layer}", pair.lost_share, dtype)
            changed |= pair.tensors
        tensors = tensors | changed
        extras = set(tensors) - {key for pair in pairs for key in pair.tensors}

        def converted(item: tuple[str, Tensor]) -> Tensor:
            key, tensor = item
            if not _is_cast(key, tensor):
                return tensor
            if key in extras and _is_narrowed(tensor, dtype):
                _check_losses(key, lambda target: float(lost_in(target, tensor.reshape(1, -1))), dtype)
            return tensor.to(dtype)

        return dict(zip(tensors, _in_shares(workspace, converted, tensors.items())))


def _in_shares(workspace: Workspace, function: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
    """Results in the order of the items, of which a thread gets several: Python would take longer to hand out each."""
    listed = list(items)
    shares = panels(len(listed), max(1, len(listed) // (_SHARES * workspace.threads)))
    found = workspace.map(lambda share: [function(item) for item in listed[share]], shares)
    return chain.from_iterable(found)


def _is_cast(key: str, tensor: Tensor) -> bool:
    return tensor.is_floating_point() and not key.endswith(".alpha") and tensor.numel() > 0


def _is_narrowed(tensor: Tensor, dtype: torch.dtype) -> bool:
    """Whether some numbers of the tensor's dtype are none of the other."""
    return torch.promote_types(tensor.dtype, dtype) != dtype


def _largest(item: tuple[str, Tensor]) -> float:
    """The largest magnitude of a tensor, 0 where it is not cast."""
    key, tensor = item
    if not _is_cast(key, tensor):
        return 0.0
    largest = float(torch.stack(tensor.aminmax()).abs().max())  # in one pass
    if not math.isfinite(largest):
        raise OutputError(f"{key} holds NaN or infinity and is not written")
    return largest


def _check_range(key: str, largest: float, dtype: torch.dtype) -> None:
    if largest > torch.finfo(dtype).max:
        remedy = _remedy(dtype, lambda wider: largest <= torch.finfo(wider).max)
        raise OutputError(f"{key} has values up to {largest:.3g}, more than {dtype} can hold; {remedy}")


def _check_losses(what: str, lost_share: Callable[[torch.dtype], float], dtype: torch.dtype) -> None:
    share = lost_share(dtype)
    if share > torch.finfo(dtype).eps:
        remedy = _remedy(dtype, lambda wider: lost_share(wider) <= torch.finfo(wider).eps)
        raise OutputError(
            f"{what}: {100 * share:.3g} % of it would be lost below the smallest numbers that {dtype} can hold; "
            f"{remedy}"
        )


def _remedy(dtype: torch.dtype, holds: Callable[[torch.dtype], bool]) -> str:
    """What to do about a dtype that is too narrow: the wider ones that hold what is to be saved."""
    wider = [other for other in _WIDER.get(dtype, ()) if holds(other)] or [torch.float64]
    return f"save it as {' or '.join(str(other).removeprefix('torch.') for other in wider)}"
