"""How a search went, and what it weighed against each other, as SVG."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from mergelab.evaluation.report import plots
from mergelab.tuning.objectives import BYTES, value_of
from mergelab.tuning.trial import Found, Trial

MEGABYTE = 1e6
_NAMES = {"score": "score", "joint": "joint score", "own": "own prompts", "plain": "prompts that call none",
          "minimum": "least recovery", BYTES: "file, MB"}  # fmt: skip


def name_of(objective: str) -> str:
    """An objective for people.

    Example:
        >>> name_of("bytes"), name_of("recovery:ghost")
        ('file, MB', 'recovery of ghost')
    """
    return _NAMES.get(objective) or objective.replace(":", " of ")


def shown_value(objective: str, trial: Trial) -> float:
    """What a trial reaches, in the unit that people read; NaN where it is not known."""
    if trial.scored is None:
        return math.nan
    return value_of(objective, trial.scored, trial.bytes) / (MEGABYTE if objective == BYTES else 1.0)


def history(found: Found, objective: str, level: float, *, running: bool) -> str:
    """Every trial that has a value, in the order in which they were tried.

    Args:
        found: the trials.
        objective: what stands upright.
        level: of the plain sum at its best strength, as a line; NaN: there is none.
        running: with a line for the best so far, of the trials that were drawn to the end.
    """
    known = [(trial, shown_value(objective, trial)) for trial in found.trials]
    known = [(trial, value) for trial, value in known if math.isfinite(value)]
    if not known:
        return ""
    levels = [level] if math.isfinite(level) else []
    x = plots.limits_of([0.0, float(max(len(found.trials) - 1, 1))])
    y = plots.limits_of([*(value for _, value in known), *levels], least=0.02)
    parts = plots.frame(x, y, ("trial", name_of(objective)), level=levels)
    for at in (plots.up(height, y) for height in levels):
        parts.append(f'<text class="tick" x="{plots.WIDTH - plots.EDGE - 4}" y="{at - 4:.1f}" text-anchor="end">'
                     "the plain sum at its best strength</text>")  # fmt: skip
    if running:
        parts += _best_so_far(known, objective, x, y)
    for trial, value in known:
        a, b = plots.across(trial.number, x), plots.up(value, y)
        title = f"<title>{escape(trial.candidate.label)}: {value:.3f}, {trial.state}</title>"
        if trial.state == "stopped" and running:
            parts.append(f'<path class="cross" d="M{a - 4:.1f} {b - 4:.1f}l8 8m0 -8l-8 8">{title}</path>')
        else:
            kind = "dot on" if trial.state == "complete" else "dot"
            parts.append(f'<circle class="{kind}" cx="{a:.1f}" cy="{b:.1f}" r="4">{title}</circle>')
    for trial, value in known:
        if trial.number in found.best[:1]:
            a, b = plots.across(trial.number, x), plots.up(value, y)
            parts.append(f'<circle class="ring" cx="{a:.1f}" cy="{b:.1f}" r="8"/>')
    return plots.svg(parts, f"{name_of(objective)} of each trial")


def _best_so_far(known: Sequence[tuple[Trial, float]], objective: str, x: plots.Limits, y: plots.Limits) -> list[str]:
    sign = -1.0 if objective == BYTES else 1.0
    best, path = math.nan, ""
    for trial, value in known:
        if trial.state == "complete" and not sign * value <= sign * best:
            a, b = plots.across(trial.number, x), plots.up(value, y)
            path += f"M{a:.1f} {b:.1f}" if not path else f"H{a:.1f}V{b:.1f}"
            best = value
    return [f'<path class="best" d="{path}H{plots.across(x[1], x):.1f}"/>'] if path else []


def fronts(found: Found) -> list[str]:
    """One objective against another; one figure, where there are two."""
    if len(found.objectives) != 2:
        return []
    first, second = found.objectives
    if first == BYTES:
        first, second = second, first  # the size stands upright
    values = {t.candidate.label: (shown_value(first, t), shown_value(second, t)) for t in found.trials
              if t.state == "complete"}  # fmt: skip
    points = {label: point for label, point in values.items() if all(map(math.isfinite, point))}
    front = {found.trials[number].candidate.label for number in found.best} & points.keys()
    named = front if len(front) <= 12 else {found.winner.candidate.label} & front
    return [plots.scatter(points, front, (name_of(first), name_of(second)), named, guides=())] if points else []
