"""The layers of a merge: which are computed beside each other, and what becomes of each."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from mergelab.engine.blocks import directions, merge_layer, visit_blocks
from mergelab.linalg.dense import EXACT_SIDE, svd_dense
from mergelab.errors import LayerError
from mergelab.engine.job import Aligned, Job, changes_of, layer_generator
from mergelab.layer import LoraLayer, layer_of
from mergelab.linalg.lowrank import Factors, Spectrum, inner, inner_products, stack, svd, svd_of_sum
from mergelab.linalg.workspace import Lane, give_back, threads
from mergelab.ranks import RankBudget, cut, number, rank_note, wanted
from mergelab.report import LayerReport
from mergelab.linalg.selection import EVERYTHING, KEPT, Tally, bracket_of, select
from mergelab.spaces import Merged, Stacked, view_of
from mergelab.methods.sparsify import Trim
from mergelab.methods.registry import Cat

# Energy below this share of the inputs' is what float32 leaves of a sum that is zero.
CANCELLED = 1e-12
# A spectrum that misses no more than this share of the energy is known to its end.
UNKNOWN = 1e-9
# Dense changes of more entries than this are computed one after the other, by all threads together.
LARGE = 1 << 22
# A trim over whole adapters looks at one in so many rows and columns first, and trusts the share of large entries there
# so far.
SPARSE, MARGIN = 64, 0.02
# The start of an iteration knows this many directions more than are wanted.
EXTRA_DIRECTIONS = 8


@dataclass(frozen=True)
class Result:
    """One merged layer before its rank is final: a spectrum to cut, or factors that stay as they are."""

    name: str
    shape: tuple[int, ...]
    spectrum: Spectrum | None
    factors: Factors | None
    present: tuple[int, ...]
    energy: float
    kept: float
    row: LayerReport | None = None


# For each input of a layer the projection of the merge on it, and its squared norm.
Measured = Mapping[int, tuple[float, float]]


def merge_layers(job: Job, present: dict[str, tuple[int, ...]], done: Callable[[], object]) -> list[Result]:
    """Every layer, in the order of the names.

    Args:
        job: what is to be done.
        present: layer name -> the adapters that have it, at a weight that is not zero.
        done: called after each layer.
    """
    with threads() as pool:
        everyone = Lane(pool if job.device.type == "cpu" else None)
        thresholds = adapter_thresholds(job, present, everyone)
        large = [name for name in present if _is_large(job, name)]
        small = [name for name in present if name not in set(large)]
        found: dict[str, Result] = {}

        def one(name: str, lane: Lane) -> None:
            found[name] = _merge_one(job, name, present[name], thresholds, lane)
            if len(found) % 32 == 0:
                give_back()

        for _ in everyone.map(partial(one, lane=Lane()), small):
            done()
        for name in large:
            one(name, everyone)
            done()
    return [found[name] for name in present]


def _is_large(job: Job, name: str) -> bool:
    stays_low_rank = job.strategy.is_sum or job.strategy.space != "delta"
    return not stays_low_rank and math.prod(_shape(job, name)) > LARGE


def _shape(job: Job, name: str) -> tuple[int, ...]:
    return max((a.layers[name].shape for a in job.adapters if name in a.layers), key=len)


def _merge_one(
    job: Job, name: str, present: tuple[int, ...], thresholds: dict[int, float] | None, lane: Lane
) -> Result:
    shape = _shape(job, name)
    ranks = tuple(job.adapters[i].layers[name].rank for i in present)
    if not present:
        return Result(name, shape, None, None, present, 0.0, 0.0)
    if isinstance(job.strategy, Cat):
        inputs = {i: job.adapters[i].matrices(name, job.device).scaled(job.weights[i][name]) for i in present}
        factors = stack(list(inputs.values()))
        energy = inner(factors, factors)
        return _final(job, Result(name, shape, None, None, present, energy, energy), inputs, factors)
    aligned = changes_of(job, name, present)
    inputs = {i: c.scaled(w) for i, c, w in zip(aligned.present, aligned.changes, aligned.weights)}
    limit = min(shape[0], math.prod(shape[1:]))
    ask = wanted(job.rank, ranks, limit)
    generators = [layer_generator(job.seed, name, i) for i in range(len(present))]
    chosen = None if thresholds is None else [thresholds[i] for i in aligned.present]
    measured: Measured | None = None
    try:
        if job.strategy.is_sum and job.strategy.space != "factors":
            spectrum, *found = svd_of_sum(list(inputs.values()), lambda s: number(ask, s))
            measured = dict(zip(inputs, zip(*found)))
        else:
            merged = merge_layer(job.strategy, aligned.changes, aligned.weights, generators, chosen, lane)
            final = isinstance(ask, int) and not isinstance(job.rank, RankBudget)
            if isinstance(merged, Factors) and final and ask >= merged.A.shape[0]:
                energy = inner(merged, merged)
                return _final(job, Result(name, shape, None, None, present, energy, energy), inputs, merged)
            if isinstance(job.rank, RankBudget) and isinstance(merged, Tensor) and limit > EXACT_SIDE:
                ask = job.rank.searched(ranks, limit)
            spectrum = _decompose(merged, ask, layer_generator(job.seed, name, -1), aligned, lane)
    except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
        spectrum = None
    if spectrum is None or not math.isfinite(spectrum.energy):
        raise LayerError(
            f"layer {name}: the merge has values that float32 cannot hold; expected weights, lam and density of "
            f"ordinary size, found weights {[job.weights[i][name] for i in present]} and {job.strategy}"
        )
    if isinstance(job.rank, RankBudget):  # what it gets is known when all layers are
        return Result(name, shape, _spectrum_to_cpu(spectrum), None, present, spectrum.energy, spectrum.kept)
    result = Result(name, shape, None, None, present, spectrum.energy, spectrum.kept)
    return _final(job, result, inputs, spectrum.factors(), measured)


def _final(
    job: Job, result: Result, inputs: Mapping[int, Factors], factors: Factors, measured: Measured | None = None
) -> Result:
    """A layer whose rank is known; its row of the report is made while its inputs are at hand."""
    row = _row(job, result, factors, result.kept, measured or _measured(factors, inputs))
    return replace(result, factors=Factors(factors.B.cpu().contiguous(), factors.A.cpu().contiguous()), row=row)


def _decompose(merged: Merged, ask: int | float, generator: torch.Generator, aligned: Aligned, lane: Lane) -> Spectrum:
    if not isinstance(merged, Tensor):
        return svd(merged, lambda s: number(ask, s))
    count = (ask if isinstance(ask, int) else 64) + EXTRA_DIRECTIONS
    rank = sum(c.A.shape[0] for c in aligned.changes)
    start = None if min(merged.shape) <= rank else directions(aligned.changes, aligned.weights, min(count, rank))
    return cut(svd_dense(merged, ask, generator, start, lane), ask)


def adapter_thresholds(job: Job, present: dict[str, tuple[int, ...]], lane: Lane) -> dict[int, float] | None:
    """Thresholds of a trim over whole adapters, in the space where the rule acts; None for any other trim."""
    sparsifier = job.strategy.sparsifier
    if not isinstance(sparsifier, Trim) or sparsifier.scope != "adapter":
        return None

    def views() -> Iterable[tuple[list[int], Stacked]]:
        for name, owners in present.items():
            if owners:
                layer = changes_of(job, name, owners)
                (stacked,) = view_of(job.strategy, layer.changes, layer.weights).stacks
                yield layer.present, stacked

    def visit(look: Callable[[int, Tensor], Tally]) -> Iterable[tuple[int, Tally]]:
        for owners, stacked in views():
            yield from visit_blocks(stacked, owners, look, lane)

    sizes = [0] * len(job.adapters)
    samples: list[list[Tensor]] = [[] for _ in job.adapters]
    for owners, stacked in views():
        picked = [-(-size // SPARSE) for size in stacked.shape]
        for position, i in enumerate(owners):
            sizes[i] += math.prod(stacked.shape)
            samples[i].append(stacked.sample(position, *picked).abs().flatten().cpu())
    counts = [int(sparsifier.density * size) for size in sizes]
    brackets = [
        bracket_of(torch.cat(own), sparsifier.density, MARGIN) if size > KEPT else EVERYTHING
        for own, size in zip(samples, sizes)
    ]
    return dict(enumerate(select(visit, counts, sizes, brackets)))


def store(job: Job, results: Sequence[Result]) -> tuple[dict[str, LoraLayer], list[LayerReport]]:
    """Cut every layer to its final rank; layers that end with none are left out and reported."""
    spectra = [r.spectrum for r in results if r.spectrum is not None]
    spent = iter(job.rank.spend([s.S for s in spectra]) if isinstance(job.rank, RankBudget) and spectra else ())
    layers, rows = {}, []
    for result in results:
        factors, kept = result.factors, result.kept
        if result.spectrum is not None:
            spectrum = result.spectrum.truncated(next(spent))
            kept = spectrum.kept
            factors = spectrum.factors() if len(spectrum.S) else None
        if factors is not None:
            layers[result.name] = layer_of(factors, result.shape)
        rows.append(result.row or _row(job, result, factors, kept, None, _known(result)))
    return layers, rows


def _known(result: Result) -> int | None:
    """How many singular values of a spectrum are known, where there are more."""
    spectrum, limit = result.spectrum, min(result.shape[0], math.prod(result.shape[1:]))
    if spectrum is None or len(spectrum.S) == limit or spectrum.energy - spectrum.kept <= UNKNOWN * spectrum.energy:
        return None
    return len(spectrum.S)


def _measured(factors: Factors | None, inputs: Mapping[int, Factors]) -> Measured:
    changes = list(inputs.values())
    inside = inner_products(factors, changes) if factors is not None and changes else [0.0] * len(changes)
    return {i: (p, inner_products(c, [c])[0]) for (i, c), p in zip(inputs.items(), inside)}


def _row(
    job: Job, result: Result, factors: Factors | None, kept: float, measured: Measured | None, known: int | None = None
) -> LayerReport:
    """A row of the report; the inputs are read again where nobody measured them."""
    if measured is None:
        own = [(i, job.weights[i][result.name]) for i in result.present]
        measured = _measured(factors, {i: job.adapters[i].matrices(result.name).scaled(w) for i, w in own})
    found = [measured.get(i, (None, None)) for i in range(len(job.adapters))]
    rank = factors.A.shape[0] if factors is not None else 0
    note = rank_note(job.rank, rank, known) if result.present else "left out: every weight is 0 there"
    energy = result.energy
    if result.present and energy < CANCELLED * sum(norm for _, norm in measured.values()):
        energy, kept, note = 0.0, 0.0, "the inputs cancel: what is left is rounding"
    return LayerReport(result.name, rank, energy, kept, tuple(p for p, _ in found), tuple(n for _, n in found), note)


def _spectrum_to_cpu(spectrum: Spectrum) -> Spectrum:
    # Copies: a view would keep the whole decomposition in memory.
    return Spectrum(spectrum.U.cpu().clone(), spectrum.S.cpu(), spectrum.V.cpu().clone(), spectrum.energy)
