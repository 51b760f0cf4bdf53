"""The formats of diffusers and PEFT: lora_A, lora_B, and a config for what differs between layers."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from mergelab.errors import FormatError
from mergelab.formats.architectures.architecture import PROJECTED
from mergelab.formats.architectures.naming import Naming
from mergelab.formats.architectures.registry import ARCHITECTURES, NAMINGS
from mergelab.formats.architectures.text_encoders import is_t5
from mergelab.formats.layout import Layout
from mergelab.formats.prefixes import COMPONENTS, unflatten
from mergelab.formats.saved_modules import is_saved, saved_fields, written_path
from mergelab.formats.writers import (
    FACTOR_SUFFIXES,
    by_component,
    folded_layer,
    most_frequent,
    no_place,
    remedy,
)
from mergelab.layer import BIAS_SUFFIX, NORM_SUFFIX, AdapterData, Layer


def diffusers(data: AdapterData, layout: Layout) -> dict[str, Tensor]:
    """The tensors of a file for diffusers' pipelines, scalings folded into lora_B."""
    tensors: dict[str, Tensor] = {}
    older = without_attention(data)
    for name, layer in data.layers.items():
        if not has_name_in_diffusers(data, name):
            same = "write it as format='same', which keeps its name, or " if not data.architecture else ""
            raise FormatError(f"layer {name} has no name in a diffusers pipeline; {same}{remedy(name)}")
        folded = folded_layer(layer)
        down, up = FACTOR_SUFFIXES[2 if name.partition(".")[0] in older else 1]
        tensors[f"{name}{down}"], tensors[f"{name}{up}"] = folded.lora_A, folded.lora_B
    for name, tensor in data.extras.items():
        if (
            is_saved(name)
            or name.endswith(NORM_SUFFIX)
            or not (name.endswith(BIAS_SUFFIX) or name.startswith("transformer."))
        ):
            raise no_place(name, "diffusers")
        tensors[name] = tensor
    return tensors


def without_attention(data: AdapterData) -> set[str]:
    """CLIP text encoders without a layer in attention; by such layers diffusers (0.42) tells PEFT's keys from older."""
    attention = (".q_proj", ".k_proj", ".v_proj", ".out_proj")
    return {
        component
        for component, layers in by_component(data).items()
        if component.startswith("text_encoder") and not any(is_t5(path) or path.endswith(attention) for path in layers)
    }


def has_name_in_diffusers(data: AdapterData, name: str) -> bool:
    """Whether a layer's canonical name is one that a pipeline may have."""
    component, _, path = name.partition(".")
    if component not in COMPONENTS or "_" not in path or "." in path:
        return component in COMPONENTS
    if known := ARCHITECTURES.get(data.architecture or ""):
        namings: tuple[Naming, ...] = (known.naming_of(component) or known.naming,)
    else:
        namings = tuple(naming for naming in NAMINGS if naming.component == component) or NAMINGS
    return any(unflatten(path, naming) == path for naming in namings)


def adapter_metadata(data: AdapterData) -> dict[str, Any]:
    """diffusers' header: a PEFT config per component, its fields prefixed with the component."""
    fields: dict[str, Any] = {}
    for component, layers in by_component(data).items():
        config = _config(layers, dict.fromkeys(layers, 1.0), data, component)
        fields.update({f"{component}.{key}": value for key, value in config.items()})
    return fields


def _config(
    layers: Mapping[str, Layer], scalings: Mapping[str, float], data: AdapterData, component: str
) -> dict[str, Any]:
    """The fields of a PEFT LoraConfig.

    PEFT matches names in lists and patterns at the end of a path, so that "proj_out" would be every block's, too: all
    are anchored at the beginning. The CLIP encoders of transformers 5 have lost their `text_model`, files have not.
    """

    def pattern(path: str) -> str:
        if path.startswith("text_model."):
            return r"^(text_model\.)?" + re.escape(path.removeprefix("text_model."))
        return "^" + re.escape(path)

    ambiguous = any("." not in path or path.startswith("text_model.") for path in layers)
    ranks = {path: layer.rank for path, layer in layers.items()}
    alphas = {path: _plain(scalings[path] * rank) for path, rank in ranks.items()}
    rank, alpha = most_frequent(Counter(ranks.values())), most_frequent(Counter(alphas.values()))
    return {
        "r": rank,
        "lora_alpha": alpha,
        "rank_pattern": {pattern(path): r for path, r in ranks.items() if r != rank},
        "alpha_pattern": {pattern(path): a for path, a in alphas.items() if a != alpha},
        "target_modules": "|".join(map(pattern, sorted(layers))) if ambiguous else sorted(layers),
        "lora_bias": any(k.startswith(f"{component}.") and k.endswith(BIAS_SUFFIX) for k in data.extras),
    }


def _plain(value: float) -> int | float:
    return int(value) if float(value).is_integer() else value


def peft(data: AdapterData, layout: Layout) -> dict[str, Tensor]:
    """The tensors of the PEFT folder of one component."""
    components = by_component(data)
    if len(components) > 1:
        raise FormatError(
            f"a PEFT folder holds one model, found {', '.join(components)}; save() writes one folder for each, "
            "select('unet.*') takes one"
        )
    tensors = {}
    data = _without_zero_scalings(data)
    for name, layer in data.layers.items():
        path = f"base_model.model.{_live_path(data, name)}"
        tensors[f"{path}.lora_A.weight"] = layer.lora_A
        tensors[f"{path}.lora_B.weight"] = layer.lora_B
    for key, tensor in data.extras.items():
        name = key.removesuffix(BIAS_SUFFIX)
        scaling = data.layers[name].scaling if name in data.layers else 1.0
        if key.partition(".")[0] not in components or key.endswith(NORM_SUFFIX):
            raise no_place(key, "peft")
        if written := written_path(key):
            # PEFT multiplies the bias of lora_B by the scaling of its layer.
            component = key.partition(".")[0]
            tensors[f"base_model.model.{_live_path(data, f'{component}.{written}')}"] = (
                tensor if scaling == 1.0 else tensor.float() / scaling
            )
    return tensors


def folder_alphas(data: AdapterData) -> dict[str, Tensor]:
    """The alphas of a PEFT folder, which stand in its config, as a file would have them."""
    layers = _without_zero_scalings(data).layers
    return {
        f"base_model.model.{_live_path(data, name)}.alpha": torch.tensor(layer.scaling * layer.rank)
        for name, layer in layers.items()
    }


def _live_path(data: AdapterData, name: str) -> str:
    """A layer's path in the live model.

    Of the CLIP text models of transformers 5 only those with a projection have a `text_model` within.
    """
    component, _, path = name.partition(".")
    known = ARCHITECTURES.get(data.architecture or "")
    projected = known.projected if known else PROJECTED
    has_projection = component in projected or f"{component}.text_projection" in data.layers
    is_plain_clip = component.startswith("text_encoder") and not has_projection
    return path.removeprefix("text_model.") if is_plain_clip else path


def folder_config(data: AdapterData, component: str) -> dict[str, Any]:
    """The `adapter_config.json` of the PEFT folder of one component."""
    layers = by_component(_without_zero_scalings(data))[component]
    return {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": None,
        "inference_mode": True,
        "bias": "none",
        "fan_in_fan_out": False,
        "use_rslora": False,
        "use_dora": False,
        **_config(layers, {path: layer.scaling for path, layer in layers.items()}, data, component),
        **saved_fields(data.extras),
    }


def _without_zero_scalings(data: AdapterData) -> AdapterData:
    """PEFT multiplies a bias by the scaling of its layer: at 0 that would lose it."""
    layers = {name: layer if layer.scaling else folded_layer(layer) for name, layer in data.layers.items()}
    return replace(data, layers=layers)


def split_components(data: AdapterData) -> dict[str, AdapterData]:
    """The part of each component, with its extras."""
    components = list(by_component(data))
    homeless = [key for key in data.extras if key.partition(".")[0] not in components]
    if homeless:
        raise no_place(homeless[0], "peft")

    def part(component: str) -> AdapterData:
        return replace(
            data,
            layers={n: layer for n, layer in data.layers.items() if n.partition(".")[0] == component},
            extras={n: tensor for n, tensor in data.extras.items() if n.partition(".")[0] == component},
        )

    return {component: part(component) for component in components}
