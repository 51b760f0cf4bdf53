"""A file that is looked at: as it lies there, as an adapter where it is one, and what was measured on it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from mergelab.adapter import Adapter, Source, load
from mergelab.errors import BaseModelNeeded, MergelabError, OptionError, SourceError
from mergelab.formats import ReadOptions, located
from mergelab.formats.glancing import Glance, glance_at, glance_over, outline_of, structure_of
from mergelab.layer import AdapterData, full_rank
from mergelab.linalg.values import singular_values
from mergelab.linalg.workspace import each_layer

# Singular values below this share of the largest are rounding.
_NOTHING = 1e-6


class Values(NamedTuple):
    """What a tensor holds: how many values that are no finite numbers, and the largest magnitude of the others."""

    not_finite: int
    largest: float


@dataclass(frozen=True, eq=False)
class Specimen:
    """A file that is looked at.

    Attributes:
        glance: what it shows before it is understood.
        adapter: None where it is refused.
        refusal: why, without the name of the file.
        told: the architecture that the user named.
        needs_base: whether it is refused for want of the base model alone.
    """

    glance: Glance
    adapter: Adapter | None
    refusal: str = ""
    told: str | None = None
    needs_base: bool = False

    @cached_property
    def data(self) -> AdapterData | None:
        """The layers: of the adapter, else as far as a header tells, with nothing in them."""
        return self.adapter or (outline_of if self.needs_base else structure_of)(self.glance)

    @cached_property
    def values(self) -> dict[str, Values]:
        """Of every tensor of numbers that can be read, by its key."""
        tensors = self.glance.tensors
        return each_layer(lambda key: _values(tensors[key]), [k for k, t in tensors.items() if _has_numbers(t)])

    @property
    def spectra(self) -> dict[str, Tensor]:
        """The singular values of every layer's change, the largest first; of layers that can be computed with."""
        return {name: s for name, s in self._spectra.items() if isinstance(s, Tensor)}

    @property
    def faults(self) -> dict[str, str]:
        """Why the other layers cannot be computed with."""
        return {name: s for name, s in self._spectra.items() if isinstance(s, str)}

    @cached_property
    def _spectra(self) -> dict[str, Tensor | str]:
        adapter = self.adapter
        if adapter is None:
            return {}

        def spectrum(name: str) -> Tensor | str:
            try:
                factors = adapter.matrices(name)
            except MergelabError as error:
                return _without_names(str(error), [adapter.source, f"layer {name}"])
            return singular_values(factors)[: full_rank(adapter.layers[name].shape)]

        return each_layer(spectrum, adapter.layers)

    @cached_property
    def ranks(self) -> dict[str, int]:
        """How many directions the change of every layer has; 0 for one that changes nothing."""
        return {name: int((s > _NOTHING * s[0]).sum()) if float(s[0]) > 0 else 0 for name, s in self.spectra.items()}


def specimen_of(source: Source, options: ReadOptions) -> Specimen:
    """Look at a source.

    Raises:
        SourceError, OptionError: nothing there, or it cannot be opened; no such architecture.
    """
    adapter, refusal, needs_base = None, "", False
    try:
        adapter = load(source, allow_pickle=options.allow_pickle, architecture=options.architecture, base=options.base)
    except (SourceError, OptionError):
        raise
    except MergelabError as error:
        refusal, needs_base = str(error), isinstance(error, BaseModelNeeded)
    if isinstance(source, Mapping):
        glance = glance_over(source)
    else:
        files = adapter.inputs if adapter else _files(Path(source), source)
        refusal = _without_names(refusal, [str(source), *map(str, files)])
        glance = glance_at([path for path in files if path.suffix != ".json"], options)
    return Specimen(glance, adapter, refusal.removeprefix("<state dict>: "), options.architecture, needs_base)


def _files(path: Path, source: object) -> list[Path]:
    if path.is_dir():
        return sorted(path.glob("*.safetensors")) or sorted(path.glob("*/*.safetensors"))
    try:
        found = located(str(source))
    except SourceError:  # a folder elsewhere
        return []
    return [found] if found else []


def _without_names(refusal: str, names: list[str]) -> str:
    for name in names:
        refusal = refusal.removeprefix(f"{name}: ")
    return refusal


def _has_numbers(tensor: Tensor) -> bool:
    return tensor.is_floating_point() and tensor.numel() > 0


def _values(tensor: Tensor) -> Values:
    largest = float(torch.stack(tensor.aminmax()).abs().max())  # in one pass; NaN where one is
    if math.isfinite(largest):
        return Values(0, largest)
    finite = torch.isfinite(tensor)
    rest = tensor[finite]
    return Values(int((~finite).sum()), float(rest.abs().max()) if len(rest) else 0.0)
