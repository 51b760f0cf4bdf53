"""Shapes of arrays are checked in every function of the package under pytest, see `--jaxtyping-packages`.

Other types are left to mypy: what a user hands in is of any type, and what is wrong with it has to be a sentence. A
function without arrays stays as it is: jaxtyping would bind the arguments of its every call, most of the suite's time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, get_args

import jaxtyping
from beartype import beartype
from jaxtyping import AbstractArray

AnyFunction = TypeVar("AnyFunction", bound=Callable[..., Any])
_jaxtyped = jaxtyping.jaxtyped


def checked(function: AnyFunction) -> AnyFunction:
    """Check the arguments and results that are annotated as arrays, alone or within others."""
    function.__annotations__ = {name: hint for name, hint in function.__annotations__.items() if _has_array(hint)}
    return beartype(function)


def jaxtyped(*, typechecker: Any) -> Callable[[Any], Any]:
    """Jaxtyping's decorator, which leaves alone what has no arrays to check."""
    decorator = _jaxtyped(typechecker=typechecker)
    return lambda given: decorator(given) if _takes_arrays(given) else given


def _takes_arrays(given: Any) -> bool:
    """Whether an argument or the result is an array; of a class, whether one of its fields is."""
    function = given.__init__ if isinstance(given, type) else given
    hints = getattr(function, "__annotations__", {}).values()
    return any(_has_array(_read(hint, function.__globals__)) for hint in hints)


def _read(hint: Any, names: dict[str, Any]) -> Any:
    """The type that an annotation stands for; None for what is defined later, which jaxtyping does not check either."""
    try:
        return eval(hint, names) if isinstance(hint, str) else hint
    except Exception:
        return None


def _has_array(hint: Any) -> bool:
    return (isinstance(hint, type) and issubclass(hint, AbstractArray)) or any(map(_has_array, get_args(hint)))


jaxtyping.jaxtyped = jaxtyped  # which is what the import hook puts above every function
