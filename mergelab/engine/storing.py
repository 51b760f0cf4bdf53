"""What becomes of a merged batch: a decomposition of every layer, cut to its rank, and what the report says of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from mergelab.engine.batches import LayerBatch
from mergelab.engine.blocks import OneLayer, merge_together
from mergelab.engine.job import Job, said_of
from mergelab.engine.remains import why_nothing_remains
from mergelab.engine.results import MergedLayer, check_finite, finished
from mergelab.layer import full_rank
from mergelab.linalg import host
from mergelab.linalg.dense import EXACT_SIDE, leading_directions, squared_norms, svd_dense
from mergelab.linalg.lowrank import Core, Factors, Spectrum, inner
from mergelab.linalg.span import Combination, Decomposed, Span, decompose, dense_sum_of, projections, weighted_sum_of
from mergelab.linalg.workspace import Workspace
from mergelab.ranks import RankBudget, Target, rank_reached, searched, target_rank
from mergelab.spaces import Merged

# The start of an iteration knows this many directions more than are wanted.
EXTRA_DIRECTIONS = 8


class Whole(NamedTuple):
    """Merged layers of one shape, before they are cut.

    Attributes:
        change: of all of them, `(layers, out, in)`.
        batch, layers: that were merged.
        states: of the sparsifier, for each layer, if they were found over whole adapters.
        energy: squared norms of dense changes.
    """

    change: Factors | Combination | Tensor
    batch: LayerBatch
    layers: Sequence[OneLayer]
    states: Sequence[Sequence[Any]] | None
    energy: Tensor | None = None

    def measured(self, workspace: Workspace) -> Whole:
        """With the energy, for whatever it is cut to."""
        whole = self.change
        return self._replace(energy=squared_norms(whole, workspace)) if isinstance(whole, Tensor) else self

    def apart(self) -> Whole:
        """The same, for another job: factors that may be stored as they are, in memory of their own."""
        if isinstance(self.change, Factors):
            return self._replace(change=Factors(*(x.clone() for x in self.change)))
        return self


def merged_batch(
    jobs: Sequence[Job],
    batch: LayerBatch,
    layers: Sequence[OneLayer],
    prepared: Sequence[Any] | None,
    workspace: Workspace,
) -> list[Callable[[], list[MergedLayer]]]:
    """Merge the layers of a batch, and cut them to the rank of each job.

    Args:
        jobs: that differ in the rank alone.
        batch, layers: what is merged, together and as a method sees each layer.
        prepared: of each adapter, what the sparsifier found out over all of its layers.
        workspace: threads and memory.

    Returns:
        For each job what brings its results to the CPU.

    Raises:
        LayerError: the merge has values that float32 cannot hold.
    """
    strategy = jobs[0].strategy
    states = None if prepared is None else [[prepared[p.adapter] for p in one.parts] for one in layers]
    with said_of(jobs[0].recipe):
        merged: list[Merged] | Combination | Tensor
        if strategy.is_exact_sum and not strategy.stores_factors:
            is_dense = _is_dense(batch)
            merged = dense_sum_of(batch.span, batch.weights(jobs[0])) if is_dense else batch.weighted_sum(jobs[0])
        else:
            merged = merge_together(strategy, layers, batch.span, states, workspace, batch.thresholds)
        if isinstance(merged, list):
            wholes = _in_batches(merged, batch, layers, states)
        else:
            wholes = [Whole(merged, batch, layers, states)]
        wholes = [whole.measured(workspace) for whole in wholes]
    found: list[Callable[[], list[MergedLayer]]] = []
    for number, job in enumerate(jobs):
        with said_of(job.recipe):
            own = wholes if number == 0 else [whole.apart() for whole in wholes]
            found.append(partial(_joined, [_stored(job, whole, workspace) for whole in own]))
    return found


def _is_dense(batch: LayerBatch) -> bool:
    """Whether the factors of a sum are so many that the layer itself is smaller, and worth the leading part alone."""
    side = min(batch.span.B.shape[-2], batch.span.A.shape[-1])
    return sum(batch.span.ranks) >= side > 4 * EXACT_SIDE


def _joined(parts: Sequence[Callable[[], list[MergedLayer]]]) -> list[MergedLayer]:
    return [layer for part in parts for layer in part()]


def _in_batches(
    merged: Sequence[Merged],
    batch: LayerBatch,
    layers: Sequence[OneLayer],
    states: Sequence[Sequence[Any]] | None,
) -> list[Whole]:
    """Factors of one rank as one batch; what else methods make of layers each by itself, as a batch of one."""
    factors = [m for m in merged if isinstance(m, Factors)]
    if len(factors) == len(merged) and len({m.A.shape for m in factors}) == 1:
        joined = Factors(torch.stack([m.B for m in factors]), torch.stack([m.A for m in factors]))
        return [Whole(joined, batch, layers, states)]
    alone = [None] * len(layers) if states is None else [[own] for own in states]
    return [Whole(_as_batch(m), batch.only(i), [layers[i]], alone[i]) for i, m in enumerate(merged)]


def _as_batch(merged: Merged) -> Any:
    """With a leading dimension of one."""
    if isinstance(merged, Tensor):
        return merged[None]
    if isinstance(merged, Combination):
        return Combination(merged.span[None], merged.M[None])
    if isinstance(merged, Core):
        merged = Factors(merged.U, merged.M.to(merged.U) @ merged.V.T)
    return Factors(merged.B[None], merged.A[None])


def _stored(job: Job, merged: Whole, workspace: Workspace) -> Callable[[], list[MergedLayer]]:
    """Layers of one batch, decomposed and cut; and what brings them to the CPU."""
    whole, batch, layers, states, _ = merged
    name = layers[0].chance.layer
    ranks = [job.inputs[part.adapter].adapter.layers[name].counted_rank for part in layers[0].parts]
    target = target_rank(job.rank, ranks, full_rank(job.shape(name)))
    spectrum, factors, known = None, None, None
    if isinstance(whole, Factors) and _is_final(job, whole, target):
        energy = kept = host.to_host(inner(whole, whole))[0]
        check_finite(job, layers, energy)
        factors, counts = whole, [whole.A.shape[-2]] * len(layers)
    else:
        found = _decomposed(job, merged, target, workspace)
        energy = found.energy
        if isinstance(found, Decomposed):
            counts = list(found.counts)
        else:
            counts = [rank_reached(target, s, float(e)) for s, e in zip(found.S, found.energy)]
            found = _cut(found, counts)
        counts = [min(count, found.S.shape[-1]) for count in counts]
        kept = found.S.square().sum(-1)
        if isinstance(found, Decomposed) and found.span is batch.span:
            known = found.projections
        if isinstance(job.rank, RankBudget) and not job.strategy.stores_factors:
            spectrum = found.spectrum() if isinstance(found, Decomposed) else found
            factors = spectrum.factors()
        else:
            factors = found.factors()
    span, weights = batch.span, batch.weights(job)
    known, norms = host.to_host(projections(factors, span) if known is None else known, span.squared_norms)
    known, norms = known * weights, norms * weights.square()
    rows = []
    for i, one in enumerate(layers):
        own, given = None if states is None else states[i], float(norms[i].sum())
        note = why_nothing_remains(job.strategy, one, float(energy[i]), given, own, workspace)
        sizes = dict(zip(batch.adapters, zip(known[i].tolist(), norms[i].tolist())))
        name = one.chance.layer
        layer = MergedLayer(name, job.shape(name), job.adapters(name))
        rows.append((layer.with_energy(float(energy[i]), float(kept[i]), note), sizes))
    if spectrum is not None:
        return lambda: [layer.with_spectrum(spectrum, i) for i, (layer, _) in enumerate(rows)]
    return lambda: finished(job, rows, factors, counts)


def _cut(spectrum: Spectrum, counts: Sequence[int]) -> Spectrum:
    """To the largest of the counts, and in every layer zero beyond its own."""
    spectrum = spectrum.truncated(max(counts))
    beyond = torch.arange(spectrum.S.shape[-1]) >= torch.tensor(counts)[:, None]
    return spectrum._replace(S=spectrum.S.masked_fill(beyond, 0.0))


def _is_final(job: Job, factors: Factors, target: Target) -> bool:
    """Whether factors can be stored as they are."""
    if job.strategy.stores_factors:
        return True
    return isinstance(target, int) and not isinstance(job.rank, RankBudget) and target >= factors.A.shape[-2]


def _decomposed(job: Job, merged: Whole, target: Target, workspace: Workspace) -> Decomposed | Spectrum:
    """Singular values and vectors of a merged batch: those that are wanted, or more."""
    whole, batch, layers, _, squares = merged
    if isinstance(whole, Factors):
        span = Span.of([whole], workspace)
        whole = weighted_sum_of(span, torch.ones(len(layers), 1))
    if isinstance(whole, Combination):
        sums = sum((x.sum((-2, -1)) for x in whole.span.grams), whole.M.sum((-2, -1)))
        check_finite(job, layers, host.to_host(sums)[0])
        found = decompose(whole, lambda s: min(len(s), rank_reached(target, s)))
        check_finite(job, layers, found.energy)
        return found
    energy = cast(Tensor, squares)
    check_finite(job, layers, energy)
    ranks, side = batch.span.ranks, min(whole.shape[-2:])
    wanted = searched(target, side)
    if isinstance(job.rank, RankBudget) and side > EXACT_SIDE:
        wanted = job.rank.searched(ranks, side)
    start = None
    if side > sum(ranks) and side > EXACT_SIDE:
        # Directions of the weighted sum, which are near those of most merges.
        count = min((wanted if isinstance(wanted, int) else 64) + EXTRA_DIRECTIONS, sum(ranks))
        start = leading_directions(batch.weighted_sum(job), count)
    return svd_dense(whole, wanted, start, workspace, energy)
