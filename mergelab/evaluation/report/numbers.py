"""Numbers as people read them."""

from __future__ import annotations

import math

from mergelab.evaluation.statistics import Interval

LEAST = 0.0005
"""What is nearer to 0 is written as 0."""
WIDE = "wide"
"""In place of bounds further apart than all that can be: they say nothing."""


def decimal(value: float, sign: str = "", digits: int = 3) -> str:
    """Three digits; a little below zero is no "-0.000", and what is not there is a dash.

    Example:
        >>> decimal(0.12345), decimal(-0.0001), decimal(0.5, sign="+"), decimal(float("nan"))
        ('0.123', '0.000', '+0.500', '–')
    """
    return f"{round(value, digits) + 0.0:{sign}.{digits}f}" if math.isfinite(value) else "–"


def percent(share: float) -> str:
    """A share as people read it; a little below zero is no "-0%", and what is not there is a dash.

    Example:
        >>> percent(0.834), percent(-0.001), percent(float("nan"))
        ('83%', '0%', '–')
    """
    return f"{round(share, 2) + 0.0:.0%}" if math.isfinite(share) else "–"


def says_nothing(interval: Interval, span: float) -> bool:
    """Whether bounds are as far apart as all that can be.

    Example:
        >>> says_nothing(Interval(0.8, 0.1, 1.5), 1.0), says_nothing(Interval(0.8, 0.7, 0.9), 1.0)
        (True, False)
    """
    return bool(interval.high - interval.low >= span)


def percent_with_interval(interval: Interval) -> str:
    """A share, and its interval where it has one that says something.

    Example:
        >>> percent_with_interval(Interval(0.5, 0.25, 0.75)), percent_with_interval(Interval(0.8, -0.2, 1.8))
        ('50% [25%, 75%]', '80% [wide]')
        >>> percent_with_interval(Interval(1.0, 1.0, 1.0))
        '100%'
    """
    low, high = percent(interval.low), percent(interval.high)
    if not math.isfinite(interval.low) or low == high:
        return percent(interval.estimate)
    bounds = WIDE if says_nothing(interval, 1.0) else f"{low}, {high}"
    return f"{percent(interval.estimate)} [{bounds}]"


def digits_for(interval: Interval) -> int:
    """As many as a difference of this size needs, and as a bound needs that is not 0.

    Example:
        >>> digits_for(Interval(0.21, 0.05, 0.37)), digits_for(Interval(0.01, 0.0, 0.02))
        (2, 3)
        >>> digits_for(Interval(0.21, 0.004, 0.416))
        3
    """
    known = [abs(v) for v in vars(interval).values() if math.isfinite(v)]
    bound = min(abs(interval.low), abs(interval.high))  # NaN where there is none
    return 2 if max(known, default=0.0) >= 0.1 and not LEAST <= bound < 0.005 else 3


def is_zero(value: float, digits: int = 3) -> bool:
    """Whether it is written as 0.

    Example:
        >>> is_zero(-0.0004), is_zero(0.004), is_zero(0.004, digits=2)
        (True, False, True)
    """
    return round(value, digits) == 0


def difference(interval: Interval) -> str:
    """A difference with its interval.

    Example:
        >>> difference(Interval(0.21, 0.05, 0.37)), difference(Interval(0.2, float("nan"), float("nan")))
        ('0.21 [0.05, 0.37]', '0.20')
    """
    digits = digits_for(interval)
    known = decimal(interval.estimate, digits=digits)
    if not math.isfinite(interval.low):
        return known
    return f"{known} [{decimal(interval.low, digits=digits)}, {decimal(interval.high, digits=digits)}]"


def p_value(p: float) -> str:
    """A p value.

    Example:
        >>> p_value(0.0123), p_value(0.0004), p_value(1.0)
        ('p = 0.012', 'p < 0.001', 'p = 1')
    """
    if p < 0.001:
        return "p < 0.001"
    return f"p = {p:.3f}" if p < 0.9995 else "p = 1"


def cut(text: str, most: int = 160) -> str:
    """A text that is no longer than two lines.

    Example:
        >>> cut("a long one", 7), cut("short", 7)
        ('a long…', 'short')
    """
    return text if len(text) <= most else f"{text[: most - 1].rstrip()}…"


def capital(text: str) -> str:
    """A sentence with a capital, whatever the rest has.

    Example:
        >>> capital("the LoRA")
        'The LoRA'
    """
    return text[:1].upper() + text[1:]
