"""From what Optuna suggests to a candidate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from mergelab.evaluation.config import Weight
from mergelab.methods.registry import strategy_of
from mergelab.tuning.candidate import Candidate
from mergelab.tuning.groups import ALL
from mergelab.tuning.parameters import Choice, Parameter, Range, Value
from mergelab.tuning.space import Searched, Space, fitting, has


class Suggests(Protocol):
    """A trial of Optuna's, as far as it is asked here."""

    def suggest_categorical(self, name: str, choices: Sequence[Value]) -> Value: ...
    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1, log: bool = False) -> int: ...
    def suggest_float(
        self, name: str, low: float, high: float, *, step: float | None = None, log: bool = False
    ) -> float: ...


def candidate_of(space: Space, trial: Suggests, label: str) -> Candidate:
    """The candidate of a trial: its method is chosen first, then what that method has."""
    weights = {one: _suggested(trial, one.name, one.values) for one in space.weights}
    method = str(_suggested(trial, "method", Choice(space.methods)))
    chosen: dict[str, Any] = {name: value for name, value in space.fixed.items() if has(method, name)}
    for name, asked in space.options.items():
        known = fitting(method, name, asked, chosen)
        if known is not None:
            # A choice of fewer values is another parameter to Optuna.
            label_of = name if known == asked else f"{name} ({', '.join(map(str, known.values))})"  # type: ignore[union-attr]
            chosen[name] = _suggested(trial, label_of, known)
    return Candidate(label, weights_of(space, weights), {"method": method, **chosen})


def weights_of(space: Space, values: Mapping[Searched, Any]) -> dict[str, Weight]:
    """Adapter -> its weight, where some are given and the others as usual."""
    found = dict(space.usual)
    for adapter in dict.fromkeys(one.adapter for one in values):
        own = {one: value for one, value in values.items() if one.adapter == adapter}
        groups = {one.group: value for one, value in own.items() if one.group}
        patterns = {one.pattern: value for one, value in own.items() if one.pattern}
        if groups:
            found[adapter] = space.groups.weights(groups, space.layers.get(adapter, ()))
        if patterns:
            usual = space.usual[adapter]
            found[adapter] = {**(usual if isinstance(usual, Mapping) else {ALL: usual}), **patterns}
    return found


def usual_parameters(space: Space) -> dict[str, Value]:
    """The parameters that are nearest to the plain sum at the usual weights: where a search begins.

    Example:
        >>> from mergelab.tuning.groups import groups_of
        >>> from mergelab.tuning.space import space_of
        >>> given = {"weights": [0.5, 0.9], "method": ["ties", "svd"], "rank": {"low": 4, "high": 32}}
        >>> usual_parameters(space_of(given, {}, {"ghost": 1.0, "day": 0.8}, groups_of([], "none"), {}))
        {'ghost': 0.9, 'day': 0.8, 'method': 'svd', 'rank': 32}
    """
    found: dict[str, Value] = {}
    for one in space.weights:
        usual = space.usual[one.adapter]
        if not isinstance(usual, Mapping):
            found[one.name] = _nearest(one.values, float(usual))
    sums = [method for method in space.methods if strategy_of(method, {}).is_exact_sum]
    if len(space.methods) > 1:
        found["method"] = (sums or space.methods)[0]
    rank = space.options.get("rank")
    if isinstance(rank, Range):
        found["rank"] = rank.high
    return found


def _suggested(trial: Suggests, name: str, known: Parameter) -> Value:
    """A choice of one value is none."""
    if isinstance(known, Choice):
        return trial.suggest_categorical(name, known.values) if len(known.values) > 1 else known.values[0]
    if known.whole:
        return trial.suggest_int(name, int(known.low), int(known.high), step=int(known.step or 1), log=known.log)
    value = trial.suggest_float(name, known.low, known.high, step=known.step, log=known.log)
    return float(f"{value:.4g}")  # as people write it, in a recipe too


def _nearest(known: Parameter, usual: float) -> Value:
    if isinstance(known, Choice):
        return min((value for value in known.values if isinstance(value, (int, float))), key=lambda v: abs(v - usual))
    inside = min(max(usual, known.low), known.high)
    if known.step is None:
        return inside
    return round(known.low + round((inside - known.low) / known.step) * known.step, 12)
