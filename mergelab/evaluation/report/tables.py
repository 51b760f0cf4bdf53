"""The findings as a table: plain for a terminal, with intervals and costs for the page."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from mergelab.evaluation.analysis import Finding
from mergelab.evaluation.metrics.metric import Description
from mergelab.evaluation.names import display_name, single
from mergelab.evaluation.quantities import JOINT, QUANTITIES, Quantity, concept_reference
from mergelab.evaluation.report.lookup import first_finding, main_metric, variants_of
from mergelab.evaluation.report.numbers import decimal, percent, percent_with_interval
from mergelab.evaluation.result import Result
from mergelab.evaluation.statistics import Interval
from mergelab.evaluation.variants import Variant
from mergelab.tables import as_text

NO_SCORE = "no score"


@dataclass(frozen=True)
class Column:
    """One column: a quantity of one adapter or of none, by the first of some metrics that has it."""

    quantity: Quantity
    metrics: list[Description]
    reference: str
    head: str
    help: str

    def finding(self, result: Result, variant: object) -> Finding | None:
        """What stands in the row of a variant."""
        return first_finding(result, self.quantity.name, str(variant), self.metrics, self.reference)


def columns(result: Result) -> list[Column]:
    """The quantities that tables show, in the order of their own table."""
    adapters = result.roles
    return [
        _column(quantity, metrics, adapter)
        for quantity in QUANTITIES
        if quantity.shown
        for metrics in _shown_by(result, quantity)
        for adapter in (adapters if quantity.of_adapters else [""])
    ]


def _shown_by(result: Result, quantity: Quantity) -> list[list[Description]]:
    """For each of its columns the metrics that may fill it."""
    asked = [m for m in result.metrics if m.compares_with in quantity.asks and m.name not in result.silent]
    main = main_metric(result)
    if quantity.shown == "share" or quantity.about in ("concepts", "joint"):
        return [[main] if main else []]  # what is blind says nothing of a share
    if quantity.shown == "change":
        return [[main, *asked] if main else asked]  # the sharpest that is there
    if quantity.about == "labels":
        bare = {row.metric for row in result.findings if row.quantity == quantity.name and not row.reference}
        return [[metric] for metric in asked if metric.name in bare]
    return [[metric] for metric in asked]


def _column(quantity: Quantity, metrics: list[Description], adapter: str) -> Column:
    higher = all(metric.higher_is_better for metric in metrics)
    words = {
        "metric": metrics[0].name if metrics else "",
        "adapter": adapter,
        "way": "likeness to" if higher else "distance from",
        "direction": "" if higher else "; lower is better",
    }
    head, help = (text.format_map(words) for text in (quantity.head, quantity.help))
    reference = ""
    if adapter:
        main = metrics[0] if metrics else None
        reference = concept_reference(main, adapter) if main and quantity.about == "concepts" else single(adapter)
    elif quantity.about == "joint":
        reference = JOINT
    return Column(quantity, metrics, reference, head, help)


def plain_table(result: Result) -> str:
    """Every column for stack and merges, as text; a metric without any score has one that says so."""
    shown, silent = columns(result), list(result.silent)
    rows = [["", *(column.head for column in shown), *silent]]
    for variant in variants_of(result):
        cells = [_plain_cell(column, column.finding(result, variant)) for column in shown]
        rows.append([variant.display, *cells, *[NO_SCORE for _ in silent]])
    return as_text(rows)


def _plain_cell(column: Column, row: Finding | None) -> str:
    if row is None:
        return "–"
    if column.quantity.shown == "share":
        return percent_with_interval(row.interval)
    return decimal(row.interval.estimate, "+" if column.quantity.shown == "change" else "")


# What follows are the tables of the page: cells of what is shown, its bounds, and what is sorted by.

Cell = dict[str, Any]
NOTHING: Cell = {"text": "–", "bounds": "", "value": ""}
COSTS: tuple[tuple[str, str, str, Callable[[float], str]], ...] = (
    ("retained energy", "energy", "share of the merge's energy (its squared singular values) that its rank holds",
     "{:.1%}".format),
    ("bytes", "MB", "size of the file", lambda size: f"{size / 1e6:.2f}"),
    ("seconds to merge", "seconds to merge", "what the merge took; of several that were made together, an equal share",
     "{:.2f}".format),
    ("seconds per image", "seconds an image",
     "its share of a batch; adapters are fused into the weights, unless the configuration or a combination at run time "
     "keeps them beside", "{:.2f}".format),
)  # fmt: skip
"""What a variant costs: its key, head and explanation of the column, how it is written."""


def heads(result: Result, shown: Sequence[Column]) -> list[dict[str, str]]:
    """Head and explanation of each column of the page."""
    return [
        *({"head": column.head, "help": column.help} for column in shown),
        *({"head": name, "help": why} for name, why in result.silent.items()),
        *({"head": head, "help": help} for _, head, help, _ in COSTS),
    ]


def row_of(result: Result, shown: Sequence[Column], variant: Variant) -> dict[str, Any]:
    """One variant's row of the page."""
    cells = []
    for column in shown:
        row = column.finding(result, variant.name)
        cells.append(interval_cell(row.interval, percent if column.quantity.shown == "share" else decimal)
                     if row else NOTHING)  # fmt: skip
    cells += [NOTHING | {"text": NO_SCORE} for _ in result.silent]
    for key, _, _, form in COSTS:
        cost = variant.cost.get(key)
        cells.append(NOTHING if cost is None else {"text": form(cost), "bounds": "", "value": cost})
    return {"name": variant.name.display, "kind": variant.name.kind, "cells": cells}


def interval_cell(interval: Interval, form: Callable[[float], str] = decimal) -> Cell:
    """An estimate with its bounds."""
    if not math.isfinite(interval.estimate):
        return NOTHING
    bounds = f"{form(interval.low)} to {form(interval.high)}" if math.isfinite(interval.low) else ""
    return {"text": form(interval.estimate), "bounds": bounds, "value": interval.estimate}


def finding_row(row: Finding) -> dict[str, Any]:
    """One line of the table of all findings."""
    return {
        "quantity": row.quantity,
        "variant": display_name(row.variant),
        "metric": row.metric,
        "reference": display_name(row.reference) if row.reference else "its prompt",
        "cell": interval_cell(row.interval),
        "p": "" if row.p is None else f"{row.p:.3f}",
    }
