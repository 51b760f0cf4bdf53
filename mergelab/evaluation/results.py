"""results.json: the findings in the layout of lm-evaluation-harness, which leaderboards and loggers read.

Its tasks are the variants, and a key is `<quantity>.<metric>,<filter>`, where the filter says what it is about and on
which prompts ("none" for neither):

    results       task -> {alias, "recovery.judge,single-ghost": 0.83, "recovery.judge_stderr,single-ghost": 0.04}
    intervals     task -> {"recovery.judge,single-ghost": [0.75, 0.91]}, of 95 %
    configs, versions, n-shot, n-samples, higher_is_better   of each task
    config        the configuration, as it may be passed on, in terms of the harness (model, model_args, ...)
    date, git_hash, model_name, transformers_version, ...    as there

A standard error is half the interval's width over 1.96: plus and minus 1.96 of it are as wide as the interval, which
rests on few prompts and is therefore Student's, or of a bounded mean. "N/A" where there is no interval.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import Any

from mergelab.evaluation.names import apart, display_name
from mergelab.evaluation.result import Result
from mergelab.evaluation.store import file_name
from mergelab.formats.fetching import public

_WIDTH = 2 * 1.959964
_SHARES = ("recovery", "image recovery", "harmonic mean", "suppression")
_CHANGES = ("leakage", "preservation")
"""Of a score between words no end is better: it should not change."""


def results_of(result: Result, summary: Mapping[str, Any]) -> dict[str, Any]:
    """What `results.json` holds.

    Args:
        result: what was found.
        summary: what `summary.json` holds.
    """
    config, versions, images = public(result.config.model_dump()), summary["versions"], _images(result)
    taken: set[str] = set()
    variants = dict.fromkeys(str(row["variant"]) for row in summary["findings"])
    tasks = {name: apart(file_name(name), taken) for name in variants}
    results: dict[str, dict[str, Any]] = {task: {"alias": display_name(name)} for name, task in tasks.items()}
    intervals: dict[str, dict[str, list[float]]] = {task: {} for task in results}
    better: dict[str, dict[str, bool]] = {task: {} for task in results}
    for row in summary["findings"]:
        task, what = tasks[str(row["variant"])], file_name(f"{row['quantity']}.{row['metric']}")
        about = ".".join(file_name(part) for part in (row["reference"], row.get("prompts")) if part) or "none"
        known = row["interval"]
        results[task][f"{what},{about}"] = known["estimate"]
        results[task][f"{what}_stderr,{about}"] = _error(known["low"], known["high"])
        intervals[task][f"{what},{about}"] = [known["low"], known["high"]]
        if (way := _is_higher_better(result, row["quantity"], row["metric"])) is not None:
            better[task][what] = way
    total = max(images.values(), default=0)
    return {
        "results": results,
        "intervals": intervals,
        "group_subtasks": {task: [] for task in results},
        "configs": {task: {"task": task, "variant": name, "num_fewshot": 0} for name, task in tasks.items()},
        "versions": dict.fromkeys(results, versions["mergelab"]),
        "n-shot": dict.fromkeys(results, 0),
        "higher_is_better": better,
        "n-samples": {task: {"original": total, "effective": images.get(name, 0)} for name, task in tasks.items()},
        "config": {
            "model": "diffusers",
            "model_args": f"pretrained={config['pipeline']}",
            "batch_size": result.config.generation.batch,
            "device": result.config.device,
            "limit": None,
            "bootstrap_iters": 0,
            "evaluation": config,
        },
        "git_hash": None,
        "date": time.time(),
        "transformers_version": versions.get("transformers"),
        "mergelab_version": versions["mergelab"],
        "task_hashes": {},
        "model_source": "diffusers",
        "model_name": config["pipeline"],
        "model_name_sanitized": file_name(config["pipeline"].replace("/", "__")),
        "total_evaluation_time_seconds": str(sum(summary["seconds"].values())),
    }


def _images(result: Result) -> dict[str, int]:
    """Variant -> how many of its images are scored."""
    units = result.scores.drop_duplicates(["set", "variant", "prompt", "seed"])
    return {str(name): int(count) for name, count in units["variant"].value_counts().items()}


def _error(low: float | None, high: float | None) -> float | str:
    width = math.nan if low is None or high is None else high - low
    return width / _WIDTH if math.isfinite(width) else "N/A"


def _is_higher_better(result: Result, quantity: str, metric: str) -> bool | None:
    known = next((known for known in result.metrics if known.name == metric), None)
    if quantity in _SHARES:
        return True
    if known is None or (quantity in _CHANGES and known.compares_with == "words"):
        return None
    return known.higher_is_better
