"""What a run shows of each merge to those who were not there: numbers as the report has them, a picture a prompt.

It stands in summary.json under "exhibits", and whoever publishes a merge needs to know nothing else of the run folder.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from mergelab.evaluation.report.cells import heads, rows_of
from mergelab.evaluation.report.columns import columns
from mergelab.evaluation.report.labels import CHOSEN, parts_of
from mergelab.evaluation.result import Result
from mergelab.evaluation.store import Store
from mergelab.evaluation.variants import Variant
from mergelab.tables import counted


def exhibits(result: Result, variants: Sequence[Variant]) -> dict[str, Any]:
    """JSON-ready: the table, its columns and rows, and for every merge its row, its file and its pictures.

    Columns are those of the report, without costs; rows are all variants: floor and ceiling stand beside a merge. Where
    there are several sets of adapters, rows are over all of them, and the merges of each set have their files.
    """
    shown = columns(result)
    rows = rows_of(result, shown, variants, base=True)
    store = Store(result.folder)
    merges = [one for one in variants if one.name.kind == "merge" and one.acting.combination is None]
    known = {row["name"] for row in rows}
    return {
        "pipeline": result.config.pipeline,
        "generation": result.config.generation.keywords(),
        "design": _design(result),
        "columns": [{"head": head["head"], "help": head["help"]} for head in heads(shown)],
        "rows": [{"name": row["name"], "cells": row["cells"]} for row in rows],
        "merges": [
            {
                "row": row,
                "file": _file(variant, result.folder),
                "pictures": _pictures(result, variant, store),
            }
            for variant in merges
            if (row := _row_of(result, variant, known)) is not None
        ],
    }


def _design(result: Result) -> str:
    """Prompts and seeds, in words."""
    sets = f"{counted(len(result.sets), 'set')} of adapters, " if len(result.sets) > 1 else ""
    return f"{sets}{counted(len(result.config.prompts), 'prompt')}, {counted(len(result.config.seeds), 'seed')} each"


def _row_of(result: Result, variant: Variant, known: Collection[str]) -> str | None:
    """The row that speaks of a merge; None where it was not chosen, and nothing is said of it."""
    label = variant.name.label
    if label in known:
        return label
    if not any((one.label, one.set) == (label, variant.set) for one in result.choices):
        return None
    method, options = parts_of(label)
    for row in known:
        other, shared = parts_of(row)
        if row.endswith(CHOSEN) and other == method and shared.items() - {("chosen", "by set")} <= options.items():
            return row
    return None


def _file(variant: Variant, folder: Path) -> str:
    """Of the merge, from the run folder."""
    (path,) = variant.acting.merged.values()
    return path.relative_to(folder).as_posix()


def _pictures(result: Result, variant: Variant, store: Store) -> list[dict[str, Any]]:
    """One for each prompt, of the first seed that was drawn."""
    found = []
    for prompt in dict.fromkeys(prompt for prompt, _ in variant.requests):
        paths = ((seed, store.image_path(variant.requests[prompt, seed])) for seed in result.config.seeds)
        for seed, path in [(seed, path) for seed, path in paths if path.exists()][:1]:
            found.append({"prompt": prompt, "seed": seed, "image": f"{store.images.name}/{path.name}"})
    return found
