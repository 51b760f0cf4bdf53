"""Adapters fused into a base model in files: from a checkpoint to a new one, tensor by tensor."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from mergelab.checks import short_repr
from mergelab.engine.changes import Change, Changes, Loras, Weights, collect
from mergelab.engine.provenance import input_record
from mergelab.errors import ArchitectureError, FormatError, LayerError, OptionError, OutputError
from mergelab.formats.architectures import ARCHITECTURES
from mergelab.formats.checkpoints import Checkpoint, Slot, WeightFile, open_checkpoint
from mergelab.formats.files import replacing
from mergelab.formats.streaming import Edit, rewrite
from mergelab.formats.targets import check_target
from mergelab.layer import same_weight
from mergelab.linalg.adding import added
from mergelab.linalg.lowrank import Factors
from mergelab.publishing.recipe import package_version
from mergelab.tables import counted

# By key of a tensor: what is added to which of its rows.
_Edits = dict[str, list[tuple[Slot, tuple[Change, ...]]]]
_DTYPES = ("F64", "F32", "F16", "BF16")


@dataclass(frozen=True)
class FusedCheckpoint:
    """What was written, or would be in a dry run.

    Attributes:
        path: the new file or folder.
        changed: keys of its tensors that are changed; in a folder after the name of the file.
        notes: what of the base model is not in it.
    """

    path: Path
    changed: tuple[str, ...]
    notes: tuple[str, ...] = ()

    def lines(self) -> list[str]:
        """In words."""
        return [f"{self.path}: {counted(len(self.changed), 'tensor')} changed", *self.notes]


def fuse_checkpoint(
    base: str | os.PathLike[str],
    loras: Loras,
    output: str | os.PathLike[str],
    weights: Weights | None = None,
    *,
    overwrite: bool = False,
    progress: bool | None = None,
    dry_run: bool = False,
) -> FusedCheckpoint:
    """Write a base model with adapters fused into its weights, in the form it has.

    Keys, dtypes, shapes, order and header stay; a weight becomes `weight + sum of weight_i * delta_weight_i`, computed
    in float32 and rounded once. The model is never in memory, and the output appears whole or not at all.

    Args:
        base: a safetensors file (of diffusers, ComfyUI, the original authors, ...) or a diffusers pipeline's folder.
        loras: an adapter or several, or anything that `load` takes.
        output: a new file, or a new folder for a folder.
        weights: as for `merge`: one for each adapter, a number or a mapping from components or layer patterns.
        overwrite: replace a file that exists; a folder never.
        progress: show a bar; by default on a terminal only.
        dry_run: check all of it, and write nothing.

    Raises:
        SourceError, FormatError: there is no such base model, or it cannot be read.
        ArchitectureError, LayerError: the adapters are for another one, or a layer has no tensor of its shape there.
        OutputError: the output cannot be written, or would replace an input.

    Example:
        >>> import tempfile
        >>> folder = tempfile.mkdtemp()
        >>> len(fuse_checkpoint("miniature/sdxl", "miniature/sdxl/ghost", f"{folder}/ghostly", 0.8).changed)
        48
    """
    if not isinstance(base, (str, os.PathLike)):
        raise OptionError(f"base={short_repr(base)}: expected a file or a folder; ml.fuse is for loaded pipelines")
    changes = collect(loras, weights)
    checkpoint, target = open_checkpoint(os.fspath(base)), Path(output).expanduser()
    plans = _plan(checkpoint, changes)
    notes = tuple(f"left out: {path.name}, a checkpoint of its own" for path in checkpoint.left_out)
    _check_output(checkpoint, changes, target, overwrite)
    names = [(file.header.path.relative_to(checkpoint.path), key) for file, plan in plans for key in plan]
    result = FusedCheckpoint(target, tuple(key if path == Path() else f"{path}: {key}" for path, key in names), notes)
    if dry_run:
        return result
    size = sum(entry.end - entry.begin for file in checkpoint.files for entry in file.header.entries.values())
    bar = tqdm(total=size, desc="fusing", unit="B", unit_scale=True, disable=None if progress is None else not progress)
    with bar, replacing(target) as temporary:
        for path in checkpoint.others:
            copy = temporary / path.relative_to(checkpoint.path)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copy)
        for file, plan in plans:
            copy = temporary / file.header.path.relative_to(checkpoint.path)
            copy.parent.mkdir(parents=True, exist_ok=True)
            edits = {key: _edit(parts) for key, parts in plan.items()}
            strings = {"mergelab": _recipe(checkpoint, file, changes)} if edits else {}
            rewrite(file.header, copy, edits, strings, bar.update)
    return result


def _plan(checkpoint: Checkpoint, changes: Changes) -> list[tuple[WeightFile, _Edits]]:
    """What is changed in which file.

    Raises:
        ArchitectureError: the base model has none of the layers.
        LayerError, FormatError: a layer has no tensor, one of another shape or dtype, or several.
    """
    architecture = ARCHITECTURES.get(changes.architecture or "")
    slots = [(file, file.slots(architecture)) for file in checkpoint.files]
    checkpoint.check_only({name.partition(".")[0] for name in changes.by_tensor})
    edits: dict[Path, _Edits] = {file.header.path: {} for file in checkpoint.files}
    missing = []
    for name, found in changes.by_tensor.items():
        places = [(file, own[name]) for file, own in slots if name in own]
        for file, slot in places:
            if slot is None:
                raise FormatError(f"{file.header.path}: more than one tensor is {name}; cannot tell which to change")
            _check_fits(file, name, slot, found)
            edits[file.header.path].setdefault(slot.key, []).append((slot, found))
        missing += [] if places else [name]
    if len(missing) == len(changes.by_tensor):
        raise ArchitectureError(
            f"{checkpoint.path}: has none of the adapters' layers, such as {missing[0]}: it is another base model, or "
            "one whose names mergelab does not know"
            f"{'' if architecture else '; architecture= of load (--architecture) tells which'}"
        )
    if missing:
        raise LayerError(
            f"{checkpoint.path}: has no tensor for {counted(len(missing), 'layer')} of the adapters, {missing[0]} the "
            "first; adapter.select(...) takes those that it has"
        )
    return [(file, edits[file.header.path]) for file in checkpoint.files]


def _check_fits(file: WeightFile, name: str, slot: Slot, changes: tuple[Change, ...]) -> None:
    if (dtype := file.header.entries[slot.key].dtype) not in _DTYPES:
        raise LayerError(
            f"{file.header.path}: {slot.key} is {dtype}, expected one of {', '.join(_DTYPES)}; fuse into the base "
            "model before it is quantised"
        )
    for change in changes:
        if not same_weight(change.shape, slot.shape):
            raise LayerError(
                f"{change.owner}: {name}: a change of shape {change.shape}, expected {slot.shape} as in "
                f"{file.header.path}; is the adapter for another base model?"
            )


def _check_output(checkpoint: Checkpoint, changes: Changes, target: Path, overwrite: bool) -> None:
    inputs = [path for adapter in changes.adapters for path in adapter.inputs]
    inputs += [file.header.path for file in checkpoint.files]
    if is_folder := checkpoint.path.is_dir():
        if target.suffix == ".safetensors":
            raise OutputError(f"{target}: the base model is a folder, expected the name of a folder")
        if target.exists():
            raise OutputError(f"{target}: exists already; choose another name for the folder")
        if checkpoint.path.resolve() in target.resolve().parents:
            raise OutputError(f"{target}: lies in the base model's folder; choose another place")
    check_target(target, inputs, overwrite, "peft" if is_folder else "diffusers")
    paths = [*checkpoint.others, *(file.header.path for file in checkpoint.files)]
    needed, free = sum(path.stat().st_size for path in paths), shutil.disk_usage(target.parent).free
    if needed > free:
        raise OutputError(f"{target}: needs {needed / 1e9:.1f} GB, and there are {free / 1e9:.1f} GB free")


def _edit(parts: list[tuple[Slot, tuple[Change, ...]]]) -> Edit:
    def edit(tensor: Tensor) -> None:
        for slot, changes in parts:
            factors = [change.factors() for change in changes]
            if slot.swapped:
                factors = [Factors(torch.roll(f.B, f.B.shape[0] // 2, dims=0), f.A) for f in factors]
            tensor[slot.rows] = added(tensor[slot.rows], factors)

    return edit


def _recipe(checkpoint: Checkpoint, file: WeightFile, changes: Changes) -> str:
    """What the header says of how it was made; what it said before stands within."""
    inputs = [input_record(adapter, weight) for adapter, weight in zip(changes.adapters, changes.weights)]
    content = {"fused_into": checkpoint.path.name, "inputs": inputs, "version": package_version()}
    if before := file.header.metadata.get("mergelab"):
        content["before"] = before
    return json.dumps(content, sort_keys=True, default=str)
