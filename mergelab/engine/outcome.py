"""The merged adapter of one recipe, with what it says of itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from mergelab.adapter import Adapter
from mergelab.engine.asking import Asked, Inputs
from mergelab.engine.extras import merge_extras
from mergelab.engine.job import Job, said_of
from mergelab.engine.provenance import Recipe, input_record, merged_metadata
from mergelab.engine.results import MergedLayer, store
from mergelab.engine.weights import weight_record
from mergelab.formats.dialects import common_dialect
from mergelab.methods.registry import name_of, options_record
from mergelab.ranks import budget_note, rank_record
from mergelab.report import LayerReport, Report, carried


def outcome_of(
    job: Job, asked: Asked, merged: Sequence[MergedLayer], inputs: Inputs, digest_of: Callable[[Path], str]
) -> Adapter:
    """Cut the layers to their final ranks, merge what is beside them, and write down how it was done.

    Args:
        job, asked: what was done, as it was checked and as it was given.
        merged: every layer.
        inputs: the adapters.
        digest_of: gives the sha256 of their files.
    """
    layers, rows = store(job, merged)
    with said_of(job.recipe):
        extras, notes = merge_extras(job)
    taking_part = [given.adapter for given in job.inputs if any(given.weights.values())]
    weights = asked.weights or [1.0] * len(job.inputs)
    records = [
        input_record(given.adapter, weight_record(weight, given.weights), digest_of)
        for weight, given in zip(weights, job.inputs)
    ]
    recipe = Recipe(
        method=asked.method if isinstance(asked.method, str) else name_of(job.strategy),
        options={**options_record(job.strategy), "rank": rank_record(job.rank), "seed": job.seed},
        inputs=records,
    )
    dialect, spelling = common_dialect(taking_part)
    said = (*_budget_notes(job, rows), *notes, *inputs.padded, *_reading_notes(job))
    return Adapter(
        layers=layers,
        extras=extras,
        architecture=next((a.architecture for a in inputs.adapters if a.architecture), None),
        metadata=merged_metadata(recipe, taking_part),
        source="merge of " + ", ".join(inputs.names),
        report=Report(tuple(inputs.names), tuple(rows), said),
        inputs=tuple(path for a in inputs.adapters for path in a.inputs),
        dialect=dialect,
        spelling=spelling,
    )


def _budget_notes(job: Job, rows: Sequence[LayerReport]) -> Iterator[str]:
    """Where the layers could not spend a budget."""
    taking_part = [row.rank for row in rows if any(norm is not None for norm in row.norms)]
    if note := budget_note(job.rank, taking_part):
        yield note


def _reading_notes(job: Job) -> Iterator[str]:
    """How the files of those that take part were understood."""
    for given in job.inputs:
        if any(given.weights.values()):
            yield from (f"{given.name}: {note}" for note in carried(given.adapter.notes))
