"""summary.json: the findings with everything that they depend on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from importlib.metadata import version
from typing import Any

from mergelab.evaluation.grid import Grid
from mergelab.evaluation.metrics.registry import Profile
from mergelab.evaluation.result import Result
from mergelab.publishing.recipe import package_version

SUMMARY = "summary.json"
"""In the run folder."""


def summary_of(
    result: Result,
    grid: Grid,
    metrics: Iterable[Profile],
    model: str,
    seconds: Mapping[str, float],
) -> dict[str, Any]:
    """What `summary.json` holds.

    Args:
        result: what was found.
        grid: what was drawn and scored.
        metrics: what it was scored by.
        model: the fingerprint of the pipeline.
        seconds: spent on what.
    """
    packages = ("torch", "diffusers", "transformers", "peft", "open_clip_torch", "lpips", "numpy")
    descriptions = {description.name: description.to_json() for description in result.metrics}
    return {
        "verdict": result.verdict,
        "findings": [{**vars(f), "interval": vars(f.interval)} for f in result.findings],
        "contrasts": [one.to_json() for one in result.contrasts],
        "primary": vars(result.primary) if result.primary else None,
        "design": vars(result.design),
        "choices": [vars(one) for one in result.choices],
        "anchors": [vars(known) for known in result.anchors],
        "failures": result.failures,
        "notes": list(dict.fromkeys(grid.notes)),
        "sets": [
            {"name": one.name, "adapters": {role: lora.name for role, lora in one.adapters.items()}}
            for one in result.sets
        ],
        "triggers": {
            lora.name: one.triggers[role] for one in result.sets for role, lora in one.adapters.items()
        },
        "metrics": {name: descriptions[name] | dict(metric.settings)
                    for metric in metrics for name in [metric.description.name]},
        "costs": _costs(grid),
        "model": model,
        "seeds": result.config.seeds,
        "seconds": dict(seconds),
        "versions": {"mergelab": package_version()} | {name: version(name) for name in packages},
    }  # fmt: skip


def _costs(grid: Grid) -> dict[str, Any]:
    """Variant -> what it cost; set -> variant -> what it cost, where there are several sets."""
    each = {one.name: {str(variant.name): variant.cost for variant in grid.of(one)} for one in grid.sets}
    return each if len(each) > 1 else next(iter(each.values()))
