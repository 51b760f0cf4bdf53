"""kohya's format: original names where its tools have them, fused modules as one, an alpha for every module."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from mergelab.errors import ArchitectureError
from mergelab.formats.architectures.fused import OriginalModule
from mergelab.formats.architectures.naming import Naming, Place
from mergelab.formats.architectures.registry import ARCHITECTURES, NAMINGS, architecture_of
from mergelab.formats.prefixes import flatten
from mergelab.formats.writers import EMBEDDING_PREFIX, folded_layer, most_frequent, no_place
from mergelab.layer import BIAS_SUFFIX, AdapterData, Layer


def kohya(data: AdapterData) -> dict[str, Tensor]:
    """The tensors of a file in kohya's names."""
    modules = _modules(data)
    layers = {name: module.layer() for name, module in modules.items() if module.layers}
    tensors = _others(data)
    known = ARCHITECTURES.get(data.architecture or "")
    alpha = None if known and known.denoiser != "unet" else _one_alpha(layers.values())
    for name, layer in layers.items():
        # kohya's tools read an alpha of 0 as "none given", and a negative one is used by nobody.
        written = layer if layer.scaling > 1e-30 else folded_layer(layer)
        if alpha is not None:
            written = folded_layer(written.scaled(written.rank / alpha)).scaled(alpha / written.rank)
        tensors[f"{name}.lora_down.weight"] = written.lora_A
        tensors[f"{name}.lora_up.weight"] = written.lora_B
        tensors[f"{name}.alpha"] = torch.tensor(written.scaling * written.rank, dtype=torch.float32)
    for name, module in modules.items():
        if module.biases:
            tensors[f"{name}.diff_b"] = module.bias(layers.get(name))
    return tensors


@dataclass
class _Module:
    """A module of kohya's file: the layers and biases that are parts of it, by their number."""

    original: OriginalModule
    layers: dict[int, Layer] = field(default_factory=dict)
    biases: dict[int, Tensor] = field(default_factory=dict)

    def layer(self) -> Layer:
        last = self.biases.get(len(self.original.parts) - 1)
        return self.original.join(self.layers, len(last) if last is not None else None)

    def bias(self, layer: Layer | None) -> Tensor:
        return self.original.join_rows(self.biases, layer.shape if layer else None)


def _modules(data: AdapterData) -> dict[str, _Module]:
    """Layers and biases under kohya's module names."""
    modules: dict[str, _Module] = {}

    def module(name: str) -> tuple[_Module, int]:
        flat, place = _place(data, name)
        return modules.setdefault(flat, _Module(place.module)), place.part

    for name, layer in data.layers.items():
        fused, index = module(name)
        fused.layers[index] = layer
    for key, tensor in data.extras.items():
        if key.endswith(BIAS_SUFFIX):
            fused, index = module(key.removesuffix(BIAS_SUFFIX))
            fused.biases[index] = tensor
    return modules


def _place(data: AdapterData, name: str) -> tuple[str, Place]:
    """kohya's name of the module that holds a layer, and where the layer is in it."""
    component, _, path = name.partition(".")
    architecture = architecture_of(data.architecture, component)
    kohya = architecture.kohya
    naming = architecture.naming_of(component)
    place = naming.place(path) if naming and kohya and kohya.original_names else None
    if place or component == "unet":
        prefix: str | None = "lora_unet"  # as kohya calls every denoiser
    else:
        prefix = kohya.text_encoders.get(component) if kohya else None
    flat = flatten(place.module.path if place else path, naming or architecture.naming)
    if flat is None or prefix is None:
        titles = [a.title for a in ARCHITECTURES.values() if a.kohya]
        raise ArchitectureError(
            f"layer {name} ({data.architecture or 'unknown base model'}) has no name in kohya's format, which exists "
            f"for {', '.join(titles[:-1])} and {titles[-1]}; write it as format='peft'"
        )
    return f"{prefix}_{flat}", place or Place(OriginalModule(path, (path,)), 0)


def _others(data: AdapterData) -> dict[str, Tensor]:
    """Embeddings under the keys of A1111 and OneTrainer, norms under those of ComfyUI."""
    others: dict[str, Tensor] = {}
    for key, tensor in data.extras.items():
        if key.endswith(BIAS_SUFFIX):
            continue
        if key.startswith(EMBEDDING_PREFIX):
            others[key] = tensor
            continue
        component, _, path = key.removesuffix(".weight").partition(".")
        namings = [naming for naming in NAMINGS if naming.component == component and naming.original_norm(path)]
        if not namings:
            raise no_place(key, "kohya")
        others[f"diffusion_model.{namings[0].original_norm(path)}.set_weight"] = tensor
        others |= _widened(data, namings[0])
    return others


def _widened(data: AdapterData, naming: Naming) -> dict[str, Tensor]:
    """A Control adapter widens the input layer; ComfyUI has to be told."""
    module = naming.module(naming.input_layer) if naming.input_layer else None
    layer = data.layers.get(f"{naming.component}.{module.parts[0]}") if module else None
    return {f"diffusion_model.{naming.input_layer}.reshape_weight": torch.tensor(layer.shape)} if layer else {}


def _one_alpha(layers: Iterable[Layer]) -> int | None:
    """One alpha for all modules where theirs differ; None where they do not.

    diffusers (0.42) reads the alphas of a UNet in kohya's names wrongly where they differ: it looks for the patterns of
    PEFT under names that no module has, and every layer gets the most frequent alpha.
    """
    given = list(layers)
    if len({layer.scaling * layer.rank for layer in given}) == 1 and given[0].scaling > 0:
        return None
    return most_frequent(Counter(layer.rank for layer in given)) if given else None
