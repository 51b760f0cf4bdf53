"""What a search optimises: the score, one of its parts, what is kept of each concept, the size of the file."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

from mergelab.checks import did_you_mean, short_repr
from mergelab.errors import OptionError
from mergelab.evaluation.report.figures import pareto_front
from mergelab.tuning.candidate import Scene
from mergelab.tuning.scoring import Scored
from mergelab.tuning.trial import Trial

BYTES, RECOVERY = "bytes", "recovery:"
_PARTS = {"joint": "call several adapters", "own": "call one adapter", "plain": "call none"}
_ALIASES = {"preservation": "plain"}


def checked_objectives(given: Sequence[str], adapters: Collection[str], scenes: Sequence[Scene]) -> tuple[str, ...]:
    """The objectives of a configuration by their own names.

    Args:
        given: as they stand there; "preservation" is another word for "plain".
        adapters: their names.
        scenes: on which candidates are measured.

    Raises:
        OptionError: there is no such objective, no scene tells it, or one stands there twice.

    Example:
        >>> scenes = [Scene("a ghost by day", frozenset({"ghost", "day"}), 0), Scene("a cup", frozenset(), 0)]
        >>> checked_objectives(["minimum", "preservation", "recovery:day"], ["ghost", "day"], scenes)
        ('minimum', 'plain', 'recovery:day')
    """
    known = ("score", *_PARTS, "minimum", *(f"{RECOVERY}{name}" for name in adapters), BYTES)
    found = tuple(_ALIASES.get(name, name) for name in given)
    for name in found:
        if name not in known:
            raise OptionError(f"objectives: {short_repr(name)}: {did_you_mean(name, [*known, *_ALIASES])}")
        part = "joint" if name == "minimum" or name.startswith(RECOVERY) else name
        if part in _PARTS and not any(scene.part == part for scene in scenes):
            raise OptionError(f"objectives: {name}: no prompt tells it; add prompts that {_PARTS[part]}")
        if found.count(name) > 1:
            raise OptionError(f"objectives: {name} stands there twice")
    return found


def value_of(objective: str, scored: Scored, size: int | None) -> float:
    """What a candidate reaches; NaN where that is not known."""
    if objective == BYTES:
        return math.nan if size is None else float(size)
    if objective == "score":
        return scored.total
    if objective == "minimum":
        return min(scored.recovery.values(), default=math.nan)
    if objective.startswith(RECOVERY):
        return scored.recovery.get(objective.removeprefix(RECOVERY), math.nan)
    return float(getattr(scored, objective))


def direction_of(objective: str) -> str:
    """As Optuna says it."""
    return "minimize" if objective == BYTES else "maximize"


def values_of(objectives: Sequence[str], scored: Scored, size: int | None) -> list[float]:
    """Of each objective what a candidate reaches."""
    return [value_of(objective, scored, size) for objective in objectives]


def winners_of(trials: Sequence[Trial], objectives: Sequence[str]) -> tuple[int, ...]:
    """Numbers of the best among the complete ones: of one objective one, of several the front, best score first.

    Example:
        >>> from mergelab.tuning.candidate import Candidate
        >>> trials = [Trial(i, Candidate(f"trial {i}", {}), "complete", Scored(j, 1.0, 1.0, j, {}, 4), bytes=size)
        ...           for i, (j, size) in enumerate([(0.5, 90), (0.7, 100), (0.4, 95)])]
        >>> winners_of(trials, ["joint"]), winners_of(trials, ["joint", "bytes"])
        ((1,), (1, 0))
    """
    points = {}
    for trial in trials:
        if trial.state == "complete" and trial.scored is not None:
            values = dict(zip(objectives, values_of(objectives, trial.scored, trial.bytes)))
            if all(map(math.isfinite, values.values())):
                points[trial.number] = {name: -v if name == BYTES else v for name, v in values.items()}

    def rank(number: int) -> tuple[float, int]:
        scored = trials[number].scored
        return (-scored.total if scored is not None else math.inf, number)

    if len(objectives) == 1:
        return tuple(sorted(points, key=lambda n: (-points[n][objectives[0]], *rank(n)))[:1])
    front = pareto_front({str(number): values for number, values in points.items()})
    return tuple(sorted(map(int, front), key=rank))
