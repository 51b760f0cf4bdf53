"""The findings in words and as a plain table."""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import product
from typing import TYPE_CHECKING

from mergelab.evaluation.analysis import CONCEPT_METRICS, PAIR_METRICS, Finding

if TYPE_CHECKING:
    from mergelab.evaluation.run import Result


def main_metric(result: Result) -> str | None:
    """The concept metric that sees most of the adapters; of equals the sharper. None where none sees any."""
    seen = {
        metric: sum(anchor.metric == metric and not anchor.blind for anchor in result.anchors)
        for metric in CONCEPT_METRICS
    }
    best = max(seen, key=lambda metric: seen[metric])
    return best if seen[best] else None


def found(result: Result, quantity: str, variant: str, metric: str, reference: str) -> Finding | None:
    """One finding, if it is there."""
    key = (quantity, variant, metric, reference)
    return next((f for f in result.findings if (f.quantity, f.variant, f.metric, f.reference) == key), None)


def recoveries(result: Result, variant: str, metric: str) -> dict[str, Finding]:
    """Adapter -> its recovery in a variant, for the adapters with a concept."""
    rows = {
        lora.name: found(result, "recovery", variant, metric, f"single:{lora.name}") for lora in result.config.loras
    }
    return {name: row for name, row in rows.items() if row is not None and math.isfinite(row.interval.estimate)}


def variants_of(result: Result) -> list[str]:
    """Stack and merges that have scores, in order."""
    names = list(dict.fromkeys(result.scores["variant"]))
    return [name for name in names if name == "stack" or name.startswith("merge:")]


def front(points: Mapping[str, Mapping[str, float]]) -> set[str]:
    """The Pareto front: names of points that no other point reaches in every coordinate and beats in one.

    Example:
        >>> sorted(front({"a": {"x": 1, "y": 0}, "b": {"x": 0, "y": 1}, "c": {"x": 0, "y": 0}}))
        ['a', 'b']
    """
    return {
        name
        for name, point in points.items()
        if not any(
            all(other[key] >= point[key] for key in point) and any(other[key] > point[key] for key in point)
            for rival, other in points.items()
            if rival != name
        )
    }


def words(result: Result, calling: Mapping[str, set[str]]) -> list[str]:
    """What one would tell a colleague: which merge keeps most of each, what is lost, what cannot be said."""
    metric = main_metric(result)
    prompts = {lora.name: sum(lora.name in called for called in calling.values()) for lora in result.config.loras}
    if metric is None:
        lines = [_nothing_seen(result, any(prompts.values()))]
    else:
        lines = _ranking(result, metric) + _cost_of_leaks(result, metric)
    if result.failures:
        first = result.failures[0]
        lines.append(f"{len(result.failures)} cells failed, the first: {first['variant']}: {first['error']}")
    if len(calling) == 1:
        lines.append("One prompt gives no intervals: prompts are what varies.")
    free = [prompt for prompt, called in calling.items() if not called]
    if len(free) == 1 < len(calling):
        lines.append("One prompt is free of triggers: the change on it has no interval.")
    once = [name for name, count in prompts.items() if count == 1 < len(calling)]
    if once:
        lines.append(f"One prompt calls {', '.join(once)}: what was kept of it has no interval.")
    if not free:
        lines.append("No prompt is free of triggers: nothing is said about what the merges do to other prompts.")
    uncalled = [name for name, count in prompts.items() if count == 0]
    if 0 < len(uncalled) < len(prompts):
        lines.append(f"No prompt calls {', '.join(uncalled)}: nothing is said about what was kept of it.")
    blind = sorted({f"{a.metric} ({a.reference.removeprefix('single:')})" for a in result.anchors if a.blind})
    if blind:
        lines.append(
            "Blind, and not to be read (base model and adapter alone are less than two standard errors apart, on these "
            f"prompts): {', '.join(blind)}."
        )
    return lines


def _nothing_seen(result: Result, called: bool) -> str:
    if not set(CONCEPT_METRICS) & set(result.config.metrics):
        return f"No recovery: none of the metrics looks for a concept; {' and '.join(CONCEPT_METRICS)} do."
    if not any(lora.concept for lora in result.config.loras):
        return "No recovery: give each adapter a concept prompt."
    if not called:
        return "No recovery: no prompt calls any adapter."
    return "No recovery: no metric tells any adapter alone from the base model, on the prompts that call it."


def _ranking(result: Result, metric: str) -> list[str]:
    table = {name: recoveries(result, name, metric) for name in variants_of(result)}
    complete = max(len(rows) for rows in table.values()) if table else 0
    worst = {
        name: min((row.interval for row in rows.values()), key=lambda interval: interval.estimate)
        for name, rows in table.items()
        if name != "stack" and rows and len(rows) == complete
    }
    lines = []
    if worst:
        name = max(worst, key=lambda name: min(worst[name].estimate, 1.0))
        label = name.removeprefix("merge:")
        equals = sum(interval.high >= worst[name].low for interval in worst.values()) - 1
        doubt = f" Intervals overlap with {equals} of {len(worst) - 1} other merges." if equals > 0 else ""
        lines.append(f"Best by the adapter that suffers most, on these prompts and seeds: {label} keeps "
                     f"{_kept(table[name])} ({metric}; chosen on the images it is judged by).{doubt}")  # fmt: skip
    if table.get("stack"):
        lines.append(f"The unmerged stack keeps {_kept(table['stack'])}.")
    lost = [
        f"{name.removeprefix('merge:')} keeps {_percent(row)} of {adapter}"
        for name, rows in table.items()
        for adapter, row in rows.items()
        if name != "stack" and row.interval.high < 0.5
    ]
    if lost:
        lines.append(f"Lost, with the whole interval below half: {'; '.join(lost)}.")
    return lines


def _kept(rows: Mapping[str, Finding]) -> str:
    return ", ".join(f"{_percent(row)} of {adapter}" for adapter, row in rows.items())


def _cost_of_leaks(result: Result, metric: str) -> list[str]:
    worst = None
    for name in variants_of(result):
        row = found(result, "preservation", name, metric, "")
        if row and row.interval.high < 0 and (worst is None or row.interval.estimate < worst.interval.estimate):
            worst = row
    if worst is None:
        return []
    return [
        f"{worst.variant.removeprefix('merge:')} costs most on prompts that call no adapter: "
        f"{decimal(worst.interval.estimate, '+')} ({metric})."
    ]


def pair_metrics(result: Result) -> list[str]:
    """The metrics between images that were asked for."""
    return [name for name in PAIR_METRICS if name in result.config.metrics]


def own_metrics(result: Result) -> list[str]:
    """The metrics of the user's own that give an image one number."""
    return list(dict.fromkeys(f.metric for f in result.findings if f.quantity == "score" and not f.reference))


def calm_of(result: Result, variant: str) -> Finding | None:
    """What a variant changes where no adapter is called, by the main metric, or by the sharpest that is there."""
    metrics = [main_metric(result), *CONCEPT_METRICS]
    rows = (found(result, "preservation", variant, metric, "") for metric in metrics if metric)
    return next((row for row in rows if row), None)


def table(result: Result) -> str:
    """Recovery of every adapter in every variant, as text."""
    metric = main_metric(result)
    names = [lora.name for lora in result.config.loras]
    pairs = list(product(pair_metrics(result), names))
    head = ["", *(f"recovery of {name}" for name in names), *(f"{pair} to {name}" for pair, name in pairs)]
    own = own_metrics(result)
    rows = [[*head, "without a trigger", *own]]
    for variant in variants_of(result):
        kept = recoveries(result, variant, metric) if metric else {}
        calm = calm_of(result, variant)
        cells = [_percent(kept.get(name)) for name in names]
        for pair, name in pairs:
            row = found(result, "similarity", variant, pair, f"single:{name}")
            cells.append(decimal(row.interval.estimate) if row else "–")
        cells.append(decimal(calm.interval.estimate, "+") if calm else "–")
        scores = [found(result, "score", variant, name, "") for name in own]
        cells += [decimal(row.interval.estimate) if row else "–" for row in scores]
        rows.append([variant.removeprefix("merge:"), *cells])
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows)


def _percent(row: Finding | None) -> str:
    if row is None:
        return "–"
    low, high = row.interval.low, row.interval.high
    return percent(row.interval.estimate) + (f" [{percent(low)}, {percent(high)}]" if math.isfinite(low) else "")


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
