"""The weights that a search by halving tries: a few that anybody would, then draws around them."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from math import exp

from mergelab.evaluation.config import Weight
from mergelab.tuning.candidate import Candidate
from mergelab.tuning.groups import Groups

Values = Mapping[str, Mapping[str, float]]
"""Adapter -> group -> weight."""
OF_ADAPTER, OF_GROUP = 0.13, 0.25
"""Standard deviations of the logarithm of a weight: what an adapter's groups share, and what each has of its own."""


def settings_of(usual: Mapping[str, float], groups: Groups, count: int, seed: int) -> list[Values]:
    """The settings of a search; the first ones are uniform, the first of all the usual weights.

    Args:
        usual: adapter -> its weight under `loras`.
        groups: of layers.
        count: how many.
        seed: of the draws: the same settings for the same seed, and a longer list begins with the shorter one.

    Example:
        >>> from mergelab.tuning.groups import groups_of
        >>> [list(one.values()) for one in settings_of({"a": 1.0, "b": 0.5}, groups_of([], "none"), 2, 0)]
        [[{'all': 1.0}, {'all': 0.5}], [{'all': 0.9}, {'all': 0.45}]]
    """
    draws, own = random.Random(seed), groups.names
    uniform: list[dict[str, float]] = [dict.fromkeys(usual, 1.0), dict.fromkeys(usual, 0.9)]
    uniform += [{name: 1.2 if name == up else 0.9 for name in usual} for up in usual]
    drawn = [_uniform(factors, own) for factors in uniform]
    while len(drawn) < count:
        drawn.append({name: _around(draws, own) for name in usual})
    return [_times(usual, factors) for factors in drawn[:count]]


def candidate_of(label: str, values: Values, groups: Groups, layers: Mapping[str, Iterable[str]]) -> Candidate:
    """A setting as the plain sum with pattern weights; `layers` are those of each adapter."""
    weights: dict[str, Weight] = {name: groups.weights(own, layers[name]) for name, own in values.items()}
    return Candidate(label, weights)


def parameters_of(values: Values) -> dict[str, float]:
    """By name, as a trial has them: "ghost", or "ghost up" where an adapter has several groups."""
    return {f"{name} {group}" if len(own) > 1 else name: weight
            for name, own in values.items() for group, weight in own.items()}  # fmt: skip


def _uniform(factors: Mapping[str, float], groups: Sequence[str]) -> dict[str, dict[str, float]]:
    return {name: dict.fromkeys(groups, factor) for name, factor in factors.items()}


def _around(draws: random.Random, groups: Sequence[str]) -> dict[str, float]:
    shared = draws.gauss(0, OF_ADAPTER)
    spread = OF_GROUP if len(groups) > 1 else 0.0
    return {group: exp(shared + draws.gauss(0, spread)) for group in groups}


def _times(usual: Mapping[str, float], factors: Values) -> Values:
    return {
        name: {group: round(usual[name] * factor, 4) for group, factor in own.items()} for name, own in factors.items()
    }
