"""Base models in files: a single file of any dialect, or a diffusers folder; and where in them each layer is."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate, pairwise
from pathlib import Path

from mergelab import miniature
from mergelab.errors import FormatError, LayerError, SourceError
from mergelab.formats.architectures import text_encoders
from mergelab.formats.architectures.architecture import Architecture
from mergelab.formats.names import Located, locate
from mergelab.formats.open_clip import located, split_key
from mergelab.formats.streaming import Header, read_header

INDEX = "model_index.json"
# What holds weights that are not safetensors, beside which changed ones would be a second truth.
OTHER_WEIGHTS = (".bin", ".pt", ".pth", ".ckpt", ".msgpack", ".h5", ".onnx", ".gguf")


@dataclass(frozen=True)
class Slot:
    """Where a tensor of a layer is in a file.

    Attributes:
        key: of the file's tensor.
        rows: which of its rows.
        shape: of these.
        swapped: their halves are (shift, scale), diffusers' (scale, shift).
    """

    key: str
    rows: slice
    shape: tuple[int, ...]
    swapped: bool


@dataclass(frozen=True)
class WeightFile:
    """A file of weights.

    Attributes:
        header: what it says of itself.
        component: whose weights it holds, where its folder tells.
    """

    header: Header
    component: str | None

    def slots(self, architecture: Architecture | None) -> dict[str, Slot | None]:
        """Where the tensors of layers are, by canonical name with ".weight" or ".bias"; None where several are."""
        modules: dict[str, dict[str, str]] = {}
        for key in self.header.entries:
            module, leaf = split_key(key)
            if leaf in ("weight", "bias"):
                modules.setdefault(module, {})[leaf] = key
        found: dict[str, Slot | None] = {}
        for module, where in self._located(list(modules), architecture).items():
            for name, slot in self._of_module(modules[module], where):
                found[name] = None if name in found else slot
        return found

    def _located(self, modules: list[str], architecture: Architecture | None) -> dict[str, Located]:
        if self.component is None:
            return {**locate(modules, architecture), **{m: where for m in modules if (where := located(m))}}
        in_text = self.component.startswith("text_encoder")
        return {m: Located(self.component, text_encoders.canonical(m) if in_text else m) for m in modules}

    def _of_module(self, keys: dict[str, str], where: Located) -> Iterator[tuple[str, Slot]]:
        entries = self.header.entries
        for leaf, key in keys.items():
            shape = entries[key].shape
            if not shape:
                continue
            if where.original is None:
                yield f"{where.component}.{where.path}.{leaf}", Slot(key, slice(0, shape[0]), shape, False)
                continue
            beside = entries[keys["weight"]].shape if "weight" in keys else shape
            try:
                sizes = where.original.sizes(shape[0], beside[1] if len(beside) > 1 else shape[0])
            except LayerError:
                continue  # a module of another model by a name that this one has, too
            for part, (begin, end) in zip(where.original.parts, pairwise(accumulate(sizes, initial=0))):
                rows = slice(begin, end)
                slot = Slot(key, rows, (end - begin, *shape[1:]), where.original.swapped)
                yield f"{where.component}.{part}.{leaf}", slot


@dataclass(frozen=True)
class Checkpoint:
    """A base model.

    Attributes:
        path: a file or a folder.
        files: of weights, in it.
        others: what else is copied, all files of the folder.
        left_out: files of the folder that are checkpoints of their own.
    """

    path: Path
    files: tuple[WeightFile, ...]
    others: tuple[Path, ...] = ()
    left_out: tuple[Path, ...] = ()

    def check_only(self, components: set[str]) -> None:
        """Raises where the weights of one of these components are there in another format as well.

        Raises:
            FormatError: they are, and would stay as they are.
        """
        for path in self.others:
            if path.relative_to(self.path).parts[0] in components and path.suffix in OTHER_WEIGHTS:
                raise FormatError(
                    f"{path}: holds weights in another format, which would stay as they are; remove it, or save the "
                    "pipeline anew (pipeline.save_pretrained), then fuse"
                )


def open_checkpoint(source: str | Path) -> Checkpoint:
    """A base model from a safetensors file, a diffusers folder, or the name of a small one ("miniature/sdxl").

    Raises:
        SourceError: there is none.
        FormatError: a file is damaged, or the folder is no pipeline's.

    Example:
        >>> [file.component for file in open_checkpoint("miniature/sdxl").files]
        ['text_encoder', 'text_encoder_2', 'unet', 'vae']
    """
    path = Path(source).expanduser()
    if str(source).startswith(miniature.PREFIX) and not path.exists():
        path = miniature.folder(str(source).removeprefix(miniature.PREFIX))
    if path.is_file():
        return Checkpoint(path, (WeightFile(read_header(path), None),))
    if not path.is_dir():
        raise SourceError(f"{source}: there is no such file or folder; a model on the Hub has to be downloaded first")
    index = path / INDEX
    if not index.is_file():
        raise FormatError(f"{path}: has no {INDEX}, expected a safetensors file or the folder of a diffusers pipeline")
    try:
        content = json.loads(index.read_bytes())
        components = {name for name, what in content.items() if isinstance(what, list) and what[:1] != [None]}
    except (ValueError, AttributeError, OSError) as error:
        raise FormatError(f"{index}: cannot be read: {error}") from None
    files = sorted(p for p in _files_in(path) if p.relative_to(path).parts[0][0] != ".")
    there = {file.relative_to(path).parts[0] for file in files}
    if missing := sorted(name for name in components if name not in there):
        raise FormatError(f"{path}: {INDEX} names {missing[0]!r}, and there is no file in that folder; is it whole?")
    weights = [file for file in files if file.suffix == ".safetensors"]
    alone = [file for file in weights if file.parent == path]
    return Checkpoint(
        path,
        tuple(
            WeightFile(read_header(file), _component(file, path, components)) for file in weights if file not in alone
        ),
        tuple(file for file in files if file not in weights),
        tuple(alone),
    )


def _files_in(folder: Path) -> Iterator[Path]:
    """All files below, also through links to folders, as people share a VAE; a link back up is not followed."""
    for place, folders, names in os.walk(folder, followlinks=True):
        above = {Path(place).resolve(), *Path(place).resolve().parents}
        folders[:] = [name for name in folders if (Path(place) / name).resolve() not in above]
        yield from (file for name in names if (file := Path(place) / name).is_file())


def _component(file: Path, folder: Path, components: set[str]) -> str:
    """The folder that a file is in; of what is no component, the path, so that no layer is looked for in it."""
    first = file.relative_to(folder).parts[0]
    return first if first in components and file.parent == folder / first else str(file.relative_to(folder))
