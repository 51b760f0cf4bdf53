"""The findings as rows of cells for the page: what is shown, its bounds, and what is sorted by."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from statistics import fmean
from typing import Any

from mergelab.evaluation.analysis.findings import Finding
from mergelab.evaluation.names import VariantName, display_name, renamed
from mergelab.evaluation.report.columns import Column
from mergelab.evaluation.report.labels import parts_of
from mergelab.evaluation.report.lookup import indexed, names_of, shown_variants
from mergelab.evaluation.report.numbers import WIDE, decimal, percent, says_nothing
from mergelab.evaluation.report.tables import NO_SCORE
from mergelab.evaluation.result import Result
from mergelab.evaluation.statistics import Interval
from mergelab.evaluation.variants import Variant

Cell = dict[str, Any]
NOTHING: Cell = {"text": "–", "bounds": "", "value": "", "title": ""}
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


def heads(shown: Sequence[Column]) -> list[dict[str, str]]:
    """Head and explanation of each column, with its group."""
    return [{"head": one.head, "short": one.short, "help": one.help, "group": one.group} for one in shown]


def all_heads(result: Result, shown: Sequence[Column], rows: Sequence[dict[str, Any]]) -> list[dict[str, str]]:
    """And of the metrics without any score, and of what a row cost."""
    silent = [{"head": name, "short": name, "help": why, "group": NO_SCORE} for name, why in result.silent.items()]
    costs = [{"head": head, "short": head, "help": help, "group": "cost"} for _, head, help, _ in _costs_of(rows)]
    return [*heads(shown), *silent, *costs]


def _costs_of(rows: Sequence[dict[str, Any]]) -> list[tuple[str, str, str, Callable[[float], str]]]:
    """Those that some row has."""
    return [cost for cost in COSTS if any(cost[0] in row["costs"] for row in rows)]


def grouped(heads: Sequence[dict[str, str]]) -> list[dict[str, Any]]:
    """The groups of the heads, each with how many columns it spans."""
    groups: list[dict[str, Any]] = []
    for head in heads:
        if groups and groups[-1]["name"] == head["group"]:
            groups[-1]["span"] += 1
        else:
            groups.append({"name": head["group"], "span": 1})
    return groups


def rows_of(
    result: Result, shown: Sequence[Column], variants: Sequence[Variant], base: bool = False
) -> list[dict[str, Any]]:
    """A row for each variant: over all sets of adapters, by the roles in them.

    Args:
        result: what was found.
        shown: the columns.
        variants: of every set, for what they cost.
        base: with a row of the base model.
    """
    index, costs, called = indexed(result), _costs(result, variants), names_of(result)
    names = dict.fromkeys([*(str(name) for name in shown_variants(result)), *([] if result.config.select else costs)])
    order = ("base", "single", "stack", "merge")
    known = sorted(
        (VariantName.parse(text) for text in names), key=lambda name: order.index(name.kind if name else "base")
    )
    if base:
        known = [VariantName("base"), *known]
    rows = []
    for name in dict.fromkeys(one for one in known if one is not None and (base or one.kind != "base")):
        short = called.get(str(name), name.display)
        method, options = parts_of(short, result.roles) if name.kind == "merge" else (name.display, {})
        cells = [_cell(column, column.finding(index, name)) for column in shown]
        said = [f"{key} {value}" for key, value in options.items()]
        rows.append({"name": name.display, "method": method, "options": said, "kind": name.kind, "cells": cells,
                     "costs": costs.get(str(name), {})})  # fmt: skip
    return rows


def with_costs(result: Result, rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows with the cells of `all_heads`."""
    silent = [NOTHING | {"text": NO_SCORE} for _ in result.silent]
    return [
        row
        | {
            "cells": [
                *row["cells"],
                *silent,
                *(
                    NOTHING | {"text": form(row["costs"][key]), "value": row["costs"][key]}
                    if key in row["costs"]
                    else NOTHING
                    for key, _, _, form in _costs_of(rows)
                ),
            ]
        }
        for row in rows
    ]


def _costs(result: Result, variants: Sequence[Variant]) -> dict[str, dict[str, float]]:
    """Variant, under its role -> what it costs, the mean over the sets."""
    roles = {one.name: one.names for one in result.sets}
    found: dict[str, dict[str, list[float]]] = {}
    for variant in variants:
        if variant.set in roles:
            own = found.setdefault(renamed(str(variant.name), roles[variant.set]), {})
            for key, value in variant.cost.items():
                own.setdefault(key, []).append(value)
    return {name: {key: fmean(values) for key, values in own.items()} for name, own in found.items()}


def _cell(column: Column, row: Finding | None) -> Cell:
    if row is not None:
        form = percent if column.form == "share" else _signed if column.form == "change" else decimal
        return interval_cell(row.interval, form, column.span)
    return NOTHING


def _signed(value: float) -> str:
    return decimal(value, "+")


def interval_cell(interval: Interval, form: Callable[[float], str] = decimal, span: float = math.inf) -> Cell:
    """An estimate with its bounds, unless they are the estimate or say nothing."""
    if not math.isfinite(interval.estimate):
        return NOTHING
    low, high = form(interval.low), form(interval.high)
    bounds = f"{low} to {high}" if math.isfinite(interval.low) and low != high else ""
    wide = bool(bounds) and says_nothing(interval, span)
    return {"text": form(interval.estimate), "bounds": WIDE if wide else bounds, "value": interval.estimate,
            "title": bounds if wide else ""}  # fmt: skip


def finding_row(row: Finding, titles: dict[str, str]) -> dict[str, Any]:
    """One line of the table of all findings."""
    prompts = {"together": "with another", "not calling": "not called", "none": "none called"}.get(
        row.prompts, row.prompts
    )
    return {
        "quantity": row.quantity,
        "variant": display_name(row.variant),
        "metric": titles.get(row.metric, row.metric),
        "reference": display_name(row.reference) if row.reference else "its prompt",
        "prompts": prompts,
        "cell": interval_cell(row.interval),
        "p": "" if row.p is None else f"{row.p:.3f}",
    }
