"""Two variants, image by image: which is better, by how much, and what the design could have told."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from typing import Any

import numpy as np

from mergelab.evaluation.analysis.quantities import QUANTITIES, Quantity, described
from mergelab.evaluation.analysis.scores import Scores
from mergelab.evaluation.metrics.metric import Description
from mergelab.evaluation.names import STACK, VariantName
from mergelab.evaluation.sets import Prompts
from mergelab.evaluation.statistics import (
    ENOUGH,
    Array,
    Interval,
    Range,
    Units,
    difference_interval,
    holm,
    resolvable,
    sign_flip,
    student,
    win_rate,
)

EACH_TWO = 64
"""Variants up to which each two are held against each other. Of more, all are held against the stack, which is the
family that is corrected, and against the best by a score, and each two of so many that are best by it."""


@dataclass(frozen=True)
class Contrast:
    """The first variant against the second, over the same images.

    Attributes:
        quantity: "joint", "concept" (what is seen of an adapter), "likeness" (to the image of an adapter alone),
            "preservation" (where no adapter is called), "score" (of a metric that gives one number for an image).
        metric, reference, prompts: as of a `Finding`.
        first, second: variants.
        interval: of the mean difference, in units of the score, turned so that above zero the first is better.
        p: of the sign-flip test over clusters, not corrected.
        corrected: by Holm, within the primary family; None: exploratory.
        wins: share of the images in which the first is better; a tie counts half.
        resolvable: the difference that a design of this size would have told from zero in 80 % of runs; NaN where one
            cluster cannot tell.
        clusters: how many there are.
        deviation: of the difference between clusters.
        by_set: the difference in each set of adapters, over its prompts; where there are several.
    """

    quantity: str
    metric: str
    reference: str
    prompts: Prompts
    first: str
    second: str
    interval: Interval
    p: float
    corrected: float | None
    wins: float
    resolvable: float
    clusters: int
    deviation: float
    by_set: dict[str, Interval] = field(default_factory=dict)

    @property
    def score(self) -> Primary:
        """By which the two are held against each other."""
        return Primary(self.quantity, self.metric, self.reference, self.prompts)

    @property
    def told_apart(self) -> bool:
        """Whether the interval leaves out zero."""
        return bool(self.interval.low > 0 or self.interval.high < 0)

    def turned(self) -> Contrast:
        """The second against the first."""
        return replace(
            self,
            first=self.second,
            second=self.first,
            interval=_turned(self.interval),
            wins=1 - self.wins,
            by_set={name: _turned(one) for name, one in self.by_set.items()},
        )

    def to_json(self) -> dict[str, Any]:
        """As the summary has it."""
        sets = {name: vars(one) for name, one in self.by_set.items()}
        return {**vars(self), "interval": vars(self.interval), "by_set": sets}


def _turned(interval: Interval, sign: int = -1) -> Interval:
    """The interval of the negative, unless the sign is 1."""
    return interval if sign > 0 else Interval(-interval.estimate, -interval.high, -interval.low)


@dataclass(frozen=True)
class Primary:
    """The one question whose tests are corrected: does a merge do better than the stack, by this score?

    Attributes:
        quantity, metric, reference, prompts: of the score.
    """

    quantity: str
    metric: str
    reference: str
    prompts: str

    def asks(self, contrast: Contrast) -> bool:
        """Whether a contrast is by this score."""
        return contrast.score == self


def contrasts(
    scores: Scores,
    metrics: Sequence[Description],
    variants: Sequence[VariantName],
    roles: Sequence[str],
    primary: Primary | None,
) -> list[Contrast]:
    """Of each two of the stack and the merges, by every score; of more than `EACH_TWO`, of some."""
    names = [str(variant) for variant in variants if variant.kind in ("stack", "merge")]
    found = [
        one
        for role in (*roles, None)
        for metric in metrics
        for quantity in QUANTITIES
        if quantity.contrast
        for about in quantity.references(role, metric, scores)
        for one in _of(scores, quantity, metric, about, role, names, primary)
    ]
    return corrected(found, primary)


def _of(
    scores: Scores,
    quantity: Quantity,
    metric: Description,
    about: str,
    role: str | None,
    names: Sequence[str],
    primary: Primary | None,
) -> list[Contrast]:
    """All pairs that are asked for, by one score."""
    table = scores.beside([(name, metric.name, about) for name in names], quantity.keys(scores, role))
    values = {name: table[name].to_numpy(float) for name in names if name in table}
    if not values:
        return []
    known = described(quantity, metric)
    asked, range = (
        primary == Primary(quantity.contrast, metric.name, about, quantity.prompts),
        scores.range(known, about),
    )
    prompts, sets = (table.index.get_level_values(level).to_numpy(object) for level in ("prompt", "set"))
    found, units = [], dict[bytes, Units]()
    for second, first in _pairs(values, known.sign):
        both = ~(np.isnan(values[first]) | np.isnan(values[second]))
        if both.any():
            if (key := both.tobytes()) not in units:
                units[key] = Units(list(prompts[both]), list(sets[both]))
            pair = values[first][both], values[second][both]
            estimated = _estimated(*pair, units[key], known.sign, range, by_set=asked)
            found.append(Contrast(quantity.contrast, metric.name, about, quantity.prompts, first, second, **estimated))
    return found


def _pairs(values: Mapping[str, Array], sign: int) -> Iterable[tuple[str, str]]:
    """Names of two variants, in their order; of many, those that `EACH_TWO` says."""
    names = list(values)
    if len(names) <= EACH_TWO:
        return combinations(names, 2)
    means = [sign * np.nanmean(one) if np.isfinite(one).any() else -np.inf for one in values.values()]
    best = np.argsort(-np.array(means), kind="stable")[:EACH_TWO].tolist()
    held = {best[0], *(place for place, name in enumerate(names) if name == str(STACK))}
    chosen = {(min(pair), max(pair)) for pair in combinations(best, 2)}
    chosen |= {(min(place, one), max(place, one)) for one in held for place, _ in enumerate(names) if place != one}
    return [(names[second], names[first]) for second, first in sorted(chosen)]


def _estimated(first: Array, second: Array, units: Units, sign: int, range: Range, *, by_set: bool) -> dict[str, Any]:
    each, sets = {}, np.asarray(units.sets)
    if by_set and len(names := dict.fromkeys(units.sets)) > 1:
        for name in names:
            own = sets == name
            some = Units([prompt for prompt, is_own in zip(units.prompts, own) if is_own], list(sets[own]))
            each[str(name)] = _turned(difference_interval(first[own], second[own], some, range), sign)
    means, interval = units.means(first - second), difference_interval(first, second, units, range)
    return {
        "interval": _turned(interval, sign),
        "p": sign_flip(first - second, units),
        "corrected": None,
        "wins": win_rate(first, second, higher_is_better=sign > 0),
        "resolvable": resolvable(first - second, units) * _widened(interval, means, units),
        "clusters": units.count,
        "deviation": float(means.std(ddof=1)) if len(means) > 1 else math.nan,
        "by_set": each,
    }


def _widened(interval: Interval, means: Array, units: Units) -> float:
    """By how much the longer arm of an interval is longer than Student's."""
    if units.count < ENOUGH:
        return 1.0
    _, high = student(means, units)
    longest = max(interval.estimate - interval.low, interval.high - interval.estimate)
    return longest / (high - interval.estimate) if high > interval.estimate else 1.0


def corrected(found: Sequence[Contrast], primary: Primary | None) -> list[Contrast]:
    """With the p values of the primary family corrected."""
    own = [i for i, one in enumerate(found) if primary is not None and primary.asks(one) and one.second == str(STACK)]
    known = dict(zip(own, holm([found[i].p for i in own])))
    return [replace(one, corrected=known.get(i)) for i, one in enumerate(found)]
