"""Whether a value that came from outside can be used: a number, a text, a name."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from difflib import get_close_matches
from numbers import Integral
from typing import Any

from mergelab.errors import OptionError

# Weights, alphas and strengths are of order one; what is above this is a mistake, and would overflow float32.
# Of what is below, float32 arithmetic leaves nothing: squares of changes of order 1e-2 would underflow.
LARGEST_NUMBER, SMALLEST_NUMBER = 1e9, 1e-20
EXPECTED_NUMBER = "expected 0 or a finite number that float32 arithmetic can work with, of magnitude 1e-20 to 1e9"


def is_number(value: object) -> bool:
    """A real number (no truth value), 0 or of magnitude 1e-20 to 1e9; NaN is none.

    Example:
        >>> is_number(0.5), is_number(True), is_number("0.5"), is_number(float("nan")), is_number(10**400)
        (True, False, False, False, False)
        >>> is_number(0), is_number(1e-45)
        (True, False)
    """
    if isinstance(value, (bool, complex)) or not hasattr(value, "__float__"):
        return False
    try:
        return float(value) == 0 or SMALLEST_NUMBER <= abs(float(value)) <= LARGEST_NUMBER
    except (TypeError, ValueError, OverflowError, RuntimeError):
        return False


_PLAIN_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?|[+-]?(nan|inf|infinity)", re.ASCII | re.IGNORECASE)


def plain_number(text: str) -> float:
    """The number that a text is, as people write it; what else Python takes for one ("0_7", other digits) is a slip.

    Raises:
        ValueError: it is none.

    Example:
        >>> plain_number("0.7"), plain_number("-5e-1")
        (0.7, -0.5)
        >>> plain_number("0_7")
        Traceback (most recent call last):
            ...
        ValueError: '0_7' is no number
    """
    if not _PLAIN_NUMBER.fullmatch(text):
        raise ValueError(f"{short_repr(text)} is no number")
    return float(text)


def short_repr(value: object) -> str:
    """A value as an error message shows it: its representation, cut short."""
    try:
        text = repr(value)
    except ValueError:  # an integer of too many digits
        text = f"a {type(value).__name__}"
    return text if len(text) <= 60 else text[:57] + "..."


def takes(function: Callable[..., Any], count: int) -> bool:
    """Whether a function can be called with so many arguments, as far as Python knows its parameters.

    Example:
        >>> takes(lambda x, y, z=1: x, 2), takes(lambda x: x, 2)
        (True, False)
    """
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # of a built-in function nothing is known
        return True
    try:
        signature.bind(*range(count))
    except TypeError:
        return False
    return True


def readable(text: str) -> str:
    r"""A text from outside as UTF-8 has it: bytes of a file name that the locale could not read are read all the same.

    Example: what Python makes of a u with two dots where the locale knows ASCII alone; and half a character.
        >>> readable("\udcc3\udcbc") == "\u00fc", readable("\ud800")
        (True, '?')
    """
    try:
        return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    except UnicodeEncodeError:  # half a character, from no file name
        return text.encode("utf-8", "replace").decode("utf-8")


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The nearest of the known names, where one is near, and all of them; with their values, where they have some.

    Example:
        >>> did_you_mean("sedes", ["seeds", "prompts"]), did_you_mean("x", {"seeds": 4})
        ("did you mean 'seeds'? known: seeds, prompts", 'known: seeds=4')
    """
    listed = [f"{key}={value!r}" for key, value in known.items()] if isinstance(known, Mapping) else list(known)
    near = get_close_matches(name, [entry.partition("=")[0] for entry in listed], n=1, cutoff=0.5)
    return (f"did you mean {near[0]!r}? " if near else "") + f"known: {', '.join(listed)}"


def check_choice(option: str, value: object, choices: Sequence[str]) -> None:
    """Raise `OptionError` unless the value of an option is one of its choices.

    Example:
        >>> check_choice("scope", "layers", ("layer", "adapter"))
        Traceback (most recent call last):
            ...
        mergelab.errors.OptionError: scope='layers': expected one of 'layer', 'adapter'
    """
    if value not in choices:
        raise OptionError(f"{option}={short_repr(value)}: expected one of {', '.join(map(repr, choices))}")


def check_number(option: str, value: object) -> None:
    """Raise `OptionError` unless the value of an option is a number of ordinary size."""
    if not is_number(value):
        raise OptionError(f"{option}={short_repr(value)}: {EXPECTED_NUMBER}")


def check_count(option: str, value: object) -> None:
    """Raise `OptionError` unless the value of an option is a whole number of at least 1.

    Example:
        >>> check_count("every", 0)
        Traceback (most recent call last):
            ...
        mergelab.errors.OptionError: every=0: expected a whole number of at least 1
    """
    if isinstance(value, bool) or not isinstance(value, Integral) or int(value) < 1:
        raise OptionError(f"{option}={short_repr(value)}: expected a whole number of at least 1")
