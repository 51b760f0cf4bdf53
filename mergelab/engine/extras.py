"""What is merged beside the layers: biases by the rule, other tensors where they do not clash."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from mergelab.adapter import Adapter
from mergelab.engine.blocks import merge_layer
from mergelab.engine.job import Input, Job, LayerChance
from mergelab.errors import LayerError
from mergelab.layer import BIAS_SUFFIX
from mergelab.linalg.lowrank import Factors
from mergelab.methods.method import Part
from mergelab.spaces import BASES, PLAIN_SPACE, dense


def bias_only(adapter: Adapter) -> list[str]:
    """Layers of which an adapter changes nothing but the bias."""
    biased = (key.removesuffix(BIAS_SUFFIX) for key in adapter.extras if key.endswith(BIAS_SUFFIX))
    return [name for name in biased if name not in adapter.layers]


def replacing(adapter: Adapter) -> list[str]:
    """Extras that replace a tensor of the base model rather than add to it: norms, embeddings."""
    return [key for key in adapter.extras if not key.endswith(BIAS_SUFFIX)]


def merge_extras(job: Job) -> tuple[dict[str, Tensor], list[str]]:
    """Bias differences are merged by the rule; other extras are kept where they do not clash.

    At weight 0 both are absent; what no weight is for goes with the adapter.
    """
    extras: dict[str, Tensor] = {}
    notes: list[str] = []
    taken: dict[str, list[str]] = {}
    owners: dict[str, list[Input]] = {}
    for given in job.inputs:
        for key in given.adapter.extras:
            if given.weights.get(key.removesuffix(BIAS_SUFFIX), any(given.weights.values())):
                owners.setdefault(key, []).append(given)
    for key, present in owners.items():
        tensors = [given.adapter.extras[key] for given in present]
        if key.endswith(BIAS_SUFFIX):
            extras[key] = _merge_bias(job, key, present)
        elif all(torch.equal(t, tensors[0]) for t in tensors[1:]):
            extras[key] = tensors[0]
            taken.setdefault(present[0].name, []).append(key)
        else:
            names = ", ".join(given.name for given in present)
            notes.append(f"{key} is not merged: {names} hold different values, which replace rather than add")
    for name, keys in taken.items():
        some = keys[0] if len(keys) == 1 else f"{len(keys)} tensors ({keys[0]}, ...)"
        notes.append(f"{some} taken over from {name} as they are; weights do not apply to them")
    return extras, notes


def _merge_bias(job: Job, key: str, present: Sequence[Input]) -> Tensor:
    """The rule on dense differences, a bias being a matrix of one row."""
    biases = [given.adapter.extras[key].float() for given in present]
    if len({bias.shape for bias in biases}) > 1:
        shapes = ", ".join(f"{given.name} {tuple(bias.shape)}" for given, bias in zip(present, biases))
        raise LayerError(
            f"{key}: the biases have different shapes: {shapes}; are they for one base model? "
            "adapter.without_extras(), or --drop-extras, leaves them out"
        )
    layer = key.removesuffix(BIAS_SUFFIX)
    parts = [
        Part(Factors(bias.new_ones(1, 1), bias[None]), given.weights[layer], job.inputs.index(given))
        for given, bias in zip(present, biases)
    ]
    parts.sort(key=lambda part: part.weight * float(part.change.A.double().sum()))
    strategy = job.strategy
    if PLAIN_SPACE in strategy.spaces:
        strategy = replace(strategy, space=PLAIN_SPACE, basis=BASES[0])
    return dense(merge_layer(strategy, parts, LayerChance(job.seed, key, range(len(parts)))))[0]
