"""What a run shows of each merge to those who were not there: numbers as the report has them, a picture a prompt.

It stands in summary.json under "exhibits", and whoever publishes a merge needs to know nothing else of the run folder.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mergelab.evaluation.report.tables import columns, heads, row_of
from mergelab.evaluation.result import Result
from mergelab.evaluation.store import Store
from mergelab.evaluation.variants import Variant
from mergelab.tables import counted


def exhibits(result: Result, variants: Sequence[Variant]) -> dict[str, Any]:
    """JSON-ready: the table, its columns and rows, and for every merge its row, its file and its pictures.

    Columns are those of the report, without costs; rows are all variants: floor and ceiling stand beside a merge.
    """
    shown = [column for column in columns(result) if column.metrics]
    rows = [row_of(result, shown, variant) for variant in variants]
    store = Store(result.folder)
    return {
        "pipeline": result.config.pipeline,
        "generation": result.config.generation.keywords(),
        "design": f"{counted(len(result.config.prompts), 'prompt')}, {counted(len(result.config.seeds), 'seed')} each",
        "columns": heads(result, shown)[: len(shown)],
        "rows": [{"name": row["name"], "cells": row["cells"][: len(shown)]} for row in rows],
        "merges": [
            {
                "row": variant.name.display,
                "file": _file(variant, result.folder),
                "pictures": _pictures(result, variant, store),
            }
            for variant in variants
            if variant.name.kind == "merge" and variant.combination is None
        ],
    }


def _file(variant: Variant, folder: Path) -> str:
    """Of the merge, from the run folder."""
    (path,) = (path for path in variant.adapters.values() if isinstance(path, Path))
    return path.relative_to(folder).as_posix()


def _pictures(result: Result, variant: Variant, store: Store) -> list[dict[str, Any]]:
    """One for each prompt, of the first seed that was drawn."""
    found = []
    for prompt in dict.fromkeys(prompt for prompt, _ in variant.requests):
        paths = ((seed, store.image_path(variant.requests[prompt, seed])) for seed in result.config.seeds)
        for seed, path in [(seed, path) for seed, path in paths if path.exists()][:1]:
            found.append({"prompt": prompt, "seed": seed, "image": f"{store.images.name}/{path.name}"})
    return found
