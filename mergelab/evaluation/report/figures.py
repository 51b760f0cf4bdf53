"""Which figures the page has: what the merges keep of one adapter against another, and what happens layer by layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations

from mergelab.comparing import Comparison
from mergelab.evaluation.metrics.metric import Description
from mergelab.evaluation.report import plots
from mergelab.evaluation.report.lookup import indexed, recoveries, some_of
from mergelab.evaluation.result import Result
from mergelab.evaluation.variants import Variant

WHOLE = 0.9995
"""Retained energy from which on nothing was cut."""


def pareto_front(points: Mapping[str, Mapping[str, float]]) -> set[str]:
    """The Pareto front: names of points that no other point reaches in every coordinate and beats in one.

    Example:
        >>> sorted(pareto_front({"a": {"x": 1, "y": 0}, "b": {"x": 0, "y": 1}, "c": {"x": 0, "y": 0}}))
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


def scatters(result: Result, metric: Description | None, names: Mapping[str, str]) -> list[str]:
    """Recovery of one adapter against that of another, for each pair."""
    if metric is None:
        return []
    index = indexed(result)
    kept = {names[str(name)]: recoveries(result, index, str(name), metric) for name in result.variants}
    figures = []
    for first, second in combinations(result.roles, 2):
        points = {name: {first: rows[first].interval.estimate, second: rows[second].interval.estimate}
                  for name, rows in kept.items() if first in rows and second in rows}  # fmt: skip
        if points:
            labels = (f"recovery of {first} ({metric.shown})", f"recovery of {second}")
            flat = {name: (point[first], point[second]) for name, point in points.items()}
            rounded = {name: {key: round(share, 2) for key, share in point.items()} for name, point in points.items()}
            figures.append(plots.scatter(flat, pareto_front(rounded), labels))
    return figures


def layer_lines(
    variants: Sequence[Variant], comparison: Comparison | None, names: Mapping[str, str], of: str = ""
) -> list[dict[str, str]]:
    """Retained energy of every merge that is cut, and the interference of the adapters, along the layers.

    Args:
        variants: of one set of adapters.
        comparison: of its adapters, before any merge.
        names: what people call each variant.
        of: which set it is, in words; empty where it is the only one.
    """
    figures = []
    kept = {
        names.get(str(v.name), v.name.display): [row["retained_energy"] for row in v.layers]
        for v in variants
        if v.layers
    }
    whole = [name for name, line in kept.items() if all(value is None or value >= WHOLE for value in line)]
    cut = {name: line for name, line in kept.items() if name not in whole}
    if cut:
        drawing = plots.lines(cut, ("layer", "retained energy"), (1.0,))
        all_of = f"; all of it everywhere: {some_of(whole, 6)}" if whole else ""
        figures.append(
            {"title": f"Energy of each merge that its rank holds, layer by layer{of}{all_of}.", "svg": drawing}
        )
    if comparison is not None and comparison.rows:
        for measure, guides in (("cosine", (0.0,)), ("sign_conflict", (0.5,))):
            series = {
                f"{a}, {b}": [getattr(row, measure) for row in comparison.rows if (row.first, row.second) == (a, b)]
                for a, b in comparison.shared_layers
            }
            name = measure.replace("_", " ")
            drawing = plots.lines(series, ("layer that both have", name), guides)
            figures.append({"title": f"Interference before any merge: {name}, layer by layer.", "svg": drawing})
    return figures
