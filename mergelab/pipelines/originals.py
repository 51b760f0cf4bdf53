"""The weights of a pipeline as they were before anything was fused: one original for each tensor, and what is on it.

What a tensor holds is a function of its original and of the fusings on it, in their order. So they can be taken back in
any order: the tensor is then what it would be, had the one that is gone never been.
"""

from __future__ import annotations

import os
import uuid
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mergelab.checks import short_repr
from mergelab.engine.changes import Change
from mergelab.errors import LayerError, OptionError, OutputError
from mergelab.formats.messages import about
from mergelab.linalg.adding import added
from mergelab.pipelines.places import Place

Original = Callable[[], Tensor]
"""Gives back the bits of a tensor as it was."""
Keeper = Callable[[str, Tensor], Original]
"""Keeps the bits of a tensor of this name."""


@dataclass(eq=False)
class _Record:
    """One tensor that something is fused into.

    Attributes:
        original: as it was.
        checksum: of what mergelab wrote last.
        active: key of a fusing -> its changes, in their order.
    """

    original: Original
    checksum: int
    active: dict[object, tuple[Change, ...]] = field(default_factory=dict)


_RECORDS: weakref.WeakKeyDictionary[nn.Module, dict[str, _Record]] = weakref.WeakKeyDictionary()


def keeper_of(keep: str | os.PathLike[str]) -> Keeper:
    """Where originals are kept: "device", "cpu", or a folder, whose files go when they are no longer needed.

    Raises:
        OptionError: none of these.
    """
    if keep == "device":
        return lambda _, tensor: _copy(tensor, tensor.device)
    if keep == "cpu":
        return lambda _, tensor: _copy(tensor, torch.device("cpu"))
    if not isinstance(keep, (str, os.PathLike)) or not Path(keep).is_dir():
        raise OptionError(f"keep={short_repr(keep)}: expected 'device', 'cpu' or a folder that exists")
    folder = Path(keep)
    return lambda name, tensor: _File(folder / f"{name}.{uuid.uuid4().hex[:8]}.safetensors", tensor)


def _copy(tensor: Tensor, device: torch.device) -> Original:
    kept = tensor.detach().to(device, copy=True)
    return lambda: kept


class _File:
    """A tensor in a file, which is removed with it."""

    def __init__(self, path: Path, tensor: Tensor) -> None:
        self._path = path
        weakref.finalize(self, path.unlink, missing_ok=True)
        try:
            save_file({"tensor": tensor.detach().contiguous()}, path)
        except Exception as error:  # what the package makes of a full disk is no OSError
            raise OutputError(f"{path}: the original cannot be kept: {error}") from error

    def __call__(self) -> Tensor:
        return load_file(self._path)["tensor"]


def check_untouched(place: Place) -> None:
    """Raises where somebody else has changed a tensor since something was fused into it.

    Raises:
        LayerError: its values, dtype or shape are not those that were written.
    """
    record = _RECORDS.get(place.module, {}).get(place.leaf)
    if record is not None and _checksum(place.parameter) != record.checksum:
        raise LayerError(
            f"{place.name}: its values are not those that mergelab wrote: something else has changed, cast or replaced "
            "them since they were fused; take that back first, or load the pipeline anew (nothing was changed now)"
        )


def put_on(place: Place, key: object, keep: Keeper) -> None:
    """Adds the changes to a tensor, whose original is kept if it is not yet."""
    records = _RECORDS.setdefault(place.module, {})
    if (record := records.get(place.leaf)) is None:
        record = _Record(keep(place.name, place.parameter), _checksum(place.parameter))
    # Said before it is done: what is interrupted has then to be taken off.
    record.active[key] = place.changes
    records[place.leaf] = record
    _write(place, record, record.active)


def take_off(place: Place, key: object) -> None:
    """Takes the changes back from a tensor, also where adding them was interrupted; does nothing where none are."""
    records = _RECORDS.get(place.module, {})
    record = records.get(place.leaf)
    if record is None or key not in record.active:
        return
    others = {other: changes for other, changes in record.active.items() if other is not key}
    _write(place, record, others)
    record.active = others
    if not others:
        del records[place.leaf]


@torch.no_grad()
def _write(place: Place, record: _Record, active: Mapping[object, tuple[Change, ...]]) -> None:
    parameter, device = place.parameter, place.parameter.device
    with about(place.name):
        changes = [change.factors(device) for found in active.values() for change in found]
        parameter.copy_(added(record.original().to(device), changes))
    record.checksum = _checksum(parameter)


def _checksum(tensor: Tensor) -> int:
    """Of all bits, the same on every device; eight bytes at a time, where they go in eights, as fast as memory is."""
    flat = tensor.detach().reshape(-1)
    if flat.storage_offset():
        flat = flat.clone()
    eights = flat.numel() * flat.element_size() % 8 == 0
    bits = flat.view(torch.int64 if eights else {2: torch.int16, 4: torch.int32}[flat.element_size()])
    return hash((int(bits.sum(dtype=torch.int64)), tensor.dtype, tensor.shape))
