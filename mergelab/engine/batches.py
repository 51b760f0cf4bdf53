"""Which layers are computed together: on a GPU as many of one kind as its memory holds, on a CPU one in a thread."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mergelab.engine.blocks import OneLayer
from mergelab.engine.job import Job, LayerChance, hashes_of
from mergelab.engine.thresholds import Known
from mergelab.errors import LayerError
from mergelab.layer import LARGEST_ENTRY, Layer
from mergelab.linalg import host
from mergelab.linalg.draws import Hashes
from mergelab.linalg.lowrank import Factors, stack
from mergelab.linalg.span import Combination, Span, signature, weighted_sum_of
from mergelab.linalg.workspace import Workspace
from mergelab.methods.method import Level, Part

# Layers of a batch: the next is read while one is computed. On a CPU there is nothing to gain.
MOST_ON_GPU, MOST_ON_CPU = 64, 1
# Bytes on a GPU that do not depend on the number of layers: blocks of one dense layer and what is made of them.
FIXED = 3 << 30


class Group(NamedTuple):
    """Layers that can be a batch.

    Attributes:
        names: of the layers.
        present: adapters that take part, in the order given.
        jobs: in which they do, by their numbers.
    """

    names: tuple[str, ...]
    present: tuple[int, ...]
    jobs: tuple[int, ...] = (0,)


def groups(jobs: Sequence[Job], present: Sequence[Mapping[str, tuple[int, ...]]], budget: int) -> list[Group]:
    """Layers by what they have in common: shape, adapters, their ranks and dtypes, jobs; cut to what memory holds.

    Args:
        jobs: what is to be done with the same adapters.
        present: for each, layer name -> the adapters that have it, at a weight that is not zero.
        budget: bytes of a GPU that may be used; 0 on a CPU.
    """
    alike: dict[tuple[Any, ...], list[str]] = {}
    for name in present[0]:
        takers: dict[tuple[int, ...], list[int]] = {}
        for number, own in enumerate(given[name] for given in present):
            takers.setdefault(own, []).append(number)
        for own, numbers in takers.items():
            layers = [jobs[0].inputs[i].adapter.layers[name] for i in own]
            matrix, kinds = _matrix(jobs[0].shape(name)), ((x.rank, *x.dtypes) for x in layers)
            if layers:
                alike.setdefault((own, tuple(numbers), matrix, *kinds), []).append(name)
    found = []
    for (own, numbers, *_), names in alike.items():
        most = MOST_ON_CPU
        if budget:
            most = min(MOST_ON_GPU, *(_fitting(jobs[number], names[0], own, budget) for number in numbers))
        found += [Group(tuple(names[i : i + most]), own, numbers) for i in range(0, len(names), most)]
    return found


def _fitting(job: Job, name: str, present: Sequence[int], budget: int) -> int:
    """How many layers like this one fit the memory."""
    out, columns = _matrix(job.shape(name))
    ranks = sum(job.inputs[i].adapter.layers[name].rank for i in present)
    strategy = job.strategy
    factors = 4 * ranks * (out + columns)
    needed = 6 * factors
    if strategy.level is not Level.LAYER and not strategy.is_exact_sum:
        needed += 4 * out * columns + 4 * factors if strategy.acts_in.is_dense else 12 * len(present) * ranks * columns
    return max(1, (budget - min(FIXED, budget // 2)) // needed)


def _matrix(shape: Sequence[int]) -> tuple[int, int]:
    return shape[0], math.prod(shape[1:])


@dataclass(frozen=True, eq=False)
class LayerBatch:
    """Layers of one shape that the same adapters change at the same ranks, where they are computed.

    Attributes:
        names: of the layers.
        adapters: which they are, in the order of the stack: that of the first layer's changes.
        span: of the changes, without their weights, `(layers, out, in)`.
        projections: layer by layer what tells the change of each adapter from those of the others, in the order of the
            stack.
        thresholds: of its dense changes.
    """

    names: tuple[str, ...]
    adapters: tuple[int, ...]
    span: Span
    projections: tuple[tuple[float, ...], ...]
    thresholds: Known = field(default_factory=Known)
    _sums: dict[tuple[float, ...], Combination] = field(default_factory=dict, repr=False)

    def weights(self, job: Job) -> Tensor:
        """`(layers, n)`, in the order of the stack."""
        rows = [[job.inputs[i].weights[name] for i in self.adapters] for name in self.names]
        return torch.tensor(rows, dtype=torch.float64)

    def weighted_sum(self, job: Job) -> Combination:
        """Of the changes; one for all jobs of the same weights."""
        weights = self.weights(job)
        return self._sums.setdefault(tuple(weights.flatten().tolist()), weighted_sum_of(self.span, weights))

    def only(self, i: int) -> LayerBatch:
        """One of its layers, as a batch of one."""
        if len(self.names) == 1:
            return self
        return LayerBatch(self.names[i : i + 1], self.adapters, self.span[i][None], self.projections[i : i + 1])

    def layers(self, job: Job) -> list[OneLayer]:
        """What a method sees of each layer, one by one."""
        together = hashes_of(job.seed, self.names, len(self.adapters))
        return [self._layer(job, i, together) for i in range(len(self.names))]

    def _layer(self, job: Job, i: int, together: Hashes) -> OneLayer:
        name, span = self.names[i], self.span[i]
        if job.strategy.acts_in.acts_on_factors:
            parts = job.stored_parts(name)
            return OneLayer(parts, span, LayerChance(job.seed, name, [part.place for part in parts]))
        weights = [job.inputs[index].weights[name] for index in self.adapters]
        # A place depends on the changes alone, among equal ones on the weight.
        order = sorted(range(len(weights)), key=lambda j: (self.projections[i][j], weights[j]))
        parts = [
            Part(change, weight, adapter, order.index(j))
            for j, (change, weight, adapter) in enumerate(zip(span.changes, weights, self.adapters))
        ]
        if job.strategy.stores_factors:
            parts.sort(key=lambda part: part.adapter)
        return OneLayer(parts, span, LayerChance(job.seed, name, [part.place for part in parts], together))


def upload(job: Job, group: Group) -> list[Factors]:
    """The changes of each adapter, `(layers, out, in)`, float32 on the device; they go there in the dtype they have."""
    return [_changes([job.inputs[i].adapter.layers[name] for name in group.names], job.device) for i in group.present]


def _changes(layers: Sequence[Layer], device: torch.device) -> Factors:
    layers = [layer.as_lora() for layer in layers]
    b = _stacked([layer.lora_B.detach().flatten(1) for layer in layers], device)
    a = _stacked([layer.lora_A.detach().flatten(1) for layer in layers], device)
    if any(layer.scaling != 1 for layer in layers):
        scalings = torch.tensor([layer.scaling for layer in layers], dtype=torch.float32)
        b = b * host.like(scalings, b)[:, None, None]
    return Factors(b, a)


def _stacked(matrices: Sequence[Tensor], device: torch.device) -> Tensor:
    if device.type != "cuda":
        whole = matrices[0][None] if len(matrices) == 1 else torch.stack(list(matrices))
        return whole.to(device, torch.float32)
    pinned = torch.empty(len(matrices), *matrices[0].shape, dtype=matrices[0].dtype, pin_memory=True)
    torch.stack(list(matrices), out=pinned)
    return pinned.to(device, non_blocking=True).float()


def batches_of(
    jobs: Sequence[Job], group: Group, changes: Sequence[Factors], workspace: Workspace
) -> list[tuple[LayerBatch, list[int]]]:
    """Look at the values, put the changes in an order of their own, and side by side; with the numbers of the jobs.

    The changes are sorted by one fixed random projection of each, `u.T delta v`, so that the sums of floating point do
    not depend on how the adapters were listed, nor on how a file factors a change. (Of a batch, those of its first
    layer: elsewhere the order is the same, and sums may differ by rounding.) Only where projections are equal do the
    weights decide: jobs that then want another order get a batch of their own.

    Raises:
        LayerError: a value is NaN, infinite, or far beyond those of any adapter.
    """
    found = host.to_host(torch.stack([_looked_at(change) for change in changes]))[0]
    for index, own in zip(group.present, found):
        for name, (largest_b, largest_a, _) in zip(group.names, own.tolist()):
            if not (largest_b * largest_a <= LARGEST_ENTRY and max(largest_b, largest_a) <= LARGEST_ENTRY**1.5):
                adapter = jobs[0].inputs[index].adapter
                adapter.matrices(name)  # says what is wrong
                raise LayerError(f"{adapter.source}: layer {name}: values out of the range of float32")
    projected = found[..., 2].T.tolist()
    orders: dict[tuple[int, ...], list[int]] = {}
    for number in group.jobs:
        weights = [jobs[number].inputs[i].weights[group.names[0]] for i in group.present]
        order = sorted(range(len(weights)), key=lambda i: (projected[0][i], weights[i]))
        orders.setdefault(tuple(order), []).append(number)
    return [
        (
            LayerBatch(
                group.names,
                tuple(group.present[i] for i in order),
                Span(*stack([changes[i] for i in order]), tuple(changes[i].A.shape[-2] for i in order), workspace),
                tuple(tuple(row[i] for i in order) for row in projected),
            ),
            numbers,
        )
        for order, numbers in orders.items()
    ]


def _looked_at(change: Factors) -> Tensor:
    """`(layers, 3)`: the largest magnitudes of B and of A, and the projection; in float64, where the change is."""
    largest = [torch.stack(_extremes(x)).abs().amax(0).double() for x in change]
    u, v = (signature(size, change.B.device) for size in change.shape)
    return torch.stack([*largest, ((u @ change.B).double() * (change.A @ v).double()).sum(-1)], -1)


def _extremes(x: Tensor) -> tuple[Tensor, Tensor]:
    """Of every layer; of one alone in a tenth of the time that a reduction of its rows takes."""
    least, most = x.aminmax() if len(x) == 1 else x.flatten(1).aminmax(dim=1)
    return least.reshape(len(x)), most.reshape(len(x))
