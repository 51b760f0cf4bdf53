"""From scores to findings: every quantity of every variant, what each metric can tell, and the tests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from mergelab.evaluation.metrics.metric import Description
from mergelab.evaluation.names import BASE, STACK, VariantName, single
from mergelab.evaluation.quantities import QUANTITIES, Quantity
from mergelab.evaluation.scores import Scores, clusters
from mergelab.evaluation.statistics import Interval, holm, sign_flip


@dataclass(frozen=True)
class Finding:
    """One estimate: of what, for which variant and adapter, by which metric.

    Attributes:
        quantity: "recovery" (0 as the base model, 1 as the adapter alone), "similarity" (to an image), "leakage"
            (change of an adapter's score where it is not called), "preservation" (change of the prompt's own score, or
            distance from the base model's image, where no adapter is called), "wins over the stack" (share of images),
            "score" (mean over all prompts of a metric that gives one number for an image).
        variant: `stack` or `merge:<label>`; also `base` and `single:<name>`, where the metric's range lies.
        metric: its metric.
        reference: the adapter it is about, as `single:<name>`, or the image it is compared with.
        interval: the estimate and its 95 % interval.
        p: of the paired test against the stack, corrected; None where there is none.
    """

    quantity: str
    variant: str
    metric: str
    reference: str
    interval: Interval
    p: float | None = None


@dataclass(frozen=True)
class MetricRange:
    """What a metric can say about one adapter: floor (base), ceiling (the adapter alone), noise (other seeds).

    `blind`: the metric does not move between floor and ceiling, so nothing it says counts. A metric between images
    whose range has no better end has no ceiling (NaN), and is not called blind.
    """

    metric: str
    reference: str
    floor: float
    ceiling: float
    noise: float
    blind: bool


def metric_ranges(
    scores: Scores, metrics: Sequence[Description], adapters: Sequence[str], calling: Mapping[str, set[str]]
) -> list[MetricRange]:
    """Floor, ceiling and noise of every metric, for every adapter, on the prompts that call it."""
    ranges = []
    for adapter in adapters:
        name = single(adapter)
        prompts = {prompt for prompt, called in calling.items() if adapter in called}
        for metric in metrics:
            floor, alone = ((variant, metric.name, name) for variant in (str(BASE), name))
            if metric.compares_with == "words" and len(table := scores.aligned([floor, alone], prompts)):
                ranges.append(_range(metric, name, table.iloc[:, 0], table.iloc[:, 1], _spread(table.iloc[:, 1])))
            if metric.compares_with == "images" and len(table := scores.aligned([floor], prompts)):
                ceiling = pd.Series(metric.best, index=table.index)
                noise = scores.noise(name, metric.name, prompts)
                ranges.append(_range(metric, name, table.iloc[:, 0], ceiling, noise))
    return ranges


def _spread(column: pd.Series) -> float:
    """Deviation between the seeds of a prompt."""
    return float(column.groupby(level=["set", "prompt"]).std().mean())


def _range(metric: Description, name: str, floor: pd.Series, ceiling: pd.Series, noise: float) -> MetricRange:
    """Blind: the ceiling is not better than the floor by two standard errors, over prompts or else seeds."""
    difference = (ceiling - floor) * metric.sign
    means = clusters(difference.to_frame())[:, 0]
    sample = means if len(means) > 1 else difference.to_numpy(float)
    error = sample.std(ddof=1) / np.sqrt(len(sample)) if len(sample) > 1 else 0.0
    blind = sample.mean() <= max(2 * error, 1e-3)
    return MetricRange(metric.name, name, float(floor.mean()), float(ceiling.mean()), noise, bool(blind))


def findings(
    scores: Scores,
    metrics: Sequence[Description],
    variants: Sequence[VariantName],
    adapters: Sequence[str],
    calling: Mapping[str, set[str]],
) -> list[Finding]:
    """Every quantity that the metrics can answer, of every variant, with the paired tests against the stack."""
    candidates = (
        _finding(scores, quantity, variant, metric, reference, quantity.on(calling, adapter))
        for variant in variants
        for adapter in (*adapters, None)
        for metric in metrics
        for quantity in QUANTITIES
        if variant.kind == "merge" or not quantity.merges_only
        for reference in quantity.references(adapter, metric, scores)
    )
    rows = [row for row in candidates if row is not None]
    corrected = iter(holm([row.p for row in rows if row.p is not None]))
    return [row if row.p is None else replace(row, p=next(corrected)) for row in rows]


def _finding(
    scores: Scores, quantity: Quantity, variant: VariantName, metric: Description, reference: str, prompts: set[str]
) -> Finding | None:
    """One estimate, with the p value of its own test; None where a column is missing."""
    columns = quantity.of(str(variant), metric.name, reference)
    table = scores.aligned(columns, prompts)
    if not len(table):
        return None
    p = None
    if quantity.tested and variant.kind == "merge":
        pair = scores.aligned([columns[0], (str(STACK), *columns[0][1:])], prompts)
        if len(pair):
            means = clusters(pair)
            p = sign_flip(means[:, 0] - means[:, 1])
    return Finding(quantity.name, str(variant), metric.name, reference, quantity.statistic(table, metric), p)
