"""Seconds of one call."""

from __future__ import annotations

import cProfile
import pstats
from collections import defaultdict
from collections.abc import Callable, Sequence
from statistics import median
from time import perf_counter, process_time
from typing import TypeVar

from benchmarks.measuring import timed

T = TypeVar("T")


def worked(call: Callable[[], T]) -> tuple[T, float]:
    """What it returns, and the processor's seconds."""
    start = process_time()
    result = call()
    return result, process_time() - start


def seconds_of(call: Callable[[], object], *, least: int = 3, enough: float = 0.5) -> float:
    """The median of several calls, after one that warms up.

    Args:
        call: what is timed.
        least: how often, at least.
        enough: seconds after which no more calls are made.

    Example:
        >>> seconds_of(lambda: sum(range(1000)), enough=0.01) > 0
        True
    """
    call()
    taken = list[float]()
    while len(taken) < least or sum(taken) < enough:
        taken.append(timed(call)[1])
        if len(taken) >= 100_000:
            break
    return median(taken)


def each(call: Callable[[int], object], count: int) -> float:
    """Mean seconds of a call that is too short for the clock, over so many of them, each with its number."""
    call(0)
    start = perf_counter()
    for number in range(1, count + 1):
        call(number)
    return (perf_counter() - start) / count


def seconds_by(call: Callable[[], object], names: Sequence[str]) -> dict[str, float]:
    """What the functions of these names took of a call, with all that they called."""
    profile = cProfile.Profile()
    profile.runcall(call)
    found = defaultdict[str, float](float)
    known: dict[tuple[str, int, str], tuple[int, int, float, float, object]] = pstats.Stats(profile).stats  # type: ignore[attr-defined]
    for (_, _, name), (_, _, _, seconds, _) in known.items():
        if name in names:
            found[name] += seconds
    return dict(found)
