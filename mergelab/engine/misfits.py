"""What a method returns that does not fit, or raises, said with its name and the layer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from mergelab.errors import LayerError, MergelabError
from mergelab.methods.method import Strategy
from mergelab.methods.registry import is_own, name_of


def unexpected(merged: Any, shape: tuple[int, ...], strategy: Strategy, layer: str) -> LayerError:
    """What is raised of a result of another kind or shape."""
    return LayerError(
        f"layer {layer}: method {name_of(strategy)!r} returned {_found(merged)}, expected the merged change of shape "
        f"{shape}"
    )


def check_seen(seen: Any, x: Tensor, function: str, method: Strategy, layer: str) -> None:
    """Raise `LayerError` unless a sparsifier returned what stands for the rows that it got."""
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
