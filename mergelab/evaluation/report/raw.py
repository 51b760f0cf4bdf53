"""The primary score itself, where no share of an adapter can be made of it: what the differences are between."""

from __future__ import annotations

from typing import cast

from mergelab.evaluation.analysis.findings import Finding
from mergelab.evaluation.analysis.quantities import RECOVERY, units_of
from mergelab.evaluation.analysis.scores import Scores
from mergelab.evaluation.names import label_of
from mergelab.evaluation.result import Result
from mergelab.evaluation.sets import Prompts, counts
from mergelab.evaluation.statistics import mean_interval


def raw_primary(result: Result) -> list[Finding]:
    """Means of the primary score where it is of one adapter and on its prompts no recovery can be told; else nothing.

    Adapter alone and base model are told apart over all prompts that call it, and may not be over these.
    """
    one = result.primary
    if one is None or one.quantity != RECOVERY.contrast:
        return []
    own = (RECOVERY.name, one.metric, one.reference, one.prompts)
    if any((f.quantity, f.metric, f.reference, f.prompts) == own for f in result.findings):
        return []
    scores = Scores(result.scores, result.sets)
    metric = next(metric for metric in result.metrics if metric.name == one.metric)
    keys = scores.keys(counts(cast(Prompts, one.prompts), label_of(one.reference)))
    found = []
    for variant in (
        "base",
        *dict.fromkeys(finding.variant for finding in result.findings if finding.variant != "base"),
    ):
        table = scores.aligned([(variant, one.metric, one.reference)], keys)
        if len(table):
            values = table.iloc[:, 0].to_numpy(float)
            interval = mean_interval(values, units_of(table), scores.range(metric, one.reference))
            found.append(Finding(one.quantity, variant, one.metric, one.reference, one.prompts, interval))
    return found
