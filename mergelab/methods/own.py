"""What a method of a user's own has to be; what is wrong with one is found when it is registered."""

from __future__ import annotations

import inspect
from dataclasses import fields, is_dataclass
from typing import Any

from mergelab.checks import short_repr, takes
from mergelab.methods.method import LayerWise, Strategy, unfinished
from mergelab.methods.sparsify import Sparsifier

SHARED = frozenset(("space", "basis"))
"""Options that every method has."""

_OF_PYTHON = "loras weights method rank seed device memory progress allow_pickle architecture base"
_OF_THE_COMMAND = "output format dtype force drop_extras import help for config block_weights dry_run"
RESERVED = SHARED | frozenset(f"{_OF_PYTHON} {_OF_THE_COMMAND}".split())
"""What is asked for beside the options of a method: no option of one can be called so."""


def unfit(rule: Any) -> str:
    """Why this cannot be registered as a method, in words; "" for what can.

    Example:
        >>> unfit(lambda changes, weights: changes[0]), unfit(3)
        ('', 'expected a function or a class, found int')
    """
    if isinstance(rule, type):
        return _unfit_strategy(rule) if issubclass(rule, Strategy) else _unfit_class(rule)
    if not callable(rule):
        return f"expected a function or a class, found {type(rule).__name__}"
    return "" if takes(rule, 2) or takes(rule, 3) else f"{_EXPECTED}, found {short_repr(rule)}"


_EXPECTED = "expected a function (changes, weights), or (changes, weights, generator) for one that draws"


def _unfit_strategy(rule: type[Strategy]) -> str:
    if lacking := unfinished(rule):
        return lacking
    name, arguments = ("combine", ("parts",)) if issubclass(rule, LayerWise) else ("rule", ("changes", "weights"))
    if not takes(getattr(rule, name), 1 + len(arguments)):
        return f"{rule.__name__}.{name}: expected the arguments (self, {', '.join(arguments)})"
    sparsifier = inspect.getattr_static(rule, "sparsifier")
    if not (sparsifier is None or isinstance(sparsifier, Sparsifier) or hasattr(sparsifier, "__get__")):
        return f"{rule.__name__}.sparsifier: expected a Sparsifier or None, found {short_repr(sparsifier)}"
    return _clash(rule, RESERVED - SHARED) or _unmakeable(rule)


def _unfit_class(rule: type) -> str:
    if not any("__call__" in vars(base) for base in rule.__mro__):
        return f"instances of {rule.__name__} are no functions: give it __call__(self, changes, weights)"
    call = rule.__call__  # of its instances: the class's own is that of its type
    if not (takes(call, 3) or takes(call, 4)):
        return f"{rule.__name__}.__call__: {_EXPECTED}, after self"
    if not is_dataclass(rule) and not takes(rule, 0):
        return f"{rule.__name__} has options and is no dataclass: put @dataclass(frozen=True) above it"
    return _clash(rule, RESERVED) or _unmakeable(rule)


def _clash(rule: Any, reserved: frozenset[str]) -> str:
    """Of its options with what else is asked for."""
    taken = [field.name for field in fields(rule) if field.name in reserved] if is_dataclass(rule) else []
    return f"{rule.__name__} cannot have an option {taken[0]!r}, which merge has itself: rename it" if taken else ""


def _unmakeable(rule: type) -> str:
    """What is wrong with an instance, where it can be made without any option."""
    if not takes(rule, 0):
        return ""
    try:
        rule()
    except Exception as error:  # whatever a class of the user's own raises
        return f"{rule.__name__} cannot be made with its defaults: {' '.join(str(error).split())}"
    return ""
