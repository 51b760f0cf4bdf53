"""How far a stored merge is from the best approximation of its rank."""

from __future__ import annotations

import math

import torch
from torch import Tensor

import mergelab as ml
from mergelab.engine.batches import Group, batches_of, upload
from mergelab.engine.blocks import merge_layer
from mergelab.engine.job import Job
from mergelab.linalg.lowrank import Factors
from mergelab.linalg.span import Combination
from mergelab.linalg.workspace import Workspace


@torch.no_grad()
def excess_error(job: Job, merged: ml.Adapter, name: str) -> float:
    """`|merge - stored| / |merge - best| - 1`, in float64 from the untruncated merge of one layer.

    (Small negative values are rounding: factors are stored in float32.)
    """
    group = Group((name,), job.adapters(name))
    ((batch, _),) = batches_of([job], group, upload(job, group), Workspace())
    (layer,) = batch.layers(job)
    whole = merge_layer(job.strategy, layer.parts, layer.chance)
    stored = merged.matrices(name)
    rank = stored.A.shape[0]
    if isinstance(whole, Tensor):
        tall = whole if whole.shape[0] >= whole.shape[1] else whole.T
        gram = _gram(tall)
        squares = torch.linalg.eigvalsh(gram).flip(0)
        difference = sum(
            float((x.double() - b.double() @ stored.A.double()).square().sum())
            for x, b in zip(whole.split(256), stored.B.split(256))
        )
    else:
        if isinstance(whole, Combination):
            u, m, v = whole.span.B.double(), whole.M, whole.span.A.double().T
        else:
            u, m, v = whole.B.double(), torch.eye(whole.A.shape[0]).double(), whole.A.double().T
        squares = torch.linalg.svdvals(torch.linalg.qr(u).R @ m @ torch.linalg.qr(v).R.T).square()
        rest = Factors(torch.cat([u @ m, -stored.B.double()], 1), torch.cat([v.T, stored.A.double()], 0))
        r_b, r_a = torch.linalg.qr(rest.B).R, torch.linalg.qr(rest.A.T).R
        difference = float((r_b @ r_a.T).square().sum())
    best = float(squares[rank:].clamp_min(0).sum())
    # What rounding to float32 leaves of a merge that the rank holds whole is no excess.
    return math.sqrt(difference / best) - 1 if best > 1e-12 * float(squares.sum()) else 0.0


def _gram(tall: Tensor) -> Tensor:
    gram = torch.zeros(tall.shape[1], tall.shape[1], dtype=torch.float64)
    for block in tall.split(1024):
        exact = block.double()
        gram += exact.T @ exact
    return gram
