"""From what a user gives for a base model (a file, a folder, a state dict, a live model) to the weights in it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from mergelab.checks import short_repr
from mergelab.errors import FormatError, OptionError, SourceError
from mergelab.formats.architectures import ARCHITECTURES
from mergelab.formats.checkpoints import INDEX, OTHER_WEIGHTS, WeightFile, open_checkpoint
from mergelab.formats.mapped import DTYPES
from mergelab.formats.prefixes import COMPONENTS, without_wrapping_steps
from mergelab.formats.streaming import Entry, Header, read_header, read_rows
from mergelab.formats.variants import of_one_variant

OFFLOADED = "on the meta device"
"""In place of a dtype: the values are not there."""
# Text encoders by transformers' class; those of another may be any of several.
_CLIP = {"CLIPTextModel": "text_encoder", "CLIPTextModelWithProjection": "text_encoder_2"}

BaseSource = str | os.PathLike[str] | Mapping[str, Tensor] | nn.Module | Any
"""A file, a folder, a state dict, one model, or a loaded pipeline, which has `components`."""


@dataclass(frozen=True)
class Part:
    """Some weights of a base model.

    Attributes:
        file: their keys, shapes and dtypes.
        read: rows of a tensor by its key, in memory of their own.
    """

    file: WeightFile
    read: Callable[[str, slice], Tensor]


@dataclass(frozen=True)
class Opened:
    """A base model.

    Attributes:
        title: for messages.
        parts: its weights.
        notes: what was not read.
    """

    title: str
    parts: tuple[Part, ...]
    notes: tuple[str, ...] = ()


def open_source(source: BaseSource, component: str | None = None) -> Opened:
    """What is in a source.

    Args:
        source: as `open_base` takes it.
        component: whose weights one model's are, where its class does not tell.

    Raises:
        SourceError, FormatError: there is nothing, or no safetensors.
        OptionError: it is no such thing; it cannot be told which component a model is.

    Example:
        >>> opened = open_source("miniature/flux")
        >>> [part.file.component for part in opened.parts]
        ['text_encoder', 'text_encoder_2', 'transformer', 'vae']
    """
    title = type(source).__name__
    if isinstance(source, Mapping):
        return Opened("<state dict>", (_of_tensors(source, component, "<state dict>"),))
    if isinstance(source, nn.Module):
        part = _of_tensors(_parameters(source), component or _component_of(title), title)
        return Opened(title, (part,), _adapters_in({title: source}))
    if isinstance(parts := getattr(source, "components", None), Mapping):
        models = {name: part for name, part in parts.items() if isinstance(part, nn.Module)}
        own = (_of_tensors(_parameters(model), name, f"{title}.{name}") for name, model in models.items())
        return Opened(title, tuple(own), _adapters_in(models))
    if not isinstance(source, (str, os.PathLike)):
        raise OptionError(
            f"base={short_repr(source)}: expected a file or folder, a state dict, a diffusers pipeline or one of its "
            "models"
        )
    files, notes = _files(os.fspath(source), component)
    return Opened(os.fspath(source), tuple(Part(file, _reader(file.header)) for file in files), tuple(notes))


def _files(source: str, component: str | None) -> tuple[list[WeightFile], list[str]]:
    path = Path(source).expanduser()
    if path.is_file() and path.suffix.lower() != ".safetensors":
        kind = "quantised (GGUF)" if path.suffix.lower() == ".gguf" else f"a {path.suffix or 'file without suffix'}"
        raise FormatError(f"{path}: is {kind}, expected safetensors; give the base model as safetensors")
    if path.is_file() and component:
        return [WeightFile(read_header(path), component)], []
    config = path / "config.json"
    if path.is_dir() and config.is_file() and not (path / INDEX).is_file():
        component = component or _component_of(_class_in(config))
        found = of_one_variant(sorted(path.glob("*.safetensors")))
        if not found:
            raise SourceError(f"{path}: there is no safetensors file beside {config.name}")
        return [WeightFile(read_header(file), component) for file in found], []
    checkpoint = open_checkpoint(source)
    notes = [f"not read: {left.name}, a checkpoint of its own" for left in checkpoint.left_out]
    folders: dict[Path, list[WeightFile]] = {}
    for file in checkpoint.files:
        folders.setdefault(file.header.path.parent, []).append(file)
    read = {file.component for file in checkpoint.files}
    for path in checkpoint.others:
        name = path.relative_to(checkpoint.path).parts[0]
        if name in COMPONENTS and name not in read and path.suffix in OTHER_WEIGHTS:
            raise FormatError(f"{path}: expected safetensors; save the pipeline anew (pipeline.save_pretrained)")
    chosen = {path for own in folders.values() for path in of_one_variant([file.header.path for file in own])}
    return [file for file in checkpoint.files if file.header.path in chosen], notes


def _class_in(config: Path) -> str:
    try:
        content = json.loads(config.read_bytes())
        return str(content.get("_class_name") or (content.get("architectures") or [""])[0])
    except (ValueError, AttributeError, IndexError, OSError) as error:
        raise FormatError(f"{config}: cannot be read: {error}") from None


def _component_of(model: str) -> str:
    """The component that a model is, by the name of its class."""
    denoisers = {known.model_class: known.denoiser for known in ARCHITECTURES.values()}
    if found := denoisers.get(model) or _CLIP.get(model):
        return found
    raise OptionError(
        f"a model of the class {model or 'unknown'}: cannot tell which component it is; give the pipeline, or "
        f"component= (one of {', '.join(COMPONENTS)})"
    )


def _parameters(model: nn.Module) -> dict[str, Tensor]:
    """A model's own, without the adapters that PEFT has put in, and by the names that they have without these."""
    named = ((without_wrapping_steps(name), tensor) for name, tensor in model.named_parameters())
    return {name.replace(".base_layer.", "."): tensor for name, tensor in named if ".lora_" not in name}


def _adapters_in(models: Mapping[str, nn.Module]) -> tuple[str, ...]:
    """What is said of adapters in models, which are no weights of these."""
    having = [name for name, model in models.items() if any(".lora_" in key for key, _ in model.named_parameters())]
    return tuple(f"not read: the adapters that are active in {name}; its own weights were" for name in having)


def _of_tensors(tensors: Mapping[str, Tensor], component: str | None, title: str) -> Part:
    for key, tensor in tensors.items():
        if not isinstance(key, str) or not isinstance(tensor, Tensor):
            raise FormatError(f"{title}: expected tensors by name, found {type(tensor).__name__} at {short_repr(key)}")
    entries = {key: Entry(_dtype_name(tensor), tuple(tensor.shape), 0, 0) for key, tensor in tensors.items()}
    header = Header(Path(title), entries, {}, 0)
    # A copy on the CPU: what is read is the reader's own.
    return Part(
        WeightFile(header, component),
        lambda key, rows: tensors[key].detach()[rows].to("cpu", copy=True) if entries[key].shape else tensors[key],
    )


def _dtype_name(tensor: Tensor) -> str:
    if type(tensor) not in (Tensor, nn.Parameter):
        return type(tensor).__name__
    return OFFLOADED if tensor.is_meta else DTYPES.get(tensor.dtype, str(tensor.dtype))


def _reader(header: Header) -> Callable[[str, slice], Tensor]:
    return lambda key, rows: read_rows(header, key, rows)
