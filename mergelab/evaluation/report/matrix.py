"""Each variant against each, by every score: tables of differences."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from mergelab.evaluation.contrasts import Contrast
from mergelab.evaluation.names import STACK
from mergelab.evaluation.report.forest import forest
from mergelab.evaluation.report.lookup import clusters_in_words, in_words, ranked, scores_of, told_apart
from mergelab.evaluation.report.numbers import decimal, digits_for, p_value, percent
from mergelab.evaluation.result import Result
from mergelab.evaluation.statistics import Interval
from mergelab.tables import counted

SAME = {"kind": "same", "text": "", "bounds": "", "title": ""}
BETTER, WORSE = "▲", "▼"


def matrices(result: Result, names: Mapping[str, str]) -> list[dict[str, Any]]:
    """One for each score, the primary one first: rows and columns from the best to the worst."""
    found = []
    for score, contrasts in scores_of(result):
        order = ranked(contrasts)
        if len(order) > 1:
            pairs = {(one.first, one.second): one for each in contrasts for one in (each, each.turned())}
            tests = sum(one.corrected is not None for one in contrasts)
            rows = [{"name": names.get(row, row), "full": row.partition(":")[2] or row,
                     "cells": [_cell(pairs.get((row, column)), names, tests) for column in order]} for row in order]  # fmt: skip
            found.append({
                "title": in_words(result, score),
                "primary": score == result.primary,
                "heads": [names.get(name, name) for name in order],
                "rows": rows,
                "units": clusters_in_words(result, max(one.clusters for one in contrasts)),
                "told": sum(map(told_apart, contrasts)),
                "pairs": len(contrasts),
            })  # fmt: skip
    return found


def _cell(contrast: Contrast | None, names: Mapping[str, str], tests: int) -> dict[str, str]:
    """Row minus column."""
    if contrast is None or not math.isfinite(contrast.interval.estimate):
        return SAME
    known, digits = contrast.interval, digits_for(contrast.interval)
    apart = told_apart(contrast)
    kind = "even" if not apart else "better" if known.estimate > 0 else "worse"
    if contrast.corrected is not None:
        p = f"{p_value(contrast.corrected)} (Holm over {counted(tests, 'test')})"
    else:
        p = f"{p_value(contrast.p)}, exploratory"
    first, second = (names.get(name, name) for name in (contrast.first, contrast.second))
    bounded = math.isfinite(known.low) and known.low != known.high
    return {
        "kind": kind,
        "text": f"{decimal(known.estimate, '+', digits)}{ {'better': f' {BETTER}', 'worse': f' {WORSE}'}.get(kind, '') }",
        "bounds": f"{decimal(known.low, digits=digits)} to {decimal(known.high, digits=digits)}" if bounded else "",
        "title": f"{first} minus {second}: {p}; better in {percent(contrast.wins)} of the images",
    }


def forests(result: Result, names: Mapping[str, str]) -> list[dict[str, str]]:
    """Of each merge, best first, the difference from the stack in every set of adapters, and over all of them."""
    contrasts = next((own for score, own in scores_of(result) if score == result.primary), [])
    found = []
    for name in ranked(contrasts):
        one = result.contrast(name, str(STACK))
        if one is not None and len(one.by_set) > 1:
            rows = _by_size(one.by_set)
            title = f"{names.get(name, name)} minus the stack"
            assert result.primary is not None
            found.append({"name": names.get(name, name),
                          "svg": forest(rows, one.interval, title, in_words(result, result.primary))})  # fmt: skip
    return found


def _by_size(sets: Mapping[str, Interval]) -> Sequence[tuple[str, Interval]]:
    return sorted(sets.items(), key=lambda item: -item[1].estimate)
