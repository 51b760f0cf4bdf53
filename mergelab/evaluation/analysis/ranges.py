"""What each metric can tell of each adapter: its floor, its ceiling and its noise."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from mergelab.evaluation.analysis.quantities import concept_reference, units_of
from mergelab.evaluation.analysis.scores import Scores
from mergelab.evaluation.metrics.metric import Description
from mergelab.evaluation.names import BASE, single
from mergelab.evaluation.sets import counts
from mergelab.evaluation.statistics import is_blind


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


def metric_ranges(scores: Scores, metrics: Sequence[Description], roles: Sequence[str]) -> list[MetricRange]:
    """Floor, ceiling and noise of every metric, for every adapter, on the prompts that call it."""
    return [known for role in roles for metric in metrics for known in _ranges(scores, metric, role)]


def _ranges(scores: Scores, metric: Description, role: str) -> Iterator[MetricRange]:
    name = single(role)
    calling = scores.keys(lambda called: role in called)
    about = concept_reference(metric, role)
    table = scores.aligned([(str(BASE), metric.name, about), (name, metric.name, about)], calling)
    if metric.compares_with != "nothing" and len(table):
        yield _range(metric, about, table.iloc[:, 0], table.iloc[:, 1], _spread(table.iloc[:, 1]))
    alone = scores.keys(counts("alone", role)) or calling
    if metric.compares_with == "images" and len(table := scores.aligned([(str(BASE), metric.name, name)], alone)):
        ceiling = pd.Series(metric.best, index=table.index)
        yield _range(metric, name, table.iloc[:, 0], ceiling, _mean(scores.other_seeds(name, metric.name, alone)))


def _mean(values: pd.Series) -> float:
    return float(values.mean()) if len(values) else float("nan")


def _spread(column: pd.Series) -> float:
    """Deviation between the seeds of a prompt."""
    return float(column.groupby(level=["set", "prompt"]).std().mean())


def _range(metric: Description, reference: str, floor: pd.Series, ceiling: pd.Series, noise: float) -> MetricRange:
    low, high = floor.to_numpy(float), ceiling.to_numpy(float)
    units, finite = units_of(floor), bool(np.isfinite(high).all())
    blind = finite and is_blind(low, high, units, higher_is_better=metric.higher_is_better)
    return MetricRange(metric.name, reference, float(floor.mean()), float(ceiling.mean()), noise, blind)
