"""An adapter from a tuned model and its base model: the best low-rank approximation of each layer's difference."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from mergelab.adapter import Adapter
from mergelab.checks import short_repr
from mergelab.describing import short_name
from mergelab.devices import AUTO, Device, chosen_device, layer_work
from mergelab.engine.differences import Differences, differences
from mergelab.engine.provenance import Recipe
from mergelab.errors import ArchitectureError, LayerError, OptionError
from mergelab.formats import hashing
from mergelab.formats.base_sources import BaseSource
from mergelab.formats.base_weights import BaseWeights, open_base
from mergelab.layer import full_rank, layer_of
from mergelab.linalg.dense import squared_norms, svd_dense
from mergelab.linalg.lowrank import Factors, Spectrum
from mergelab.linalg.precision import full_precision
from mergelab.linalg.workspace import Workspace, panels, threads, trim_heap
from mergelab.ranks import (
    Rank,
    RankBudget,
    budget_note,
    own_rank,
    rank_note,
    rank_record,
    searched,
    target_rank,
    truncate,
)
from mergelab.report import LayerReport, Report
from mergelab.tables import counted


def extract(
    tuned: BaseSource | BaseWeights,
    base: BaseSource | BaseWeights,
    rank: Rank = 32,
    *,
    components: Sequence[str] | None = None,
    architecture: str | None = None,
    device: Device = AUTO,
    progress: bool | None = None,
) -> Adapter:
    """What tuning has changed in a model, as an adapter: of every layer the best approximation of `tuned - base`.

    Computed in float32, layer by layer; of the models only one layer is in memory at a time. Differences of biases are
    kept beside the layers, exactly. The singular values are exact where a layer's smaller side is at most 256, else by
    randomised subspace iteration, whose error is at most 0.1 % above the best of that rank; the report has the error.

    Args:
        tuned, base: safetensors files in any dialect, folders of diffusers pipelines, state dicts or loaded pipelines,
            each in any of these forms.
        rank: an int, a share of every layer's energy in (0, 1), or a budget, `RankBudget(mean=32)` or "mean=32". Where
            a model was tuned with an adapter and stored in half precision, the rounding is a change of full rank: the
            adapter's own rank leaves it out.
        components: which models to compare ("unet", "text_encoder"); by default all that both have.
        architecture: the base model's id ("sdxl", "flux", ...), where the weights do not tell.
        device: where to decompose, as for `merge`.
        progress: show bars; by default on a terminal only.

    Returns:
        The adapter with a `report`: what was kept of each layer, what does not differ, and what no adapter can hold.

    Raises:
        SourceError, FormatError: a model cannot be read.
        ArchitectureError: two base models, or one that cannot be told.
        LayerError: a layer is in one of the two alone, or of another shape, quantised, or its difference not finite.
        OptionError: a rank out of its range; no such component or device; nothing differs.

    Example:
        >>> from mergelab import load
        >>> from mergelab.formats.base_weights import open_base
        >>> base, ghost = open_base("miniature/sdxl"), load("miniature/sdxl/ghost")
        >>> tuned = {f"{name}.weight": base.weight(name) for name in base.names}
        >>> for name in ghost.layers:
        ...     tuned[f"{name}.weight"] += ghost.layers[name].delta_weight()
        >>> found = extract(tuned, "miniature/sdxl", rank=8)
        >>> len(found.layers), (found - ghost).norm() < 1e-4 * ghost.norm()
        (48, True)
    """
    rank = own_rank(rank)
    return compared(tuned, base, components=components, architecture=architecture, progress=progress).adapter(
        rank, device=device, progress=progress
    )


@dataclass(frozen=True)
class Compared:
    """A tuned model and its base model, and where they differ; no difference of weights is kept.

    Attributes:
        tuned, base: the two.
        architecture: the id of both.
        found: the differences.
        components: as they were asked for.
    """

    tuned: BaseWeights
    base: BaseWeights
    architecture: str
    found: Differences
    components: tuple[str, ...] | None = None

    def stand_in(self) -> Adapter:
        """An adapter with the layers that there will be, all zero: for what asks whether it can be written."""
        layers = {}
        for name in self.found.layers:
            shape = self.base.shape(name)
            layers[name] = layer_of(Factors(torch.zeros(shape[0], 1), torch.zeros(1, math.prod(shape[1:]))), shape)
        return Adapter(layers, self.found.biases, self.architecture, source=self._title, inputs=self._files)

    def adapter(self, rank: Rank, *, device: Device = AUTO, progress: bool | None = None) -> Adapter:
        """The best approximation; arguments and errors are those of `extract`, the rank is checked by `own_rank`."""
        shapes = [self.base.shape(name) for name in self.found.layers]
        chosen = chosen_device(device, sum(layer_work(shape, [1], dense=True) for shape in shapes))
        bar = tqdm(self.found.layers, "extracting", unit="layer", disable=None if progress is None else not progress)
        with hashing(self._files) as digest_of, bar:
            spectra = dict(self._spectra(bar, rank, chosen))
            inputs = [
                _record(model, weight, {path: digest_of(path) for path in self._files_of(model)})
                for model, weight in ((self.tuned, 1.0), (self.base, -1.0))
            ]
        known = {name: len(spectrum.S) for name, spectrum in spectra.items()}
        if isinstance(rank, RankBudget) and spectra:
            counts = rank.spend([spectrum.S for spectrum in spectra.values()])
            spectra = {name: s.truncated(count) for (name, s), count in zip(spectra.items(), counts)}
        layers = {name: layer_of(s.factors(), self.base.shape(name)) for name, s in spectra.items() if len(s.S)}
        options = {"rank": rank_record(rank), "components": list(self.components) if self.components else None}
        metadata = {
            "mergelab": Recipe("extract", options, inputs).to_json(),
            "modelspec.title": short_name(self.tuned.title),
        }
        return replace(
            self.stand_in(),
            layers=layers,
            metadata=metadata,
            report=self._report(rank, spectra, known),
        )

    def lines(self) -> list[str]:
        """What differs, in words."""
        found = self.found
        biases = f", and {counted(len(found.biases), 'bias tensor')}" if found.biases else ""
        return [f"{len(found.layers)} of {counted(found.compared, 'layer')} differ{biases}", *found.notes]

    def _spectra(self, names: Any, rank: Rank, device: torch.device) -> Iterator[tuple[str, Spectrum]]:
        """Of one layer after the other: what is kept, or of a budget what may be."""
        with full_precision(), threads() as pool:
            workspace = Workspace(pool if device.type == "cpu" else None)
            for name in names:
                change = self._delta(name).to(device)
                trim_heap()  # of what was read, before the next is taken
                yield name, _truncated(change, rank, workspace, name)
                del change
                trim_heap()

    def _delta(self, name: str) -> Tensor:
        change = self.tuned.weight(name).flatten(1)
        other = self.base.stored(f"{name}.weight").flatten(1)
        for rows in panels(len(change), 512):  # no second copy in float32
            change[rows] -= other[rows].float()
        return change

    def _report(self, rank: Rank, spectra: dict[str, Spectrum], known: dict[str, int]) -> Report:
        rows = tuple(
            LayerReport(
                name,
                len(s.S),
                float(s.energy),
                float(s.kept),
                note=rank_note(rank, len(s.S), known[name] if known[name] < full_rank(self.base.shape(name)) else None),
            )
            for name, s in spectra.items()
        )
        alike = self.found.compared - len(self.found.layers)
        notes = [
            budget_note(rank, [row.rank for row in rows]),
            f"{alike} of {counted(self.found.compared, 'layer')} do not differ, and are left out" if alike else "",
            f"{counted(len(self.found.biases), 'difference')} of a bias, kept exactly" if self.found.biases else "",
        ]
        return Report((), rows, (*filter(None, notes), *self.found.notes, *self.tuned.notes, *self.base.notes))

    @property
    def _title(self) -> str:
        return f"{short_name(self.tuned.title)} - {short_name(self.base.title)}"

    @property
    def _files(self) -> tuple[Path, ...]:
        return tuple(dict.fromkeys((*self._files_of(self.tuned), *self._files_of(self.base))))

    def _files_of(self, model: BaseWeights) -> list[Path]:
        """Those with weights that differ."""
        tensors = [f"{name}.weight" for name in self.found.layers]
        return list(dict.fromkeys(place[0] for tensor in tensors if (place := model.place(tensor))))


def compared(
    tuned: BaseSource | BaseWeights,
    base: BaseSource | BaseWeights,
    *,
    components: Sequence[str] | None = None,
    architecture: str | None = None,
    progress: bool | None = None,
) -> Compared:
    """Two models, opened and compared; arguments and errors are those of `extract`.

    Example:
        >>> compared("miniature/flux", "miniature/flux")
        Traceback (most recent call last):
            ...
        mergelab.errors.OptionError: miniature/flux and miniature/flux do not differ in any of 86 layers: there
        is nothing to extract
    """
    if isinstance(components, str) or (components is not None and not all(isinstance(x, str) for x in components)):
        raise OptionError(f"components={short_repr(components)}: expected a list of names, such as ['unet']")
    models = [x if isinstance(x, BaseWeights) else open_base(x, architecture) for x in (tuned, base)]
    ids = {model.architecture for model in models} - {None}
    if len(ids) != 1:
        said = " and ".join(f"{model.title} is {model.architecture or 'of an unknown base model'}" for model in models)
        remedy = "extract from a model and its own base" if ids else "say architecture= (--architecture)"
        raise ArchitectureError(f"{said}: expected two of one base model; {remedy}")
    id = str(ids.pop())
    for i, source in enumerate((tuned, base)):  # what one tells goes for the other, whose names are read by it
        if models[i].architecture is None:
            models[i] = replace(source, architecture=id) if isinstance(source, BaseWeights) else open_base(source, id)
    found = differences(models[0], models[1], components, progress)
    trim_heap()
    if not found.layers and not found.biases:
        beside = f"; {'; '.join(found.notes)}" if found.notes else ""
        raise OptionError(
            f"{models[0].title} and {models[1].title} do not differ in any of {counted(found.compared, 'layer')}: "
            f"there is nothing to extract{beside}"
        )
    return Compared(models[0], models[1], id, found, tuple(components) if components else None)


def _truncated(change: Tensor, rank: Rank, workspace: Workspace, name: str) -> Spectrum:
    """The leading part of one difference, on the CPU, in memory of its own."""
    limit = min(change.shape)
    energy = squared_norms(change, workspace)
    if not bool(energy.isfinite()):
        raise LayerError(f"layer {name}: the difference of the two models has values that are NaN or infinite")
    target = rank.searched([], limit) if isinstance(rank, RankBudget) else target_rank(rank, [], limit)
    found = truncate(svd_dense(change, searched(target, limit), workspace=workspace, energy=energy), target)
    return found._replace(U=found.U.cpu().clone(), S=found.S.clone(), V=found.V.cpu().clone())


def _record(model: BaseWeights, weight: float, digests: dict[Path, str]) -> dict[str, Any]:
    """One of the two as a recipe keeps it, with the sha256 of its file, or of those files of a folder that differ."""
    alone = next(iter(digests.values())) if len(digests) == 1 else None
    record = {"name": short_name(model.title), "weight": weight, "sha256": alone}
    files = {f"{path.parent.name}/{path.name}": digest for path, digest in digests.items()}
    return record | ({"files": files} if len(digests) > 1 else {})
