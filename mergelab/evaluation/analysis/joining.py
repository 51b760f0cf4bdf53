"""Scores of several concepts as one: is all there that the prompt calls?"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from mergelab.evaluation.analysis.quantities import HARMONIC, JOINT, concept_reference
from mergelab.evaluation.analysis.ranges import MetricRange
from mergelab.evaluation.analysis.scores import Scores
from mergelab.evaluation.metrics.metric import Description


def join_concepts(
    scores: Scores,
    metrics: Sequence[Description],
    variants: Sequence[str],
    roles: Sequence[str],
    ranges: Sequence[MetricRange],
) -> None:
    """Adds, for every image that calls two concepts or more, the worst of their scores, and their harmonic mean.

    For the worst, scores that are no shares are first put on each adapter's own scale, 0 as the base model and 1 as the
    adapter alone, as means over the run: cosines of two concepts cannot be compared. A concept that the metric is blind
    for is left out; an image that lacks a score of one that it calls has neither.
    """
    for metric in metrics:
        known = {one.reference: one for one in ranges if one.metric == metric.name and not one.blind}
        seen = {role: known[about] for role in roles if (about := concept_reference(metric, role)) in known}
        if len(seen) < 2:
            continue
        floor, span = (np.array([end(one) for one in seen.values()]) for end in (_floor, _span))
        for variant in variants:
            table = pd.DataFrame({r: scores.column((variant, metric.name, concept_reference(metric, r))) for r in seen})
            called = [[role in scores.calling[one, prompt] for role in seen] for one, prompt, _ in table.index]
            asked = np.array(called, dtype=bool).reshape(len(table), len(seen))
            values = np.where(asked, table.to_numpy(float), np.nan)
            rows = (asked.sum(1) > 1) & (np.isfinite(values) == asked).all(1)
            if not rows.any():
                continue
            values, index = values[rows], table.index[rows]
            scaled = values if metric.is_share else (values - floor) / span
            worst = np.nanmax if metric.is_share and not metric.higher_is_better else np.nanmin
            scores.add((variant, metric.name, JOINT), pd.Series(worst(scaled, axis=1), index=index))
            if metric.higher_is_better:
                kept = np.clip(values, 1e-12, None)
                means = asked[rows].sum(1) / np.nansum(1 / kept, axis=1)
                scores.add((variant, metric.name, HARMONIC), pd.Series(means, index=index))


def _floor(one: MetricRange) -> float:
    return one.floor


def _span(one: MetricRange) -> float:
    return one.ceiling - one.floor
