"""kohya's format: original names where its tools have them, fused modules as one, an alpha for every module."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from functools import partial

from torch import Tensor

from mergelab.errors import ArchitectureError
from mergelab.formats.architectures.architecture import Architecture
from mergelab.formats.architectures.naming import Place
from mergelab.formats.architectures.registry import ARCHITECTURES
from mergelab.formats.architectures.text_encoders import is_t5
from mergelab.formats.layout import Layout
from mergelab.formats.original import alone, differences_in, modules_of, others_of
from mergelab.formats.padding import projection_padded
from mergelab.formats.prefixes import flatten
from mergelab.formats.writers import (
    SAY_WHICH,
    folded_layer,
    most_frequent,
    remedy,
    with_alpha,
)
from mergelab.layer import BIAS_SUFFIX, AdapterData, Layer


def kohya(data: AdapterData, layout: Layout) -> dict[str, Tensor]:
    """The tensors of a file in kohya's names."""
    data = projection_padded(data)
    architecture = _architecture(data)
    modules = modules_of(data, partial(_place, architecture, layout))
    layers = {name: module.layer() for name, module in modules.items() if module.layers}
    tensors = others_of(data, "kohya")
    one = architecture.denoiser == "unet" and not layout.alpha_is_rank
    common = _one_alpha(layers.values()) if one else None
    for name, layer in layers.items():
        if common is not None:
            layer, _ = with_alpha(layer)
            layer = folded_layer(layer.scaled(layer.rank / common)).scaled(common / layer.rank)
        written, alpha = with_alpha(layer, layout.alpha_is_rank)
        tensors[f"{name}.lora_down.weight"] = written.lora_A
        tensors[f"{name}.lora_up.weight"] = written.lora_B
        tensors[f"{name}.alpha"] = alpha
    return tensors | differences_in(modules, layers)


def _architecture(data: AdapterData) -> Architecture:
    """By whose names an adapter is written: where the base model is not known, a UNet's, which are diffusers' then."""
    if known := ARCHITECTURES.get(data.architecture or ""):
        return known
    for name in (*data.layers, *(key for key in data.extras if key.endswith(BIAS_SUFFIX))):
        if not name.startswith(("unet.", "text_encoder")):
            raise ArchitectureError(
                f"layer {name}: the base model is unknown, and kohya's format has the names of the original model; "
                f"{SAY_WHICH}, or write it as format='same' or format='peft'"
            )
    return next(known for known in ARCHITECTURES.values() if known.denoiser == "unet")


def _place(architecture: Architecture, layout: Layout, name: str) -> tuple[str, Place]:
    """kohya's name of the module that holds a layer, and where the layer is in it."""
    component, _, path = name.partition(".")
    kohya = architecture.kohya
    naming = architecture.naming_of(component)
    place = naming.place(path) if naming and kohya and kohya.original_names and layout.original_names else None
    if place or component == architecture.denoiser == "unet":
        prefix: str | None = "lora_unet"  # as kohya calls every denoiser
    elif layout.t5 and is_t5(path):
        prefix = layout.t5
    else:
        prefix = kohya.text_encoders.get(component) if kohya else None
    norm = naming.original_norm(path) if naming and kohya and kohya.original_names else None
    if norm:
        prefix = "lora_unet"
    flat = flatten(place.module.path if place else norm or path, naming or architecture.naming)
    if flat is None or prefix is None:
        titles = [a.title for a in ARCHITECTURES.values() if a.kohya]
        models = "" if kohya else f", which exists for {', '.join(titles[:-1])} and {titles[-1]}"
        raise ArchitectureError(
            f"layer {name} ({architecture.title}) has no name in kohya's format{models}; {remedy(name)}"
        )
    return f"{prefix}_{flat}", place or alone(path)


def _one_alpha(layers: Iterable[Layer]) -> int | None:
    """One alpha for all modules where theirs differ; None where they do not.

    diffusers (0.42) reads the alphas of a UNet in kohya's names wrongly where they differ: it looks for the patterns of
    PEFT under names that no module has, and every layer gets the most frequent alpha.
    """
    given = list(layers)
    if len({layer.scaling * layer.rank for layer in given}) == 1 and given[0].scaling > 0:
        return None
    return most_frequent(Counter(layer.rank for layer in given)) if given else None
