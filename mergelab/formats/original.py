"""Layers and biases as modules of the original model, those that it fuses as one; shared by the formats that do so."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from mergelab.formats.architectures.fused import OriginalModule
from mergelab.formats.architectures.naming import Naming, Place
from mergelab.formats.architectures.registry import ARCHITECTURES
from mergelab.formats.writers import EMBEDDING_PREFIX, no_place
from mergelab.layer import BIAS_SUFFIX, NORM_SUFFIX, AdapterData, Layer, is_difference, owner_of

PlaceOf = Callable[[str], tuple[str, Place]]
"""From a layer's canonical name to its module's name in the file, and where the layer is in that module."""


@dataclass
class FileModule:
    """A module of a file: the layers and biases that are parts of it, by their number; or the difference of a norm."""

    original: OriginalModule
    layers: dict[int, Layer] = field(default_factory=dict)
    biases: dict[int, Tensor] = field(default_factory=dict)
    norm: Tensor | None = None

    def layer(self) -> Layer:
        """All parts as one layer."""
        last = self.biases.get(len(self.original.parts) - 1)
        return self.original.join(self.layers, len(last) if last is not None else None)

    def bias(self, layer: Layer | None) -> Tensor:
        """All parts as one bias, beside the layer where there is one."""
        return self.original.join_rows(self.biases, layer.shape if layer else None)


def alone(path: str) -> Place:
    """The place of a module that the file names as diffusers does."""
    return Place(OriginalModule(path, (path,)), 0)


def modules_of(data: AdapterData, place_of: PlaceOf) -> dict[str, FileModule]:
    """Layers and biases by the names of their modules in a file."""
    modules: dict[str, FileModule] = {}

    def module(name: str) -> tuple[FileModule, int]:
        written, place = place_of(name)
        return modules.setdefault(written, FileModule(place.module)), place.part

    for name, layer in data.layers.items():
        fused, index = module(name)
        fused.layers[index] = layer
    for key, tensor in data.extras.items():
        if key.endswith(BIAS_SUFFIX):
            fused, index = module(key.removesuffix(BIAS_SUFFIX))
            fused.biases[index] = tensor
        elif key.endswith(NORM_SUFFIX):
            module(owner_of(key))[0].norm = tensor
    return modules


def differences_in(modules: Mapping[str, FileModule], layers: Mapping[str, Layer]) -> dict[str, Tensor]:
    """Differences of biases and norms under the keys of LyCORIS."""
    tensors = {f"{name}.diff": module.norm for name, module in modules.items() if module.norm is not None}
    biases = {f"{n}.diff_b": module.bias(layers.get(n)) for n, module in modules.items() if module.biases}
    return {**tensors, **biases}


def others_of(data: AdapterData, format: str) -> dict[str, Tensor]:
    """Norms under ComfyUI's keys, in kohya's format also embeddings under those of A1111 and OneTrainer."""
    others: dict[str, Tensor] = {}
    known = ARCHITECTURES.get(data.architecture or "")
    candidates = (known.naming, *known.companions) if known else ()
    for key, tensor in data.extras.items():
        if is_difference(key):
            continue
        if key.startswith(EMBEDDING_PREFIX) and format == "kohya":
            others[key] = tensor
            continue
        component, _, path = key.removesuffix(".weight").partition(".")
        namings = [naming for naming in candidates if naming.component == component and naming.original_norm(path)]
        if not namings:
            raise no_place(key, format)
        others[f"diffusion_model.{namings[0].original_norm(path)}.set_weight"] = tensor
        others |= _widened(data, namings[0])
    return others


def _widened(data: AdapterData, naming: Naming) -> dict[str, Tensor]:
    """A Control adapter widens the input layer; ComfyUI has to be told."""
    layer = data.layers.get(naming.input_name or "")
    return {f"diffusion_model.{naming.input_layer}.reshape_weight": torch.tensor(layer.shape)} if layer else {}
