"""The weights of a pipeline as they were before anything was fused: one original for each tensor, and what is on it.

What a tensor holds is a function of its original and of the fusings on it, in their order. So they can be taken back in
any order: the tensor is then what it would be, had the one that is gone never been.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from mergelab.engine.changes import Change
from mergelab.errors import LayerError, OptionError
from mergelab.formats.messages import about, one_line
from mergelab.linalg.adding import added
from mergelab.pipelines.keeping import Keeper, Original
from mergelab.pipelines.places import Place, check_here
from mergelab.tables import counted


@dataclass(eq=False)
class _Record:
    """One tensor that something is fused into.

    Attributes:
        name: canonical.
        original: as it was.
        checksum: of what mergelab wrote last; None while it writes, and after that has failed.
        active: key of a fusing -> its changes, in their order.
    """

    name: str
    original: Original
    checksum: int | None = None
    active: dict[object, tuple[Change, ...]] = field(default_factory=dict)


_RECORDS: weakref.WeakKeyDictionary[nn.Module, dict[str, _Record]] = weakref.WeakKeyDictionary()


def changed_places(models: Iterable[nn.Module]) -> list[Place]:
    """The tensors of models that something is fused into, or that a failure has left changed."""
    modules = dict.fromkeys(module for model in models for module in model.modules())
    return [Place(record.name, module, leaf) for module in modules for leaf, record in _RECORDS.get(module, {}).items()]


def is_on(place: Place, key: object) -> bool:
    """Whether this fusing is part of a tensor."""
    record = _record(place)
    return record is not None and key in record.active


def check_untouched(place: Place) -> None:
    """Raises where somebody else has changed a tensor since something was fused into it.

    Raises:
        LayerError: its values, dtype or shape are not those that were written.
    """
    record = _record(place)
    if record is None or record.checksum is None:
        return
    parameter = getattr(place.module, place.leaf, None)
    if type(parameter) is not nn.Parameter or _checksum(parameter) != record.checksum:
        raise LayerError(
            f"{place.name}: its values are not those that mergelab wrote: something else has changed, cast or replaced "
            "them since they were fused (nothing was changed now); take that back first, or give it up: "
            "unfuse(force=True) writes what was there before"
        )


def check_untied(places: Iterable[Place]) -> None:
    """Raises where something is fused into a tensor already under the name of another module.

    Raises:
        OptionError: it is.
    """
    known = {
        id(getattr(module, leaf, None)): (module, leaf, record.name)
        for module, records in _RECORDS.items()
        for leaf, record in records.items()
    }
    for place in places:
        module, leaf, name = known.get(id(place.parameter), (place.module, place.leaf, place.name))
        if (module, leaf) != (place.module, place.leaf):
            raise OptionError(
                f"{place.name} and {name} are one tensor of the model, into which something is fused already; take "
                "that back first"
            )


def put_on(place: Place, key: object, changes: Sequence[Change], keep: Keeper) -> None:
    """Adds changes to a tensor, whose original is kept if it is not yet."""
    records = _RECORDS.setdefault(place.module, {})
    record = records.get(place.leaf) or _Record(place.name, keep(place.name, place.parameter))
    # Said before it is done: what is interrupted has then to be taken off. Of tensors that stay as they are: an adapter
    # may be trained further, and this fusing is what it was.
    record.active[key] = tuple(change.copied() for change in changes)
    records[place.leaf] = record
    _write(place, record, record.active)


def roll_back(places: Iterable[Place], key: object) -> None:
    """Takes off the changes of a fusing that failed, wherever they are.

    Raises:
        LayerError: some tensors cannot be written; their originals are still kept, for `restore`.
    """
    ours = [place for place in places if is_on(place, key)]
    for place in ours:
        _RECORDS[place.module][place.leaf].active.pop(key)
    _write_all(ours)


def take_off(places: Iterable[Place], key: object) -> None:
    """Takes the changes of a fusing back: from all tensors, or, where that fails, from none."""
    ours = [place for place in places if is_on(place, key)]
    try:
        for place in ours:
            record = _RECORDS[place.module][place.leaf]
            _write(place, record, {other: changes for other, changes in record.active.items() if other is not key})
    except Exception:  # what is left is too large for float16, say
        _write_all(ours)
        raise
    except BaseException:  # Ctrl-C, say: finish first
        take_off(ours, key)
        raise
    for place in ours:
        _RECORDS[place.module][place.leaf].active.pop(key)
        _forget_where_bare(place)


def restore(places: Iterable[Place]) -> None:
    """Gives tensors back as they were, whatever is fused into them.

    Raises:
        LayerError: some cannot be written; all others are, and the originals of these are still kept.
    """
    places = list(places)
    for place in places:
        _RECORDS[place.module][place.leaf].active.clear()
    _write_all(places)


def _record(place: Place) -> _Record | None:
    return _RECORDS.get(place.module, {}).get(place.leaf)


def _forget_where_bare(place: Place) -> None:
    records = _RECORDS[place.module]
    if not records[place.leaf].active:
        del records[place.leaf]


def _write_all(places: Sequence[Place]) -> None:
    """Writes what is on each tensor; a failure does not keep the others from it."""
    failed: dict[str, Exception] = {}
    for place in places:
        try:
            record = _RECORDS[place.module][place.leaf]
            _write(place, record, record.active)
            _forget_where_bare(place)
        except Exception as error:
            failed[place.name] = error
    if failed:
        name, first = next(iter(failed.items()))
        raise LayerError(
            f"{name}: {counted(len(failed), 'tensor')} could not be written back ({type(first).__name__}: "
            f"{one_line(first)}), and may still hold what was fused; ml.unfuse(pipeline) tries again, and nothing else "
            "should use the pipeline before that"
        ) from first


@torch.no_grad()
def _write(place: Place, record: _Record, active: Mapping[object, tuple[Change, ...]]) -> None:
    parameter, device = place.parameter, place.parameter.device
    check_here(place)
    with about(place.name):
        original = record.original()
        if parameter.shape != original.shape:
            raise LayerError(f"it is {tuple(parameter.shape)} now, and was {tuple(original.shape)}; load it anew")
        changes = [change.factors(device) for found in active.values() for change in found]
        # The original is copied as it is: where memory is full, there has to be a way back that needs none.
        values = added(original.to(device), changes) if changes else original
        record.checksum = None
        parameter.copy_(values)
    record.checksum = _checksum(parameter)


def _checksum(tensor: Tensor) -> int:
    """Of all bits and their order, the same on every device; eight bytes at a time, where rows go in eights."""
    rows = tensor.detach().contiguous().reshape(tensor.shape[0], -1)
    if rows.storage_offset():
        rows = rows.clone()
    eights = rows.shape[1] * rows.element_size() % 8 == 0
    bits = rows.view(torch.int64 if eights else {2: torch.int16, 4: torch.int32}[rows.element_size()])
    sums = [_weighted(bits.sum(dim, dtype=torch.int64)) for dim in (0, 1)]
    return hash((*torch.stack(sums).tolist(), tensor.dtype, tensor.shape))


def _weighted(sums: Tensor) -> Tensor:
    """Odd numbers as weights, so that no change of one entry vanishes."""
    return (sums * torch.arange(1, 2 * len(sums), 2, device=sums.device)).sum()
