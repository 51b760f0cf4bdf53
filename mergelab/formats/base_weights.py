"""The weights of a base model by the canonical names of its layers, read one layer at a time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float32
from torch import Tensor

from mergelab.errors import FormatError, LayerError
from mergelab.formats.architectures.architecture import Architecture
from mergelab.formats.architectures.evidence import DENOISERS, Shape
from mergelab.formats.base_sources import OFFLOADED, BaseSource, Part, open_source
from mergelab.formats.checkpoints import Slot, WeightFile
from mergelab.formats.names import locate
from mergelab.formats.open_clip import split_key
from mergelab.formats.prefixes import COMPONENTS
from mergelab.formats.recognising import recognise

_FLOATS = ("F64", "F32", "F16", "BF16")
# What single files have beside a denoiser, and a denoiser alone where it is said.
_DENOISER = "model.diffusion_model."
_OTHERS = ("first_stage_model.", "cond_stage_model.", "conditioner.", "text_encoders.", "vae.", "model_ema.")


@dataclass(frozen=True, eq=False, repr=False)
class BaseWeights:
    """The weights of a base model; `open_base` makes one.

    Attributes:
        title: for messages.
        architecture: the base model's id; None where it cannot be told.
        names: canonical names of what has a weight of two or more dimensions, `<component>.<module path>`.
        others: names of all other tensors but the biases of these: norms, embeddings without a module, a VAE.
        notes: what was not read, or taken for granted.

    Example:
        >>> base = open_base("miniature/sdxl")
        >>> base.architecture, base.shape("unet.conv_in"), base.weight("unet.conv_in").dtype
        ('sdxl', (64, 8, 3, 3), torch.float32)
    """

    title: str
    architecture: str | None
    names: tuple[str, ...]
    others: tuple[str, ...]
    notes: tuple[str, ...]
    _tensors: Mapping[str, tuple[Part, Slot] | None]

    def shape(self, name: str) -> tuple[int, ...]:
        """Of a layer's weight, `(out, in[, kh, kw])`; raises as `weight` does."""
        return self._held(name, "weight")[1].shape

    def weight(self, name: str) -> Float32[Tensor, "out in *kernel"]:
        """A layer's weight, as diffusers has it, in memory of its own.

        Raises:
            LayerError: there is no such layer; it is quantised, or not in memory.
            SourceError, FormatError: the file cannot be read any more; several tensors are this layer.
        """
        return self._value(name, "weight")

    def bias(self, name: str) -> Float32[Tensor, " out"] | None:
        """A layer's bias, or None where it has none; raises as `weight` does."""
        return self._value(name, "bias") if f"{name}.bias" in self._tensors else None

    def stored(self, tensor: str) -> Tensor:
        """A tensor by its whole name ("unet.conv_in.bias", or one of `others`), in the dtype that it is stored in.

        Raises:
            LayerError, SourceError, FormatError: as `weight` does, but for what is quantised.
        """
        part, slot = self._found(tensor)
        value = part.read(slot.key, slot.rows)
        return torch.roll(value, len(value) // 2, dims=0) if slot.swapped else value

    def has(self, tensor: str) -> bool:
        """Whether there is a tensor of this whole name."""
        return tensor in self._tensors

    def dtype(self, tensor: str) -> str:
        """What a tensor is stored in, by safetensors' name; raises as `stored` does."""
        part, slot = self._found(tensor)
        return part.file.header.entries[slot.key].dtype

    def place(self, tensor: str) -> tuple[Path, str, slice] | None:
        """The file, key and rows of a tensor; None where it is in no file. Raises as `stored` does."""
        part, slot = self._found(tensor)
        path = part.file.header.path
        return (path, slot.key, slot.rows) if path.is_file() else None

    def check(self, names: Iterable[str]) -> None:
        """Raise where some layer or its bias cannot be read, before anything is computed; raises as `weight` does."""
        for name in names:
            self._held(name, "weight")
            if f"{name}.bias" in self._tensors:
                self._held(name, "bias")

    def _value(self, name: str, leaf: str) -> Tensor:
        self._held(name, leaf)
        return self.stored(f"{name}.{leaf}").to(torch.float32)

    def _held(self, name: str, leaf: str) -> tuple[Part, Slot]:
        part, slot = self._found(f"{name}.{leaf}", name)
        dtype = part.file.header.entries[slot.key].dtype
        if dtype == OFFLOADED:
            raise LayerError(
                f"{self.title}: layer {name}: its {leaf} is offloaded, and its values are not in the model; give the "
                "pipeline before enable_sequential_cpu_offload(), or its folder"
            )
        if dtype not in _FLOATS:
            raise LayerError(
                f"{self.title}: layer {name}: its {leaf} is quantised, {dtype}, expected one of {', '.join(_FLOATS)}; "
                "give the base model as it was before that"
            )
        return part, slot

    def _found(self, whole: str, layer: str = "") -> tuple[Part, Slot]:
        if whole not in self._tensors:
            near = f"; it has layers such as {self.names[0]}" if self.names else ""
            raise LayerError(f"{self.title}: layer {layer or whole}: the base model has no such layer{near}")
        if (found := self._tensors[whole]) is None:
            raise FormatError(f"{self.title}: layer {layer or whole}: more than one tensor is this; cannot tell which")
        return found

    def __repr__(self) -> str:
        return f"BaseWeights({self.title}: {self.architecture or 'unknown base model'}, {len(self.names)} layers)"


def open_base(source: BaseSource, architecture_id: str | None = None, *, component: str | None = None) -> BaseWeights:
    """The weights of a base model, of which nothing but names and shapes is read before a layer is asked for.

    Args:
        source: a safetensors file of any dialect, a diffusers pipeline's folder or that of one of its models,
            "miniature/sdxl", a state dict, a loaded pipeline, or one of its models.
        architecture_id: the base model's id ("sdxl", "flux", ...), where the weights do not tell.
        component: whose weights one model's are, where its class does not tell ("text_encoder_2").

    Raises:
        SourceError, FormatError: there is nothing, or it is no base model in safetensors.
        OptionError: no such architecture; it cannot be told which component a model is.
        ArchitectureError: the weights are not those of the architecture that is named.

    Example:
        >>> open_base({"unet.conv_in.weight": torch.ones(4, 3, 3, 3)}).shape("unet.conv_in")
        (4, 3, 3, 3)
    """
    opened = open_source(source, component)
    if not any(part.file.header.entries for part in opened.parts):
        raise FormatError(f"{opened.title}: holds no tensors, expected the weights of a base model")
    read = recognise(*_shown([part.file for part in opened.parts]), architecture_id)
    tensors: dict[str, tuple[Part, Slot] | None] = {}
    for part in opened.parts:
        for name, slot in _slots(part.file, read.names):
            tensors[name] = None if slot is None or name in tensors else (part, slot)
    names = tuple(name.removesuffix(".weight") for name, held in tensors.items() if _is_layer(name, held))
    own = {f"{name}.{leaf}" for name in names for leaf in ("weight", "bias")}
    others = tuple(name for name in tensors if name not in own)
    return BaseWeights(opened.title, read.architecture, names, others, (*opened.notes, *read.notes), tensors)


def _is_layer(name: str, held: tuple[Part, Slot] | None) -> bool:
    known = name.endswith(".weight") and name.partition(".")[0] in (*COMPONENTS, "model")
    return known and (held is None or len(held[1].shape) > 1)


def _slots(file: WeightFile, names: Architecture | None) -> Iterator[tuple[str, Slot | None]]:
    """All tensors of a file: those of modules, then the rest under the names that they have."""
    slots = file.slots(names)
    taken = {slot.key for slot in slots.values() if slot}
    prefix = f"{file.component}." if file.component else ""
    rest = [key for key in file.header.entries if key not in taken and f"{prefix}{key}" not in slots]
    modules = {} if prefix else locate({key.rpartition(".")[0] for key in rest}, names)
    yield from ((_norm(name, names) or name, slot) for name, slot in slots.items())
    for key in rest:
        module, _, leaf = key.rpartition(".")
        shape, where = file.header.entries[key].shape, modules.get(module)
        name = _norm(f"{where.component}.{where.path}.{leaf}", names) if where else None
        yield name or f"{prefix}{key}", Slot(key, slice(0, shape[0] if shape else 1), shape, swapped=False)


def _norm(name: str, names: Architecture | None) -> str | None:
    """The canonical name of a norm's tensor, whose weight some original models call its scale; None for another."""
    layer, _, leaf = name.rpartition(".")
    component, _, path = layer.partition(".")
    for naming in (names.naming, *names.companions) if names else ():
        if component in (naming.component, "model") and (norm := naming.norm(path)):
            return f"{naming.component}.{norm}.{'weight' if leaf == 'scale' else leaf}"
    return None


def _shown(files: Sequence[WeightFile]) -> tuple[dict[str, Shape], Mapping[str, str]]:
    """What tells the base model: shapes of what may be the denoiser's layers, by module; what the header says."""
    shapes: dict[str, Shape] = {}
    known = {file.component for file in files}
    component = next((name for name in DENOISERS if name in known), None)
    chosen = [file for file in files if file.component == component] if component else files
    for file in chosen:
        prefix = f"{file.component}." if file.component else ""
        for key, entry in file.header.entries.items():
            module, leaf = split_key(key)
            if leaf == "weight" and len(entry.shape) > 1:
                shapes[f"{prefix}{module}"] = entry.shape
    inside = {module: shape for module, shape in shapes.items() if module.startswith(_DENOISER)}
    shapes = inside or {module: shape for module, shape in shapes.items() if not module.startswith(_OTHERS)}
    return shapes, {} if component else files[0].header.metadata
