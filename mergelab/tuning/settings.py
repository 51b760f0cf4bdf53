"""The weights that a search by halving tries: a few that anybody would, then draws around the best so far."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from math import exp, log
from statistics import fmean

from mergelab.evaluation.config import Weight
from mergelab.tuning.candidate import Candidate
from mergelab.tuning.groups import Groups

Values = Mapping[str, Mapping[str, float]]
"""Adapter -> group -> weight."""
TOGETHER, APART = (1.0, 0.85, 0.7, 1.15), ((1.0, 0.7), (1.3, 0.8))
"""By which the usual weights are multiplied at first: all alike; one adapter and the others."""
OF_ADAPTER, OF_GROUP = 0.2, 0.2
"""Standard deviations of the logarithm of a weight: what an adapter's groups share, and what each has of its own."""


def first_settings(usual: Mapping[str, float], groups: Groups) -> list[Values]:
    """One weight for each adapter, as anybody would try them: all at several strengths, and each above the others.

    Args:
        usual: adapter -> its weight under `loras`; the first setting is these.
        groups: of layers.

    Example:
        >>> from mergelab.tuning.groups import groups_of
        >>> settings = first_settings({"a": 1, "b": 1}, groups_of([], "none"))
        >>> [tuple(own["all"] for own in one.values()) for one in settings]
        [(1.0, 1.0), (0.85, 0.85), (0.7, 0.7), (1.15, 1.15), (1.0, 0.7), (1.3, 0.8), (0.7, 1.0), (0.8, 1.3)]
    """
    factors = [dict.fromkeys(usual, strength) for strength in TOGETHER]
    factors += [{name: high if name == up else low for name in usual} for up in usual for high, low in APART]
    return [
        _times(usual, {name: dict.fromkeys(groups.names, factor) for name, factor in one.items()}) for one in factors
    ]


def settings_around(best: Sequence[Values], count: int, seed: str) -> list[Values]:
    """Settings drawn around the (geometric) mean of the best so far.

    Args:
        best: settings of the same adapters and groups.
        count: how many.
        seed: of the draws.

    Example:
        >>> [one] = settings_around([{"a": {"down": 1.0, "up": 1.0}}], 1, "0")
        >>> {group: 0.3 < weight < 3 for group, weight in one["a"].items()}
        {'down': True, 'up': True}
    """
    draws = random.Random(seed)
    return [{name: _around(draws, [one[name] for one in best]) for name in best[0]} for _ in range(count)]


def _around(draws: random.Random, best: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The weights of one adapter."""
    sign = 1 if min(best[0].values()) > 0 else -1
    shared, spread = draws.gauss(0, OF_ADAPTER), OF_GROUP if len(best[0]) > 1 else 0.0
    centre = {group: fmean(log(abs(own[group])) for own in best) for group in best[0]}
    return {group: round(sign * exp(mean + shared + draws.gauss(0, spread)), 4) for group, mean in centre.items()}


def candidate_of(
    label: str, values: Values, groups: Groups, layers: Mapping[str, Iterable[str]], kept: Mapping[str, Weight]
) -> Candidate:
    """A setting as the plain sum with pattern weights; `layers` are those of each adapter, `kept` what all have."""
    weights: dict[str, Weight] = {name: groups.weights(own, layers[name]) for name, own in values.items()}
    return Candidate(label, {**weights, **kept})


def parameters_of(values: Values) -> dict[str, float]:
    """By name, as a trial has them: "ghost", or "ghost up" where an adapter has several groups."""
    return {f"{name} {group}" if len(own) > 1 else name: weight
            for name, own in values.items() for group, weight in own.items()}  # fmt: skip


def _times(usual: Mapping[str, float], factors: Values) -> Values:
    return {
        name: {group: round(usual[name] * factor, 4) for group, factor in own.items()} for name, own in factors.items()
    }
