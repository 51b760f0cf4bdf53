"""What the sentences, tables and plots ask a result."""

from __future__ import annotations

import math
from collections.abc import Sequence

from mergelab.evaluation.analysis import Finding
from mergelab.evaluation.metrics.metric import ComparesWith, Description
from mergelab.evaluation.names import VariantName, single
from mergelab.evaluation.quantities import RECOVERY
from mergelab.evaluation.result import Result


def metrics_with(result: Result, compares_with: ComparesWith) -> list[Description]:
    """The metrics that compare an image with words, with images, or with nothing."""
    return [metric for metric in result.metrics if metric.compares_with == compares_with]


def main_metric(result: Result) -> Description | None:
    """The metric of concepts that sees most of the adapters; of equals the sharper. None where none sees any."""
    seen = {
        metric: sum(known.metric == metric.name and not known.blind for known in result.anchors)
        for metric in metrics_with(result, "words")
    }
    best = max(seen, key=lambda metric: seen[metric], default=None)
    return best if best is not None and seen[best] else None


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
    names = [lora.name for lora in result.config.loras]
    rows = {name: first_finding(result, RECOVERY.name, variant, [metric], single(name)) for name in names}
    return {name: row for name, row in rows.items() if row is not None}


def variants_of(result: Result) -> list[VariantName]:
    """Stack and merges that have scores, in order."""
    names = (VariantName.parse(name) for name in result.scores["variant"].unique())
    return [name for name in names if name and name.kind in ("stack", "merge")]
