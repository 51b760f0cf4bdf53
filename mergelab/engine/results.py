"""What became of each layer: factors, a spectrum to cut, and a row of the report."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mergelab.engine.blocks import OneLayer
from mergelab.engine.job import Job
from mergelab.errors import LayerError
from mergelab.layer import LoraLayer, full_rank, layer_of
from mergelab.linalg import host
from mergelab.linalg.lowrank import Factors, Spectrum
from mergelab.linalg.span import Span, projections
from mergelab.linalg.workspace import threads
from mergelab.methods.registry import is_own, name_of
from mergelab.ranks import RankBudget, rank_note
from mergelab.report import LayerReport

# A spectrum that misses no more than this share of the energy is known to its end.
UNKNOWN = 1e-9

# For each adapter of a layer the projection of the merge on its change, and the squared norm of that; weighted.
Measured = Mapping[int, tuple[float, float]]


@dataclass(frozen=True)
class MergedLayer:
    """One merged layer: a spectrum while its rank is not final, then factors and a row of the report.

    Attributes:
        name, shape: of the layer.
        present: adapters that take part.
        energy, kept: squared norms of the merge, before truncation and of what is stored.
        note: what the report is to say, besides what the rank says.
        spectrum: to be cut when all layers are known.
        factors: as they are stored; None where nothing is.
        row: of the report.
    """

    name: str
    shape: tuple[int, ...]
    present: tuple[int, ...] = ()
    energy: float = 0.0
    kept: float = 0.0
    note: str = ""
    spectrum: Spectrum | None = None
    factors: Factors | None = None
    row: LayerReport | None = None

    def with_energy(self, energy: float, kept: float, note: str) -> MergedLayer:
        """Of a merge; what cannot be told from rounding, of which there is a note, has none."""
        return replace(self, energy=0.0, kept=0.0, note=note) if note else replace(self, energy=energy, kept=kept)

    def with_spectrum(self, spectrum: Spectrum, i: int) -> MergedLayer:
        """To be cut later: one item of a batch."""
        # Copies: a view would keep the whole decomposition in memory.
        u, v = spectrum.U[i].cpu().clone(), spectrum.V[i].cpu().clone()
        return replace(self, spectrum=Spectrum(u, spectrum.S[i].clone(), v, spectrum.energy[i]))


def finished(
    job: Job, layers: Sequence[tuple[MergedLayer, Measured]], factors: Factors, counts: Sequence[int]
) -> list[MergedLayer]:
    """Layers whose ranks are final; their rows of the report are made while their parts are at hand.

    Args:
        job: what was done.
        layers: each with how much of each adapter is in it.
        factors: of all of them, `(layers, out, in)`, on any device.
        counts: the rank of each.
    """
    # From a GPU through memory that it can write to at full speed, which is too rare to be kept.
    own = torch.Tensor.clone if factors.B.is_cuda else torch.Tensor.contiguous
    b, a = host.to_host(factors.B, factors.A)
    return [
        replace(
            layer,
            factors=Factors(own(b[i, :, :count], memory_format=torch.contiguous_format), own(a[i, :count])),
            row=_row(job, layer, count, layer.kept, sizes),
        )
        for i, ((layer, sizes), count) in enumerate(zip(layers, counts))
    ]


def check_finite(job: Job, layers: Sequence[OneLayer], values: Tensor) -> None:
    """Raise `LayerError` for the first layer whose value is NaN or infinite."""
    for layer, value in zip(layers, values.tolist()):
        if math.isfinite(value):
            continue
        name = layer.chance.layer
        if is_own(job.strategy):
            raise LayerError(
                f"layer {name}: method {name_of(job.strategy)!r} returned values that are NaN, infinite or too large "
                "for float32; expected finite numbers"
            )
        weights = [job.inputs[i].weights[name] for i in job.adapters(name)]
        raise LayerError(
            f"layer {name}: the merge has values that float32 cannot hold; expected weights, lam and density of "
            f"ordinary size, found weights {weights} and {job.strategy}"
        )


def store(job: Job, merged: Sequence[MergedLayer]) -> tuple[dict[str, LoraLayer], list[LayerReport]]:
    """Cut every layer to its final rank; layers that end with none are left out and reported."""
    spectra = [layer.spectrum for layer in merged if layer.spectrum is not None]
    counts = iter(job.rank.spend([s.S for s in spectra]) if isinstance(job.rank, RankBudget) and spectra else ())
    layers, rows = {}, []
    with threads():  # single-threaded kernels, whose sums do not depend on the number of threads
        for layer in merged:
            factors, row = _final(job, layer, counts)
            if factors is not None:
                layers[layer.name] = layer_of(factors, layer.shape)
            rows.append(row)
    return layers, rows


def _final(job: Job, layer: MergedLayer, counts: Iterator[int]) -> tuple[Factors | None, LayerReport]:
    """What is stored of a layer, and its row; of a spectrum so many values as come next."""
    if layer.spectrum is None:
        return layer.factors, layer.row or _row(job, layer, 0, layer.kept, {})
    spectrum = layer.spectrum.truncated(next(counts))
    factors = spectrum.factors() if len(spectrum.S) else None
    kept = 0.0 if layer.note else float(spectrum.kept)
    return factors, _row(job, layer, len(spectrum.S), kept, _measured_again(job, layer, factors), _known(layer))


def _measured_again(job: Job, layer: MergedLayer, factors: Factors | None) -> Measured:
    """For a layer whose parts were let go until the budget was spent."""
    given = [job.inputs[i] for i in layer.present]
    span = Span.of([x.adapter.matrices(layer.name) for x in given])
    weights = torch.tensor([x.weights[layer.name] for x in given], dtype=torch.float64)
    inside = torch.zeros(len(given)) if factors is None else projections(factors, span) * weights
    return dict(zip(layer.present, zip(inside.tolist(), (span.squared_norms * weights.square()).tolist())))


def _known(layer: MergedLayer) -> int | None:
    """How many singular values of a spectrum are known, where there are more."""
    spectrum = layer.spectrum
    if (
        spectrum is None
        or len(spectrum.S) == full_rank(layer.shape)
        or float(spectrum.energy - spectrum.kept) <= UNKNOWN * float(spectrum.energy)
    ):
        return None
    return len(spectrum.S)


def _row(
    job: Job, layer: MergedLayer, rank: int, kept: float, measured: Measured, known: int | None = None
) -> LayerReport:
    note = layer.note or rank_note(job.rank, rank, known) if layer.present else "left out: every weight is 0 there"
    sizes = [measured.get(i, (None, None)) for i in range(len(job.inputs))]
    return LayerReport(
        layer.name, rank, layer.energy, kept, tuple(p for p, _ in sizes), tuple(n for _, n in sizes), note
    )
