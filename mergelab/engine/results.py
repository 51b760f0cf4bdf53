"""What became of each layer: factors, a spectrum to cut, and a row of the report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from mergelab.engine.job import Job
from mergelab.layer import LoraLayer, full_rank, layer_of
from mergelab.linalg.lowrank import Factors, Spectrum, inner_products
from mergelab.methods.method import Part
from mergelab.ranks import RankBudget, rank_note
from mergelab.report import LayerReport

# A spectrum that misses no more than this share of the energy is known to its end.
UNKNOWN = 1e-9

# For each adapter of a layer the projection of the merge on its change, and its squared norm.
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

    def with_spectrum(self, spectrum: Spectrum) -> MergedLayer:
        """To be cut later."""
        # Copies: a view would keep the whole decomposition in memory.
        own = Spectrum(spectrum.U.cpu().clone(), spectrum.S.cpu(), spectrum.V.cpu().clone(), spectrum.energy)
        return replace(self, spectrum=own)


def measure(factors: Factors | None, parts: Sequence[Part]) -> Measured:
    """How much of each part is in the merge."""
    changes = [part.weighted for part in parts]
    inside = inner_products(factors, changes) if factors is not None and changes else [0.0] * len(changes)
    return {part.adapter: (p, inner_products(c, [c])[0]) for part, c, p in zip(parts, changes, inside)}


def finished(job: Job, layer: MergedLayer, factors: Factors, measured: Measured) -> MergedLayer:
    """A layer whose rank is final; its row of the report is made while its parts are at hand."""
    row = _row(job, layer, factors, layer.kept, measured)
    return replace(layer, factors=Factors(factors.B.cpu().contiguous(), factors.A.cpu().contiguous()), row=row)


def store(job: Job, merged: Sequence[MergedLayer]) -> tuple[dict[str, LoraLayer], list[LayerReport]]:
    """Cut every layer to its final rank; layers that end with none are left out and reported."""
    spectra = [layer.spectrum for layer in merged if layer.spectrum is not None]
    counts = iter(job.rank.spend([s.S for s in spectra]) if isinstance(job.rank, RankBudget) and spectra else ())
    layers, rows = {}, []
    for layer in merged:
        factors, row = layer.factors, layer.row
        if layer.spectrum is not None:
            spectrum = layer.spectrum.truncated(next(counts))
            factors = spectrum.factors() if len(spectrum.S) else None
            kept = 0.0 if layer.note else spectrum.kept
            row = _row(job, layer, factors, kept, _measured_again(job, layer, factors), _known(layer))
        if factors is not None:
            layers[layer.name] = layer_of(factors, layer.shape)
        rows.append(row or _row(job, layer, factors, layer.kept, {}))
    return layers, rows


def _measured_again(job: Job, layer: MergedLayer, factors: Factors | None) -> Measured:
    """For a layer whose parts were let go until the budget was spent."""
    on_cpu = replace(job, device=torch.device("cpu"))
    return measure(factors, [on_cpu.unordered_part(layer.name, index) for index in layer.present])


def _known(layer: MergedLayer) -> int | None:
    """How many singular values of a spectrum are known, where there are more."""
    spectrum = layer.spectrum
    if (
        spectrum is None
        or len(spectrum.S) == full_rank(layer.shape)
        or spectrum.energy - spectrum.kept <= UNKNOWN * spectrum.energy
    ):
        return None
    return len(spectrum.S)


def _row(
    job: Job, layer: MergedLayer, factors: Factors | None, kept: float, measured: Measured, known: int | None = None
) -> LayerReport:
    rank = factors.A.shape[0] if factors is not None else 0
    note = layer.note or rank_note(job.rank, rank, known) if layer.present else "left out: every weight is 0 there"
    sizes = [measured.get(i, (None, None)) for i in range(len(job.inputs))]
    return LayerReport(
        layer.name, rank, layer.energy, kept, tuple(p for p, _ in sizes), tuple(n for _, n in sizes), note
    )
