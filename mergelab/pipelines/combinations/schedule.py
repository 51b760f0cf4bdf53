"""Weights that change from step to step."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from mergelab.checks import EXPECTED_NUMBER, is_number, short_repr
from mergelab.errors import OptionError
from mergelab.pipelines.combinations.combination import Combination, Rule, everywhere
from mergelab.pipelines.live import Applied

Course = float | Sequence[float] | Callable[[float], float]
"""The factors of one adapter over an image: one number; points from the first step to the last; a function of the
progress, 0 in the first step and 1 in the last."""


@dataclass(frozen=True)
class Schedule(Combination):
    """Adapters whose weights in the denoiser change over the steps of an image.

    The factors multiply the weights that `ml.apply` was given, in every layer. Points lie evenly between the first step
    and the last, with straight lines between them. A step in which a factor is 0 does not pay for the adapter.

    Args:
        factors: one entry for each adapter, in the order in which they were applied: a number, points, or a function
            of the progress in [0, 1].

    Raises:
        OptionError: a factor that is no number; when attached, not as many entries as adapters.

    Example:
        >>> import mergelab as ml
        >>> ml.schedule([[1.0, 0.0], 1.0, lambda progress: float(progress >= 0.5)]).at(step=1, steps=5)
        (0.75, 1.0, 0.0)
    """

    factors: Sequence[Course]

    def __post_init__(self) -> None:
        if isinstance(self.factors, str) or not isinstance(self.factors, Iterable):
            raise OptionError(f"factors={short_repr(self.factors)}: expected a list, one entry for each adapter")
        courses = tuple(tuple(c) if isinstance(c, Iterable) else c for c in self.factors)
        for place, course in enumerate(courses):
            for value in course if isinstance(course, tuple) else [] if callable(course) else [course]:
                _number(value, place)
            if course == ():
                raise OptionError(f"factors[{place}] is empty: expected at least one point")
        object.__setattr__(self, "factors", courses)

    def at(self, step: int, steps: int) -> tuple[float, ...]:
        """The factor of each adapter in one step, from 0, of so many."""
        progress = step / (steps - 1) if steps > 1 else 0.0
        return tuple(_number(_value(course, progress), place) for place, course in enumerate(self.factors))

    def rule(self, applied: Applied) -> Rule:
        """One pass, at the factors of the step."""
        if len(self.factors) != len(applied.names):
            raise OptionError(
                f"factors has {len(self.factors)} entries for {len(applied.names)} adapters "
                f"({', '.join(applied.names)}): expected one for each"
            )
        return lambda step, steps: [everywhere(applied, self.at(step, steps))]


def _value(course: Course, progress: float) -> float:
    if callable(course):
        return course(progress)
    if not isinstance(course, Sequence):
        return course
    place = progress * (len(course) - 1)
    before = min(int(place), len(course) - 1)
    after = min(before + 1, len(course) - 1)
    return course[before] + (place - before) * (course[after] - course[before])


def _number(value: object, place: int) -> float:
    if not is_number(value):
        raise OptionError(f"factors[{place}]: {short_repr(value)}: {EXPECTED_NUMBER}")
    return float(value)  # type: ignore[arg-type]
