"""The findings as a table, plain for a terminal."""

from __future__ import annotations

import math

from mergelab.evaluation.analysis import Finding
from mergelab.evaluation.report.columns import Column, columns
from mergelab.evaluation.report.lookup import indexed, names_of
from mergelab.evaluation.report.numbers import WIDE, decimal, percent_with_interval, says_nothing
from mergelab.evaluation.result import Result
from mergelab.tables import as_text

NO_SCORE = "no score"
WIDTH = 120
"""Of the plain table; what does not fit is in the report."""
_FIRST = ("joint", "recovery", "preservation", "score", "suppression")
"""Quantities that stay while others go."""


def plain_table(result: Result) -> str:
    """Stack and merges, as text: the columns that matter most, as many as fit, in their order; a metric without any
    score has one that says so."""
    index, names, shown = indexed(result), names_of(result), columns(result)
    rows = [["", *(names[str(variant)] for variant in result.variants)]]
    cells = {
        number: [one.head, *(_plain_cell(one, one.finding(index, variant)) for variant in result.variants)]
        for number, one in enumerate(shown)
    }
    silent = [[name, *[NO_SCORE for _ in result.variants]] for name in result.silent]
    kept: list[int] = []
    for number in sorted(cells, key=lambda n: (_importance(shown[n]), n)):
        if _width(rows + [cells[n] for n in (*kept, number)] + silent) <= WIDTH:
            kept.append(number)
    table = as_text(list(zip(*rows, *(cells[number] for number in sorted(kept)), *silent)))
    left = [one.head for number, one in enumerate(shown) if number not in kept]
    return f"{table}\n(in the report: {', '.join(left)})" if left else table


def _importance(column: Column) -> int:
    place = _FIRST.index(column.quantity) if column.quantity in _FIRST else len(_FIRST)
    return place + 2 * (column.prompts == "alone")


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
