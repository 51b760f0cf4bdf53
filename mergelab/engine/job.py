"""What one merge is asked to do, and the changes of one layer in the order in which they are merged."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from mergelab.adapter import Adapter
from mergelab.linalg.lowrank import Factors
from mergelab.ranks import Rank
from mergelab.methods.registry import Strategy


@dataclass(frozen=True)
class Job:
    """Strategy, rank, adapters, their weights by layer name, seed and device of one merge."""

    strategy: Strategy
    rank: Rank
    adapters: list[Adapter]
    weights: list[dict[str, float]]
    seed: int
    device: torch.device


@dataclass(frozen=True)
class Aligned:
    """The changes of one layer, in the order in which they are merged."""

    present: list[int]
    changes: list[Factors]
    weights: list[float]


def changes_of(job: Job, name: str, present: Sequence[int]) -> Aligned:
    """Factors and weights of those present; in space "factors" as PEFT has them, unscaled and in the order given."""
    if job.strategy.space == "factors":
        layers = [job.adapters[i].layers[name] for i in present]
        checked = [job.adapters[i].matrices(name, job.device) for i in present]
        changes = [Factors(x.lora_B.flatten(1).to(c.B), c.A) for x, c in zip(layers, checked)]
        return Aligned(list(present), changes, [job.weights[i][name] * x.scaling for i, x in zip(present, layers)])
    found = {i: job.adapters[i].matrices(name, job.device) for i in present}
    order = _canonical_order(job, name, found)
    return Aligned(order, [found[i] for i in order], [job.weights[i][name] for i in order])


def layer_generator(seed: int, name: str, index: int) -> torch.Generator:
    """The generator of one layer and one adapter: it depends on the seed and the layer's name, and on nothing else."""
    digest = hashlib.sha256(f"{seed}/{name}/{index}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def _canonical_order(job: Job, name: str, changes: Mapping[int, Factors]) -> list[int]:
    """An order of the adapters that does not depend on how they were listed, nor on how a file factors a change.

    The changes are sorted by one fixed random projection of each, `w u.T delta v`. Which adapter gets which random
    draw, and in which order floating point sums them, then depends on the changes alone.
    """
    out, columns = next(iter(changes.values())).shape
    generator = layer_generator(job.seed, name, -2)
    u, v = (torch.randn(size, generator=generator, dtype=torch.float64).float() for size in (out, columns))
    u, v = u.to(job.device), v.to(job.device)
    keys = {i: job.weights[i][name] * float((u @ c.B).double() @ (c.A @ v).double()) for i, c in changes.items()}
    return sorted(keys, key=keys.__getitem__)
