"""Each variant against each, by every score: tables of differences."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from mergelab.evaluation.analysis.contrasts import EACH_TWO, Contrast
from mergelab.evaluation.names import STACK
from mergelab.evaluation.report.forest import forest
from mergelab.evaluation.report.lookup import (
    blind_for,
    clusters_in_words,
    corrected_over,
    in_words,
    ranked,
    scores_of,
    told_apart,
)
from mergelab.evaluation.report.numbers import decimal, p_value, percent
from mergelab.evaluation.result import Result
from mergelab.evaluation.statistics import Interval

SAME = {"kind": "same", "text": "", "bounds": "", "title": ""}
MARKS = {"better": " ▲", "worse": " ▼"}
"""Of a difference whose sign is known: colour alone would not do."""


def matrices(result: Result, names: Mapping[str, str]) -> list[dict[str, Any]]:
    """One for each score, the primary one first: rows and columns from the best to the worst,
    of very many the best and the stack."""
    found, sees_nothing = [], blind_for(result)
    for score, contrasts in scores_of(result):
        order = ranked(contrasts)
        if len(order) < 2 or (score.metric, score.reference) in sees_nothing:
            continue
        every = len(order)
        order = [name for place, name in enumerate(order) if place < EACH_TWO or name == str(STACK)]
        pairs = {(one.first, one.second): one for each in contrasts for one in (each, each.turned())}
        tests = sum(one.corrected is not None for one in contrasts)
        digits = 2 if max(abs(one.interval.estimate) for one in contrasts) >= 0.1 else 3
        rows = [
            {
                "name": names.get(row, row),
                "full": row.partition(":")[2] or row,
                "cells": [_cell(pairs.get((row, column)), names, tests, digits) for column in order],
            }
            for row in order
        ]
        found.append(
            {
                "title": in_words(result, score),
                "primary": score == result.primary,
                "heads": [names.get(name, name) for name in order],
                "rows": rows,
                "units": clusters_in_words(result, max(one.clusters for one in contrasts)),
                "told": sum(told_apart(one, digits) for one in contrasts),
                "pairs": len(contrasts),
                "every": every,
            }
        )
    return found


def _cell(contrast: Contrast | None, names: Mapping[str, str], tests: int, digits: int) -> dict[str, str]:
    """Row minus column."""
    if contrast is None or not math.isfinite(contrast.interval.estimate):
        return SAME
    known = contrast.interval
    kind = "even" if not told_apart(contrast, digits) else "better" if known.estimate > 0 else "worse"
    if contrast.corrected is not None:
        p = f"{p_value(contrast.corrected)} ({corrected_over(tests)})"
    else:
        p = f"{p_value(contrast.p)}, exploratory"
    first, second = (names.get(name, name) for name in (contrast.first, contrast.second))
    low, high = decimal(known.low, digits=digits), decimal(known.high, digits=digits)
    return {
        "kind": kind,
        "text": decimal(known.estimate, "+", digits) + MARKS.get(kind, ""),
        "bounds": f"{low} to {high}" if math.isfinite(known.low) and low != high else "",
        "title": f"{first} minus {second}: {p}; better in {percent(contrast.wins)} of the images",
    }


def forests(result: Result, names: Mapping[str, str]) -> list[dict[str, str]]:
    """Of each merge, best first, the difference from the stack in every set of adapters, and over all of them; none of
    one that draws what the stack does."""
    contrasts = next((own for score, own in scores_of(result) if score == result.primary), [])
    found = []
    for name in ranked(contrasts):
        one = result.contrast(name, str(STACK))
        if one is not None and len(one.by_set) > 1 and any(each.estimate for each in one.by_set.values()):
            rows = _by_size(one.by_set)
            title = f"{names.get(name, name)} minus the stack"
            assert result.primary is not None
            found.append({"name": names.get(name, name),
                          "svg": forest(rows, one.interval, title, in_words(result, result.primary))})  # fmt: skip
    return found


def _by_size(sets: Mapping[str, Interval]) -> Sequence[tuple[str, Interval]]:
    return sorted(sets.items(), key=lambda item: -item[1].estimate)
