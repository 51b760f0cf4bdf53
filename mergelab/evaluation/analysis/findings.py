"""From scores to findings: every quantity of every variant."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import pandas as pd

from mergelab.evaluation.analysis.quantities import (
    IMAGE_RECOVERY,
    QUANTITIES,
    RECOVERY,
    SUPPRESSION,
    Quantity,
    described,
    units_of,
)
from mergelab.evaluation.analysis.scores import Scores
from mergelab.evaluation.metrics.metric import Description
from mergelab.evaluation.names import BASE, STACK, VariantName, single
from mergelab.evaluation.sets import counts
from mergelab.evaluation.statistics import Interval, is_blind, recovery_interval, sign_flip


@dataclass(frozen=True)
class Finding:
    """One estimate: of what, for which variant and adapter, by which metric, on which prompts.

    Attributes:
        quantity: "joint" (of the concepts that are called, the one that is seen least), "recovery" (0 as the base
            model, 1 as the adapter alone), "image recovery" (the same of the likeness to the adapter's own images),
            "suppression" (how far below the base model, where the weight is not above zero), "harmonic mean" (of the
            concepts), "similarity" (to an image), "leakage" (change of an adapter's score where it is not called),
            "preservation" (change of the prompt's own score, or distance from the base model's image, where no adapter
            is called), "score" (mean over all prompts of a metric that gives one number for an image).
        variant: `stack` or `merge:<label>`; also `base` and `single:<role>`, where the metric's range lies.
        metric: its metric.
        reference: the adapter it is about, as `single:<role>` or `photos:<role>`, or the image it is compared with.
        prompts: "together" (that call the adapter and another), "alone", "not calling", "none", "every".
        interval: the estimate and its 95 % interval.
        p: of the paired test of a merge against the stack, not corrected; None where there is none.
    """

    quantity: str
    variant: str
    metric: str
    reference: str
    prompts: str
    interval: Interval
    p: float | None = None


def findings(
    scores: Scores,
    metrics: Sequence[Description],
    variants: Sequence[VariantName],
    weights: Mapping[str, bool],
) -> list[Finding]:
    """Every quantity that the metrics can answer, of every variant.

    Args:
        scores: with the joint scores.
        metrics: what the scores are of.
        variants: of which something is said.
        weights: role -> whether its weight is above zero.
    """
    found = list[Finding]()
    for variant in variants:
        for role in (*weights, None):
            for metric in metrics:
                for quantity in QUANTITIES:
                    if role is not None and (quantity.name == SUPPRESSION.name) == weights[role] and quantity.is_effect:
                        continue
                    for about in quantity.references(role, metric, scores):
                        found += _finding(scores, quantity, variant, metric, about, role)
                if role is not None and metric.compares_with == "images" and weights[role]:
                    found += _image_recovery(scores, variant, metric, role)
    return found


def _finding(
    scores: Scores, quantity: Quantity, variant: VariantName, metric: Description, about: str, role: str | None
) -> list[Finding]:
    """One estimate, with the p value of its own test against the stack; none where a column is missing."""
    columns, keys = quantity.of(str(variant), metric.name, about, role), quantity.keys(scores, role)
    table = scores.aligned(columns, keys)
    if not len(table) or (quantity.name == RECOVERY.name and _sees_nothing(table, metric)):
        return []
    p = None
    if quantity.contrast and variant.kind == "merge":
        pair = scores.aligned([(name, metric.name, about) for name in (str(variant), str(STACK))], keys)
        if len(pair):
            p = sign_flip((pair.iloc[:, 0] - pair.iloc[:, 1]).to_numpy(float), units_of(pair))
    interval = quantity.statistic(table, units_of(table), scores.range(described(quantity, metric), about))
    if len(set(columns)) < len(columns):  # of the base model itself, or of an adapter alone: so by definition
        interval = replace(interval, low=math.nan, high=math.nan)
    return [Finding(quantity.name, str(variant), metric.name, about, quantity.prompts, interval, p)]


def _sees_nothing(table: pd.DataFrame, metric: Description) -> bool:
    """Whether the adapter alone (third column) is within the noise of the base model (second), on these prompts."""
    floor, ceiling = (table.iloc[:, place].to_numpy(float) for place in (1, 2))
    return is_blind(floor, ceiling, units_of(table), higher_is_better=metric.higher_is_better)


def _image_recovery(scores: Scores, variant: VariantName, metric: Description, role: str) -> list[Finding]:
    """Of the likeness to the image of an adapter alone, whose own other seeds are the ceiling."""
    name, keys = single(role), scores.keys(counts("alone", role))
    ceiling = scores.other_seeds(name, metric.name, keys)
    table = scores.aligned([(one, metric.name, name) for one in (str(variant), str(BASE))], keys)
    if not len(table) or not len(ceiling):
        return []
    table = pd.concat([table, ceiling.rename("ceiling")], axis=1, join="inner")
    if _sees_nothing(table, metric):
        return []
    mine, floor, best = (table.iloc[:, place].to_numpy(float) for place in (0, 1, 2))
    interval = recovery_interval(mine, floor, best, units_of(table), scores.range(metric, name))
    return [Finding(IMAGE_RECOVERY, str(variant), metric.name, name, "alone", interval)]
