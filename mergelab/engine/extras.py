"""What is merged beside the layers: differences by the rule, other tensors where they do not clash."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from mergelab.adapter import Adapter
from mergelab.engine.blocks import merge_layer
from mergelab.engine.job import Input, Job, LayerChance
from mergelab.errors import LayerError
from mergelab.layer import is_difference, owner_of
from mergelab.linalg.lowrank import Factors
from mergelab.methods.method import Part
from mergelab.spaces import BASES, PLAIN_SPACE, dense


def without_layer(adapter: Adapter) -> list[str]:
    """Layers and norms that an adapter changes by a difference of their bias or weight alone."""
    names = dict.fromkeys(owner_of(key) for key in adapter.extras if is_difference(key))
    return [name for name in names if name not in adapter.layers]


def replacing(adapter: Adapter) -> list[str]:
    """Extras that replace a tensor of the base model rather than add to it: norms, embeddings."""
    return [key for key in adapter.extras if not is_difference(key)]


def merge_extras(job: Job) -> tuple[dict[str, Tensor], list[str]]:
    """Differences of biases and norms are merged by the rule; other extras are kept where they do not clash.

    At weight 0 both are absent; what no weight is for goes with the adapter.
    """
    extras: dict[str, Tensor] = {}
    notes: list[str] = []
    taken: dict[str, list[str]] = {}
    owners: dict[str, list[Input]] = {}
    for given in job.inputs:
        for key in given.adapter.extras:
            if given.weights.get(owner_of(key), any(given.weights.values())):
                owners.setdefault(key, []).append(given)
    for key, present in owners.items():
        tensors = [given.adapter.extras[key] for given in present]
        if is_difference(key):
            extras[key] = _merge_difference(job, key, present)
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


def _merge_difference(job: Job, key: str, present: Sequence[Input]) -> Tensor:
    """The rule on dense differences, a vector being a matrix of one row."""
    differences = [given.adapter.extras[key].float() for given in present]
    if len({one.shape for one in differences}) > 1:
        shapes = ", ".join(f"{given.name} {tuple(one.shape)}" for given, one in zip(present, differences))
        raise LayerError(
            f"{key}: the differences have different shapes: {shapes}; are they for one base model? "
            "adapter.without_extras(), or --drop-extras, leaves them out"
        )
    layer = owner_of(key)
    parts = [
        Part(Factors(one.new_ones(1, 1), one[None]), given.weights[layer], job.inputs.index(given))
        for given, one in zip(present, differences)
    ]
    parts.sort(key=lambda part: part.weight * float(part.change.A.double().sum()))
    strategy = job.strategy
    if PLAIN_SPACE in strategy.spaces:
        strategy = replace(strategy, space=PLAIN_SPACE, basis=BASES[0])
    return dense(merge_layer(strategy, parts, LayerChance(job.seed, key, range(len(parts)))))[0]
