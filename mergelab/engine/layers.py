"""The layers of a merge: which are computed beside each other, and how one becomes factors."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor

from mergelab.engine.blocks import coordinates_of, errors_told, merge_layer
from mergelab.engine.job import START, Job, LayerChance
from mergelab.engine.remains import why_nothing_remains
from mergelab.engine.results import Measured, MergedLayer, finished, measure
from mergelab.engine.thresholds import Owned, adapter_thresholds
from mergelab.errors import LayerError
from mergelab.layer import full_rank
from mergelab.linalg.dense import EXACT_SIDE, leading_directions, svd_dense
from mergelab.linalg.lowrank import Factors, Spectrum, inner, stack, svd, svd_of_sum
from mergelab.linalg.workspace import Workspace, threads, trim_heap
from mergelab.methods.method import Level, MatrixWise, Part
from mergelab.methods.registry import is_own, name_of
from mergelab.ranks import RankBudget, rank_reached, target_rank, truncate
from mergelab.spaces import Merged

# Dense changes of more entries than this are computed one after the other, by all threads together.
LARGE = 1 << 22
# The start of an iteration knows this many directions more than are wanted.
EXTRA_DIRECTIONS = 8


def merge_layers(job: Job, present: Mapping[str, tuple[int, ...]], done: Callable[[], object]) -> list[MergedLayer]:
    """Every layer, in the order of the names.

    Args:
        job: what is to be done.
        present: layer name -> the adapters that have it, at a weight that is not zero.
        done: called after each layer.
    """
    with threads() as pool:
        all_threads = Workspace(pool if job.device.type == "cpu" else None)
        prepared = _prepare_adapters(job, present, all_threads)
        large = [name for name in present if _is_large(job, name)]
        small = [name for name in present if name not in set(large)]
        merged: dict[str, MergedLayer] = {}

        def one(name: str, workspace: Workspace) -> None:
            merged[name] = merge_one(job, name, present[name], prepared, workspace)
            if len(merged) % 32 == 0:
                trim_heap()

        for _ in all_threads.map(partial(one, workspace=Workspace()), small):
            done()
        for name in large:
            one(name, all_threads)
            done()
    return [merged[name] for name in present]


def _is_large(job: Job, name: str) -> bool:
    strategy = job.strategy
    is_dense = strategy.level is not Level.LAYER and not strategy.is_exact_sum and strategy.acts_in.is_dense
    return is_dense and math.prod(job.shape(name)) > LARGE


def _prepare_adapters(job: Job, present: Mapping[str, tuple[int, ...]], workspace: Workspace) -> Sequence[Any] | None:
    """What a sparsifier must know of whole adapters, one for each; None where it looks at one layer at a time."""
    sparsifier = job.strategy.sparsifier
    if sparsifier is None or sparsifier.scope == "layer":
        return None
    method = cast(MatrixWise, job.strategy)

    def stacks() -> Iterable[Owned]:
        for name, own in present.items():
            if own:
                parts = job.parts(name, own)
                (stacked,) = coordinates_of(method, parts).stacks
                yield [part.adapter for part in parts], stacked

    with errors_told(method):
        return sparsifier.prepare(lambda share: adapter_thresholds(share, stacks, len(job.inputs), workspace))


def merge_one(
    job: Job, name: str, present: Sequence[int], prepared: Sequence[Any] | None, workspace: Workspace
) -> MergedLayer:
    """One layer: merged, decomposed, and cut to its rank, unless that is a share of a budget.

    Raises:
        LayerError: the merge has values that float32 cannot hold.
    """
    shape = job.shape(name)
    if not present:
        return MergedLayer(name, shape)
    parts = job.parts(name, present)
    chance = LayerChance(job.seed, name, [part.place for part in parts])
    own = None if prepared is None else [prepared[part.adapter] for part in parts]
    layer = MergedLayer(name, shape, present=tuple(present))
    target = target_rank(job.rank, [part.change.A.shape[0] for part in parts], full_rank(shape))
    try:
        result, measured = _combine(job, parts, target, chance, own, workspace)
        energy = inner(result, result) if isinstance(result, Factors) else result.energy
    except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
        energy = math.nan
    if not math.isfinite(energy):
        if is_own(job.strategy):
            raise LayerError(
                f"layer {name}: method {name_of(job.strategy)!r} returned values that are NaN, infinite or too large "
                "for float32; expected finite numbers"
            )
        raise LayerError(
            f"layer {name}: the merge has values that float32 cannot hold; expected weights, lam and density of "
            f"ordinary size, found weights {[job.inputs[i].weights[name] for i in present]} and {job.strategy}"
        )
    undecided = isinstance(result, Spectrum) and isinstance(job.rank, RankBudget)
    factors = result.factors() if isinstance(result, Spectrum) and not undecided else result
    measured = measured or measure(factors if isinstance(factors, Factors) else None, parts)
    given = sum(norm for _, norm in measured.values())
    note = why_nothing_remains(job.strategy, parts, energy, given, chance, own, workspace)
    layer = layer.with_energy(energy, result.kept if isinstance(result, Spectrum) else energy, note)
    if isinstance(factors, Factors):
        return finished(job, layer, factors, measured)
    return layer.with_spectrum(factors)  # to be cut when all layers are known


def _combine(
    job: Job,
    parts: Sequence[Part],
    target: int | float,
    chance: LayerChance,
    prepared: Sequence[Any] | None,
    workspace: Workspace,
) -> tuple[Spectrum | Factors, Measured | None]:
    """The merge of a layer as a spectrum, or as final factors; and how much of each part is in it, if that is known."""
    if job.strategy.is_exact_sum and not job.strategy.stores_factors:
        spectrum, *sizes = svd_of_sum([part.weighted for part in parts], lambda s: rank_reached(target, s))
        return spectrum, {part.adapter: pair for part, pair in zip(parts, zip(*sizes))}
    merged = merge_layer(job.strategy, parts, chance, prepared, workspace)
    if isinstance(merged, Factors) and _is_final(job, merged, target):
        return merged, None
    return _decompose(job, merged, target, chance, parts, workspace), None


def _is_final(job: Job, factors: Factors, target: int | float) -> bool:
    """Whether factors can be stored as they are."""
    if job.strategy.stores_factors:
        return True
    return isinstance(target, int) and not isinstance(job.rank, RankBudget) and target >= factors.A.shape[0]


def _decompose(
    job: Job, merged: Merged, target: int | float, chance: LayerChance, parts: Sequence[Part], workspace: Workspace
) -> Spectrum:
    if not isinstance(merged, Tensor):
        return svd(merged, lambda s: rank_reached(target, s))
    ranks = [part.change.A.shape[0] for part in parts]
    if isinstance(job.rank, RankBudget) and min(merged.shape) > EXACT_SIDE:
        target = job.rank.searched(ranks, min(merged.shape))
    count = (target if isinstance(target, int) else 64) + EXTRA_DIRECTIONS
    start = None if min(merged.shape) <= sum(ranks) else _directions(parts, min(count, sum(ranks)))
    return truncate(svd_dense(merged, target, chance.generator(START), start, workspace), target)


def _directions(parts: Sequence[Part], count: int) -> Tensor:
    """`(in, count)`: the leading right singular vectors of the weighted sum, which are near those of most merges."""
    return leading_directions(stack([part.weighted for part in parts]), count)
