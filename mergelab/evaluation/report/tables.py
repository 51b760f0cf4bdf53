"""The findings as a table, plain for a terminal."""

from __future__ import annotations

import math
from collections.abc import Sequence

from mergelab.evaluation.analysis.contrasts import Primary
from mergelab.evaluation.analysis.findings import Finding
from mergelab.evaluation.analysis.quantities import RECOVERY
from mergelab.evaluation.names import BASE
from mergelab.evaluation.report.columns import Column, columns
from mergelab.evaluation.report.lookup import indexed, names_of, shown_variants
from mergelab.evaluation.report.numbers import WIDE, decimal, percent_with_interval, says_nothing
from mergelab.evaluation.result import Result
from mergelab.tables import as_text

NO_SCORE = "no score"
WIDTH = 120
"""Of the plain table; what does not fit is in the report."""
_FIRST = ("joint", "recovery", "preservation", "score", "suppression")
"""Quantities that stay while others go."""


def plain_table(result: Result) -> str:
    """Stack and merges, or what there is where there are none, as text: the primary score and the columns that matter
    most, as many as fit, in their order; a metric without any score has one that says so."""
    index, names, shown = indexed(result), names_of(result), columns(result)
    if not shown and not result.silent:
        return ""
    variants = result.variants or [BASE, *shown_variants(result)]
    rows = [["", *(names[str(variant)] for variant in variants)]]
    cells = {
        number: [one.head, *(_plain_cell(one, one.finding(index, variant)) for variant in variants)]
        for number, one in enumerate(shown)
    }
    silent = [[name, *[NO_SCORE for _ in variants]] for name in result.silent]
    kept = [number for number, one in enumerate(shown) if _is_primary(one, result.primary)]
    for alike in _by_importance(shown):
        alike = [number for number in alike if number not in kept]
        if _width(rows + [cells[number] for number in (*kept, *alike)] + silent) <= WIDTH:
            kept += alike
    table = as_text(list(zip(*rows, *(cells[number] for number in sorted(kept)), *silent)))
    left = [one.head for number, one in enumerate(shown) if number not in kept]
    return f"{table}\n(in the report: {', '.join(left)})" if left else table


def _is_primary(column: Column, primary: Primary | None) -> bool:
    """Whether it shows the primary score, or what share of an adapter that score says is there."""
    if primary is None:
        return False
    quantities = {primary.quantity, RECOVERY.name} if primary.quantity == RECOVERY.contrast else {primary.quantity}
    own = (column.reference, column.prompts) == (primary.reference, primary.prompts)
    return own and column.quantity in quantities


def _by_importance(shown: Sequence[Column]) -> list[list[int]]:
    """Places of the columns, those that stay first; columns that differ in the adapter alone stay or go together."""
    groups: dict[tuple[int, str, str, str], list[int]] = {}
    for number, one in enumerate(shown):
        place = _FIRST.index(one.quantity) if one.quantity in _FIRST else len(_FIRST)
        metric = one.metrics[0].name if one.metrics else ""
        key = (place + 2 * (one.prompts == "alone"), one.quantity, one.prompts, metric)
        groups.setdefault(key, []).append(number)
    return [groups[key] for key in sorted(groups, key=lambda key: key[0])]


def _width(parts: list[list[str]]) -> int:
    return sum(max(map(len, column)) + 2 for column in parts) - 2


def _plain_cell(column: Column, row: Finding | None) -> str:
    if row is None:
        return "–"
    known = row.interval
    if column.form == "share":
        return percent_with_interval(known)
    if column.form == "change" or column.quantity != "joint":
        return decimal(known.estimate, "+" if column.form == "change" else "")
    if not math.isfinite(known.low):
        return decimal(known.estimate, digits=2)
    low, high = decimal(known.low, digits=2), decimal(known.high, digits=2)
    bounds = WIDE if says_nothing(known, column.span) else f"{low}, {high}"
    return decimal(known.estimate, digits=2) + (f" [{bounds}]" if low != high else "")
