"""Numbers as people read them."""

from __future__ import annotations

import math

from mergelab.evaluation.statistics import Interval


def decimal(value: float, sign: str = "") -> str:
    """Three digits; a little below zero is no "-0.000", and what is not there is a dash.

    Example:
        >>> decimal(0.12345), decimal(-0.0001), decimal(0.5, sign="+"), decimal(float("nan"))
        ('0.123', '0.000', '+0.500', '–')
    """
    return f"{round(value, 3) + 0.0:{sign}.3f}" if math.isfinite(value) else "–"


def percent(share: float) -> str:
    """A share as people read it; a little below zero is no "-0%".

    Example:
        >>> percent(0.834), percent(-0.001)
        ('83%', '0%')
    """
    return f"{round(share, 2) + 0.0:.0%}"


def percent_with_interval(interval: Interval) -> str:
    """A share, and its interval where it has one.

    Example:
        >>> percent_with_interval(Interval(0.5, 0.25, 0.75))
        '50% [25%, 75%]'
    """
    bounds = f" [{percent(interval.low)}, {percent(interval.high)}]" if math.isfinite(interval.low) else ""
    return percent(interval.estimate) + bounds
