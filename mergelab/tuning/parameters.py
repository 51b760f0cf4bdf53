"""What one parameter of a search can be: a choice of values, or a range."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from numbers import Integral
from typing import Any

from mergelab.checks import did_you_mean, is_number, short_repr
from mergelab.errors import OptionError

Value = str | int | float | bool | None
_KEYS = ("low", "high", "step", "log")


@dataclass(frozen=True)
class Choice:
    """One of several values.

    Attributes:
        values: in the order in which they were given.
    """

    values: tuple[Value, ...]


@dataclass(frozen=True)
class Range:
    """A number from low to high, both included.

    Attributes:
        low, high: the ends; `high` is a whole number of steps above `low`.
        step: between two numbers next to each other; None: 1 of whole numbers, none of others.
        log: drawn by its logarithm.
        whole: every number is whole.
    """

    low: float
    high: float
    step: float | None = None
    log: bool = False
    whole: bool = False


Parameter = Choice | Range


def parameter(name: str, given: Any, *, pair_is_range: bool = False) -> Parameter:
    """The parameter that a configuration asks for.

    Args:
        name: for messages: "weights", "density".
        given: a list of values, or a mapping with `low`, `high` and perhaps `step` or `log`.
        pair_is_range: a list of two numbers are the ends of a range, as of weights.

    Raises:
        OptionError: it is neither, or it is empty.

    Example:
        >>> parameter("method", ["svd", "ties"]), parameter("weights", [0.5, 1.3], pair_is_range=True)
        (Choice(values=('svd', 'ties')), Range(low=0.5, high=1.3, step=None, log=False, whole=False))
        >>> parameter("rank", {"low": 4, "high": 33, "step": 8})
        Range(low=4, high=28, step=8, log=False, whole=True)
    """
    if isinstance(given, Mapping):
        return _range(name, dict(given))
    if pair_is_range and isinstance(given, list) and len(given) == 2 and all(is_number(value) for value in given):
        return _range(name, {"low": float(given[0]), "high": float(given[1])})
    if not isinstance(given, list):
        raise OptionError(
            f"space: {name}={short_repr(given)}: expected a list of values, or a range such as {{low: 0.2, high: 0.9}}"
            + (", or its two ends" if pair_is_range else "; one value alone belongs under merge")
        )
    if not given:
        raise OptionError(f"space: {name}: the list of values is empty")
    if wrong := [value for value in given if not isinstance(value, (str, int, float, bool, type(None)))]:
        raise OptionError(f"space: {name}: {short_repr(wrong[0])}: expected a number, a text or true or false")
    return Choice(tuple({repr(value): value for value in given}.values()))


def _range(name: str, given: dict[str, Any]) -> Range:
    where = f"space: {name}"
    if unknown := next((key for key in given if key not in _KEYS), None):
        raise OptionError(f"{where}: a range has no {unknown!r}; {did_you_mean(str(unknown), _KEYS)}")
    for key in ("low", "high"):
        if key not in given:
            raise OptionError(f"{where}: a range needs {key!r}, as in {{low: 0.2, high: 0.9}}")
    low, high, step, log = given["low"], given["high"], given.get("step"), given.get("log", False)
    for key, number in (("low", low), ("high", high), ("step", 1 if step is None else step)):
        if not is_number(number):
            raise OptionError(f"{where}: {key}={short_repr(number)}: expected a number")
    if not isinstance(log, bool):
        raise OptionError(f"{where}: log={short_repr(log)}: expected true or false")
    if low >= high:
        raise OptionError(f"{where}: low={low} and high={high}: the range is empty, expected low below high")
    if step is not None and not 0 < step <= high - low:
        raise OptionError(f"{where}: step={step}: expected more than 0, and no more than from low to high")
    if log and (step is not None or low <= 0):
        what = "a range by the logarithm has no step" if step is not None else f"low={low}: log needs one above 0"
        raise OptionError(f"{where}: {what}")
    whole = all(isinstance(number, Integral) for number in (low, high, 1 if step is None else step))
    if step is not None:
        # What is left over is not reached; the sum of the steps is rounded, as 0.1 has no end in binary.
        high = round(low + int((high - low) / step + 1e-9) * step, 12)
    if whole:
        return Range(int(low), int(high), None if step is None else int(step), log, True)
    return Range(float(low), float(high), None if step is None else float(step), log)


def ends(known: Parameter) -> tuple[Value, ...]:
    """The values by which a parameter is checked: all of a choice, both ends of a range.

    Example:
        >>> ends(Choice(("a", "b"))), ends(Range(0.2, 0.9))
        (('a', 'b'), (0.2, 0.9))
    """
    return known.values if isinstance(known, Choice) else (known.low, known.high)


def is_range(given: Any) -> bool:
    """Whether a mapping is meant as a range.

    Example:
        >>> is_range({"low": 0.5, "high": 1}), is_range({"unet": [0.5, 1.0]})
        (True, False)
    """
    return isinstance(given, Mapping) and bool(given) and set(given) <= set(_KEYS)


def numbers(name: str, given: Any) -> Parameter:
    """The parameter of a weight: a choice of numbers, or a range, of which the two ends will do.

    Raises:
        OptionError: as `parameter`; or a value is no number.

    Example:
        >>> numbers("weights", [0.5, 1]), numbers("weights", [0.5, 0.9, 1])
        (Range(low=0.5, high=1.0, step=None, log=False, whole=False), Choice(values=(0.5, 0.9, 1.0)))
    """
    known = parameter(name, given, pair_is_range=True)
    if isinstance(known, Range):
        return replace(known, low=float(known.low), high=float(known.high), whole=False)
    if wrong := [value for value in known.values if not is_number(value)]:
        raise OptionError(f"space: {name}: {short_repr(wrong[0])}: expected a number")
    return Choice(tuple(float(value) for value in known.values if isinstance(value, (int, float))))
