"""What is merged beside the layers: biases by the rule, other tensors where they do not clash."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from mergelab.adapter import Adapter
from mergelab.combining import combine
from mergelab.errors import LayerError
from mergelab.job import Job, layer_generator
from mergelab.layer import BIAS_SUFFIX
from mergelab.lowrank import Factors
from mergelab.spaces import view_of


def bias_only(adapter: Adapter) -> list[str]:
    """Layers of which an adapter changes nothing but the bias."""
    biased = (key.removesuffix(BIAS_SUFFIX) for key in adapter.extras if key.endswith(BIAS_SUFFIX))
    return [name for name in biased if name not in adapter.layers]


def merge_extras(job: Job, names: Sequence[str]) -> tuple[dict[str, Tensor], list[str]]:
    """Bias differences are merged by the rule; other extras are kept where they do not clash."""
    extras: dict[str, Tensor] = {}
    notes: list[str] = []
    taken: dict[str, list[str]] = {}
    owners: dict[str, list[int]] = {}
    for i, adapter in enumerate(job.adapters):
        for key in adapter.extras:
            layer = key.removesuffix(BIAS_SUFFIX)
            if job.weights[i][layer] != 0 if key.endswith(BIAS_SUFFIX) else any(job.weights[i].values()):
                owners.setdefault(key, []).append(i)
    for key, present in owners.items():
        tensors = [job.adapters[i].extras[key] for i in present]
        if key.endswith(BIAS_SUFFIX):
            extras[key] = _merge_bias(job, key, {i: t.float() for i, t in zip(present, tensors)}, names)
        elif all(torch.equal(t, tensors[0]) for t in tensors[1:]):
            extras[key] = tensors[0]
            taken.setdefault(names[present[0]], []).append(key)
        else:
            found = ", ".join(names[i] for i in present)
            notes.append(f"{key} is not merged: {found} hold different values, which replace rather than add")
    for name, keys in taken.items():
        some = keys[0] if len(keys) == 1 else f"{len(keys)} tensors ({keys[0]}, ...)"
        notes.append(f"{some} taken over from {name} as they are; weights do not apply to them")
    return extras, notes


def _merge_bias(job: Job, key: str, biases: dict[int, Tensor], names: Sequence[str]) -> Tensor:
    """The rule on dense differences, a bias being a matrix of one row."""
    if len({t.shape for t in biases.values()}) > 1:
        found = ", ".join(f"{names[i]} {tuple(t.shape)}" for i, t in biases.items())
        raise LayerError(f"{key}: the biases have different shapes: {found}; are they for one base model?")
    strategy = replace(job.strategy, space="delta", basis="changes")
    weights = {i: job.weights[i][key.removesuffix(BIAS_SUFFIX)] for i in biases}
    order = sorted(biases, key=lambda i: weights[i] * float(biases[i].double().sum()))
    rows = [Factors(torch.ones(1, 1), biases[i][None]) for i in order]
    (stacked,) = view_of(strategy, rows, [weights[i] for i in order]).stacks
    generators = [layer_generator(job.seed, key, i) for i in range(len(order))]
    return strategy.factor * combine(strategy, stacked, generators)[0]
