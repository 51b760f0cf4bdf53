"""Shapes of arrays are checked in every function of the package under pytest, see `--jaxtyping-packages`.

Other types are left to mypy: what a user hands in is of any type, and what is wrong with it has to be a sentence.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, get_args

from beartype import beartype
from jaxtyping import AbstractArray

AnyFunction = TypeVar("AnyFunction", bound=Callable[..., Any])


def checked(function: AnyFunction) -> AnyFunction:
    """Check the arguments and results that are annotated as arrays, alone or within others."""
    function.__annotations__ = {name: hint for name, hint in function.__annotations__.items() if _has_array(hint)}
    return beartype(function)


def _has_array(hint: Any) -> bool:
    return (isinstance(hint, type) and issubclass(hint, AbstractArray)) or any(map(_has_array, get_args(hint)))
