"""The findings in words and as a plain table."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from mergelab.evaluation.analysis import CONCEPT_METRICS, Finding

if TYPE_CHECKING:
    from mergelab.evaluation.run import Result


def main_metric(result: Result) -> str | None:
    """The sharpest concept metric that is there and not blind for every adapter."""
    for metric in CONCEPT_METRICS:
        about = [anchor for anchor in result.anchors if anchor.metric == metric]
        if about and not any(anchor.blind for anchor in about):
            return metric
    return None


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
    """What one would tell a colleague: which merge keeps most of both, what is lost, what cannot be said."""
    lines = []
    metric = main_metric(result)
    if metric is None:
        lines.append(
            "No verdict: no concept metric moves between the base model and the adapters alone"
            + ("." if any(lora.concept for lora in result.config.loras) else "; give each adapter a concept prompt.")
        )
    else:
        lines += _ranking(result, metric)
        lines += _cost_of_leaks(result, metric)
    if result.failures:
        first = result.failures[0]
        lines.append(f"{len(result.failures)} cells failed, the first: {first['variant']}: {first['error']}")
    if len(calling) == 1:
        lines.append("One prompt gives no intervals: prompts are what varies.")
    uncalled = [lora.name for lora in result.config.loras if not any(lora.name in names for names in calling.values())]
    if uncalled:
        lines.append(f"No prompt calls {', '.join(uncalled)}: nothing is said about what was kept of it.")
    blind = sorted({f"{a.metric} ({a.reference.removeprefix('single:')})" for a in result.anchors if a.blind})
    if blind:
        lines.append(f"Blind, and not to be read: {', '.join(blind)}.")
    return lines


def _ranking(result: Result, metric: str) -> list[str]:
    table = {name: recoveries(result, name, metric) for name in variants_of(result)}
    worst = {name: min(row.interval.estimate for row in rows.values()) for name, rows in table.items() if rows}
    merges = {name: value for name, value in worst.items() if name != "stack"}
    if not worst:
        return []
    lines = []
    for name in [max(merges, key=lambda name: merges[name])] if merges else []:
        kept = ", ".join(f"{row.interval.estimate:.0%} of {adapter}" for adapter, row in table[name].items())
        lines.append(f"The merge that keeps most of every adapter is {name.removeprefix('merge:')}: {kept} ({metric}).")
    if table.get("stack"):
        kept = ", ".join(f"{row.interval.estimate:.0%} of {adapter}" for adapter, row in table["stack"].items())
        lines.append(f"The unmerged stack keeps {kept}.")
    lost = [
        f"{name.removeprefix('merge:')} keeps {row.interval.estimate:.0%} of {adapter}"
        for name, rows in table.items()
        for adapter, row in rows.items()
        if name != "stack" and row.interval.high < 0.5
    ]
    if lost:
        lines.append(f"Lost, with confidence below half: {'; '.join(lost)}.")
    return lines


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
        f"{worst.interval.estimate:+.3f} ({metric})."
    ]


def table(result: Result) -> str:
    """Recovery of every adapter in every variant, as text."""
    metric = main_metric(result) or next(iter(CONCEPT_METRICS))
    names = [lora.name for lora in result.config.loras]
    rows = [["", *(f"recovery of {name}" for name in names), "without a trigger"]]
    for variant in variants_of(result):
        kept = recoveries(result, variant, metric)
        calm = found(result, "preservation", variant, metric, "")
        cells = [_percent(kept.get(name)) for name in names]
        rows.append([variant.removeprefix("merge:"), *cells, f"{calm.interval.estimate:+.3f}" if calm else "–"])
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows)


def _percent(row: Finding | None) -> str:
    if row is None:
        return "–"
    low, high = row.interval.low, row.interval.high
    return f"{row.interval.estimate:.0%}" + (f" [{low:.0%}, {high:.0%}]" if math.isfinite(low) else "")
