"""What the sentences, tables and plots ask a result."""

from __future__ import annotations

import math
from collections.abc import Sequence

from mergelab.evaluation.analysis import Finding
from mergelab.evaluation.metrics.metric import ComparesWith, Description
from mergelab.evaluation.names import VariantName
from mergelab.evaluation.quantities import RECOVERY, concept_reference
from mergelab.evaluation.result import Result


def metrics_with(result: Result, compares_with: ComparesWith) -> list[Description]:
    """The metrics that compare an image with words, with images, or with nothing."""
    return [metric for metric in result.metrics if metric.compares_with == compares_with]


def main_metric(result: Result) -> Description | None:
    """The metric of the primary score; None where no metric sees an adapter."""
    name = result.primary.metric if result.primary else None
    return next((metric for metric in result.metrics if metric.name == name), None)


def finding(result: Result, quantity: str, variant: str, metric: str, reference: str) -> Finding | None:
    """One finding, if it is there."""
    key = (quantity, variant, metric, reference)
    return next((f for f in result.findings if (f.quantity, f.variant, f.metric, f.reference) == key), None)


def first_finding(
    result: Result, quantity: str, variant: str, metrics: Sequence[Description], reference: str
) -> Finding | None:
    """The finding by the first of these metrics that has one with an estimate."""
    rows = (finding(result, quantity, variant, metric.name, reference) for metric in metrics)
    return next((row for row in rows if row and math.isfinite(row.interval.estimate)), None)


def recoveries(result: Result, variant: str, metric: Description) -> dict[str, Finding]:
    """Adapter -> its recovery in a variant, for the adapters with a concept."""
    rows = {
        role: first_finding(result, RECOVERY.name, variant, [metric], concept_reference(metric, role))
        for role in result.roles
    }
    return {name: row for name, row in rows.items() if row is not None}


def variants_of(result: Result) -> list[VariantName]:
    """Stack and merges that have scores, in order."""
    return result.variants
