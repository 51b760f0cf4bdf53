"""kohya's format: sgm names for SDXL, fused modules for FLUX, an alpha for every module."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import torch
from torch import Tensor

from mergelab.errors import ArchitectureError
from mergelab.formats import flux, unet
from mergelab.formats.names import flatten
from mergelab.formats.shared import folded_layer, most_frequent, no_place
from mergelab.layer import BIAS, Contents, Layer

_TEXT = {
    "sd15": {"text_encoder": "lora_te"},
    "sd2": {"text_encoder": "lora_te"},
    "sdxl": {"text_encoder": "lora_te1", "text_encoder_2": "lora_te2"},
    "flux": {"text_encoder": "lora_te1", "text_encoder_2": "lora_te3"},
}


def kohya(contents: Contents) -> dict[str, Tensor]:
    """The tensors of a file in kohya's names."""
    modules, biases, rest = _modules(contents)
    tensors: dict[str, Tensor] = dict(rest)
    alpha = None if contents.architecture == "flux" else _one_alpha(modules.values())
    for module, layer in modules.items():
        # kohya's tools read an alpha of 0 as "none given", and a negative one is used by nobody.
        kept = layer if layer.scaling > 1e-30 else folded_layer(layer)
        if alpha is not None:
            kept = folded_layer(kept.scaled(kept.rank / alpha)).scaled(alpha / kept.rank)
        tensors[f"{module}.lora_down.weight"] = kept.lora_A
        tensors[f"{module}.lora_up.weight"] = kept.lora_B
        tensors[f"{module}.alpha"] = torch.tensor(kept.scaling * kept.rank, dtype=torch.float32)
    tensors.update({f"{module}.diff_b": bias for module, bias in biases.items()})
    return tensors


def _one_alpha(layers: Iterable[Layer]) -> int | None:
    """One alpha for all modules where theirs differ; None where they do not.

    diffusers (0.42) reads the alphas of a UNet in kohya's names wrongly where they differ: it looks for the patterns of
    PEFT under names that no module has, and every layer gets the most frequent alpha.
    """
    given = list(layers)
    if len({layer.scaling * layer.rank for layer in given}) == 1 and given[0].scaling > 0:
        return None
    return most_frequent(Counter(layer.rank for layer in given)) if given else None


def _modules(contents: Contents) -> tuple[dict[str, Layer], dict[str, Tensor], dict[str, Tensor]]:
    """Layers and biases under kohya's module names, FLUX's fused; and tensors under keys of their own."""
    modules: dict[str, Layer] = {}
    biases: dict[str, Tensor] = {}
    rest: dict[str, Tensor] = {}
    fused_layers: dict[str, dict[int, Layer]] = {}
    fused_biases: dict[str, dict[int, Tensor]] = {}
    sizes: dict[str, int] = {}
    for name, layer in contents.layers.items():
        if found := _bfl(name):
            path, index, sizes[path] = found
            fused_layers.setdefault(path, {})[index] = layer
        else:
            modules[_name(contents, name)] = layer
    for key, tensor in contents.extras.items():
        name = key.removesuffix(BIAS)
        norm = flux.bfl_norm_of(key.removeprefix("transformer.").removesuffix(".weight"))
        if norm and key.startswith("transformer."):
            rest[f"diffusion_model.{norm}.set_weight"] = tensor
        elif name == key:
            raise no_place(contents, key, "kohya")
        elif found := _bfl(name):
            path, index, sizes[path] = found
            fused_biases.setdefault(path, {})[index] = tensor
        else:
            biases[_name(contents, name)] = tensor
    widened = contents.layers.get("transformer.x_embedder")
    if rest and widened is not None:
        # A Control adapter widens the input layer of FLUX; ComfyUI has to be told.
        rest["diffusion_model.img_in.reshape_weight"] = torch.tensor(widened.shape)
    for path, layers in fused_layers.items():
        last = fused_biases.get(path, {}).get(3)
        mlp = len(last) if last is not None else None
        modules[f"lora_unet_{path.replace('.', '_')}"] = flux.join(path, layers, sizes[path], mlp)
    for path, vectors in fused_biases.items():
        module = f"lora_unet_{path.replace('.', '_')}"
        shape = modules[module].shape if module in modules else None
        biases[module] = flux.join_rows(path, vectors, sizes[path], shape)
    return modules, biases, rest


def _bfl(name: str) -> tuple[str, int, int] | None:
    component, _, path = name.partition(".")
    return flux.bfl_of(path) if component == "transformer" else None


def _name(contents: Contents, name: str) -> str:
    component, _, path = name.partition(".")
    architecture = contents.architecture
    if component == "unet":
        flat = flatten((unet.sgm_of(path) if architecture == "sdxl" else path) or path)
        prefix: str | None = "lora_unet"
    elif component == "transformer":
        flat, prefix = None, None
    else:
        flat = flatten(path)
        prefix = _TEXT.get(architecture or "sd15", {}).get(component)
    if flat is None or prefix is None:
        raise ArchitectureError(
            f"{contents.source}: layer {name} ({architecture or 'unknown base model'}) has no name in kohya's format, "
            "which exists for SD 1.x, SD 2.x, SDXL and FLUX; write it as format='peft'"
        )
    return f"{prefix}_{flat}"
