"""What a method returned, held against what is expected of it; errors name the method and the layer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from mergelab.errors import LayerError, MergelabError
from mergelab.linalg.lowrank import Core, Factors
from mergelab.methods.method import MatrixWise, Strategy
from mergelab.methods.registry import is_own, name_of
from mergelab.spaces import Merged


def as_merged(merged: Any, shape: tuple[int, int], strategy: Strategy, layer: str) -> Merged:
    """What a method of layers returned, in the precision that everything else has."""
    if isinstance(merged, Core):
        found: tuple[int, ...] = (merged.U.shape[0], merged.V.shape[0])
        merged = Core(merged.U.float(), merged.M.double(), merged.V.float())
    elif isinstance(merged, Factors):
        found, merged = merged.shape, Factors(merged.B.float(), merged.A.float())
    elif isinstance(merged, Tensor):
        found, merged = tuple(merged.shape), merged.to(torch.float32, copy=True)  # which may be scaled in place
    else:
        raise unexpected(merged, shape, strategy, layer)
    if found != shape:
        raise unexpected(merged, shape, strategy, layer)
    return merged


def unexpected(merged: Any, shape: tuple[int, ...], strategy: Strategy, layer: str) -> LayerError:
    return LayerError(
        f"layer {layer}: method {name_of(strategy)!r} returned {_found(merged)}, expected the merged change of shape "
        f"{shape}"
    )


def check_seen(seen: Any, x: Tensor, function: str, method: MatrixWise, layer: str) -> None:
    if not isinstance(seen, Tensor) or seen.shape != x.shape:
        raise LayerError(
            f"layer {layer}: method {name_of(method)!r}: {function}() of its sparsifier returned {_found(seen)}, "
            f"expected the rows that it treated, of shape {tuple(x.shape)}"
        )


def _found(value: Any) -> str:
    return f"one of shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"


@contextmanager
def errors_told(strategy: Strategy, layer: str = "") -> Iterator[None]:
    """Where a method of the user's own raises, it is named, and the layer if it was at one.

    Raises:
        LayerError: it raised; errors of mergelab stay what they are.
    """
    try:
        yield
    except MergelabError:
        raise
    except Exception as error:
        if not is_own(strategy):
            raise
        where = f" in layer {layer}" if layer else ""
        said = " ".join(f"{type(error).__name__}: {error}".split())
        raise LayerError(f"method {name_of(strategy)!r} failed{where}: {said}") from error
