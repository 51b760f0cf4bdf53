"""The table of tools against diffusers' own conversions: what they make of every layer of the models without a UNet."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from typing import Any

import diffusers
import pytest
import torch
from diffusers.loaders import lora_pipeline
from diffusers.utils import convert_state_dict_to_diffusers

import mergelab as ml
from mergelab.formats import TOOLS
from mergelab.formats.architectures import ARCHITECTURES
from mergelab.formats.tools import other_tools
from mergelab.formats.tools.tool import EVERYTHING, Lack
from mergelab.layer import Layer, LoraLayer
from tests.tool_names import clip, t5

LOADERS = {
    "flux": "FluxLoraLoaderMixin",
    "chroma": "FluxLoraLoaderMixin",
    "flux2-dev": "Flux2LoraLoaderMixin",
    "flux2-klein-9b": "Flux2LoraLoaderMixin",
    "flux2-klein-4b": "Flux2LoraLoaderMixin",
    "qwen-image": "QwenImageLoraLoaderMixin",
    "sd3": "SD3LoraLoaderMixin",
    "sd35-medium": "SD3LoraLoaderMixin",
    "sd35-large": "SD3LoraLoaderMixin",
    "hunyuan-video": "HunyuanVideoLoraLoaderMixin",
    "z-image": "ZImageLoraLoaderMixin",
    "lumina2": "Lumina2LoraLoaderMixin",
    "krea2": "Krea2LoraLoaderMixin",
    "wan-14b": "WanLoraLoaderMixin",
    "wan-5b": "WanLoraLoaderMixin",
    "wan-1.3b": "WanLoraLoaderMixin",
    "ltx-2": "LTX2LoraLoaderMixin",
    "ltx-video": "LTXVideoLoraLoaderMixin",
    "ltx-video-13b": "LTXVideoLoraLoaderMixin",
    "hidream": "HiDreamImageLoraLoaderMixin",
    "anima": "AnimaLoraLoaderMixin",
}
FACTORS = ((".lora_A.weight", ".lora_B.weight"), (".lora_linear_layer.down.weight", ".lora_linear_layer.up.weight"))
Layers = Mapping[str, Layer]


@cache
def whole(id: str) -> dict[str, Layer]:
    """Every layer outside the blocks and of the first two of each kind, of true shape, at a scaling of a half."""
    known = ARCHITECTURES[id]
    with torch.device("meta"):
        model = getattr(diffusers, known.model_class).from_config(dict(known.model_config))
    kinds = torch.nn.Linear | torch.nn.Conv2d | torch.nn.Conv3d
    shapes = {f"transformer.{n}": tuple(m.weight.shape) for n, m in model.named_modules() if isinstance(m, kinds)}
    for component, kind in known.text_encoders.items():
        shapes |= t5(component) if kind == "t5" else clip(component, 2, component == "text_encoder_2")
    draws = torch.Generator().manual_seed(0)
    layers: dict[str, Layer] = {}
    downs: dict[tuple[int, ...], torch.Tensor] = {}
    for name, (rows, *columns) in shapes.items():
        number = re.search(r"\.(\d+)\.", name)
        if number is None or int(number[1]) < 2:
            # Modules that the original model has in one share lora_A, as when they were trained so.
            down = downs.setdefault(tuple(columns), torch.randn(2, *columns, generator=draws))
            layers[name] = LoraLayer(down, torch.randn(rows, 2, *[1] * (len(columns) - 1), generator=draws), 0.5)
    return layers


def adapter(id: str, layers: Layers, extras: Mapping[str, torch.Tensor] | None = None) -> ml.Adapter:
    return ml.Adapter(dict(layers), dict(extras or {}), architecture=id, source=id)


def converted(of: ml.Adapter, format: str) -> dict[str, Any]:
    """What diffusers makes of a file; nothing where it raises."""
    if format == "peft":
        of = of.select("transformer.*")
    tensors = {key: tensor.clone() for key, tensor in of.state_dict(format).items()}
    try:
        found = dict(getattr(lora_pipeline, LOADERS[of.architecture or ""]).lora_state_dict(tensors))
    except (ValueError, KeyError, IndexError, RuntimeError):
        return {}
    old = any(".to_k_lora." in key for key in found)
    # As loading does for text encoders.
    return convert_state_dict_to_diffusers(found) if old else found


def read(of: ml.Adapter, format: str) -> set[str]:
    """The layers that diffusers reads and loads: at their places, and as they are."""
    tensors, found = converted(of, format), set()
    loaded = getattr(lora_pipeline, LOADERS[of.architecture or ""])._lora_loadable_modules
    for name, layer in of.layers.items():
        pair = next(((name + a, name + b) for a, b in FACTORS if {name + a, name + b} <= tensors.keys()), None)
        # Into text encoders it loads what CLIP has.
        if pair is None or name.partition(".")[0] not in loaded or re.match(r"text.*\.block\.", name):
            continue
        probe = torch.ones(layer.lora_A.flatten(1).shape[1])
        there = tensors[pair[1]].flatten(1) @ (tensors[pair[0]].flatten(1) @ probe)
        here = layer.scaling * layer.lora_B.flatten(1) @ (layer.lora_A.flatten(1) @ probe)
        if there.shape == here.shape and torch.allclose(there, here, rtol=1e-4, atol=1e-4):
            found.add(name)
    return found


def without(layers: Layers, pattern: str) -> dict[str, Layer]:
    return {name: layer for name, layer in layers.items() if not re.search(pattern, name)}


def readable(id: str, format: str) -> tuple[Layers, set[str]]:
    """Layers that leave a file readable, and those of them that are not read; what costs the file is tried first."""
    layers, missed = whole(id), set[str]()
    for lack in TOOLS["diffusers"].way(id).missed(format):  # type: ignore[union-attr]
        if lack.what.startswith("everything") and not lack.unless and lack.of(layers):
            assert not read(adapter(id, layers), format), lack.what
        if lack.what.startswith("everything, unless"):
            layers = without(layers, r"^transformer\.(?!(blocks|layers|noise_refiner|context_refiner)\.\d)")
        elif lack.unless:
            assert not lack.of(layers)
            some = without(layers, lack.unless)
            assert lack.of(some) and not read(adapter(id, some), format), lack.what
        elif lack.what.startswith("everything"):
            layers = without(layers, lack.pattern)
        else:
            missed |= set(lack.of(layers))
    return layers, missed


FORMATS = ("diffusers", "kohya", "comfy", "peft")
CASES = [(id, format) for id in LOADERS for format in FORMATS if format != "kohya" or ARCHITECTURES[id].kohya]
EVERY = pytest.mark.parametrize(("id", "format"), CASES, ids=map(", ".join, CASES))


@EVERY
def test_what_the_pipelines_read(id: str, format: str) -> None:
    """Layer by layer as the table says, with the change that the layer makes."""
    if EVERYTHING in TOOLS["diffusers"].way(id).missed(format):  # type: ignore[union-attr]
        assert not read(adapter(id, whole(id)), format)
        return
    layers, missed = readable(id, format)
    assert read(adapter(id, layers), format) == set(layers) - missed


def extras(id: str, layers: Layers) -> dict[str, torch.Tensor]:
    """A bias, and a norm of those that the model has beside its layers."""
    name = next(name for name in layers if re.search(r"^transformer.*blocks\.0|layers\.0", name))
    norms = [block for block in ARCHITECTURES[id].naming.blocks if block.norms]
    path = f"{norms[0].canonical.replace('{}', '0')}.{next(iter(norms[0].norms.values()))}"
    return {f"{name}.lora_B.bias": torch.ones(layers[name].shape[0]), f"transformer.{path}.weight": torch.ones(8)}


@EVERY
def test_biases_and_norms_in_the_pipelines(id: str, format: str) -> None:
    """They cost the file, or are passed over, or are read, as the table says."""
    lacks = TOOLS["diffusers"].way(id).missed(format)  # type: ignore[union-attr]
    if format in ("diffusers", "peft") or EVERYTHING in lacks:
        return
    layers, missed = readable(id, format)
    for key, tensor in extras(id, layers).items():
        of = adapter(id, layers, {key: tensor})
        said = [lack.what for lack in lacks if key in lack.of([*layers, key])]
        costs = any(what.startswith("everything") for what in said)
        assert read(of, format) == (set() if costs else set(layers) - missed), (key, said)
        assert said or key in converted(of, format), key


def test_one_line_on_the_pipelines() -> None:
    """What the line says of some files."""
    for id, format, pattern, expected in (
        ("flux2-klein-4b", "comfy", "", "diffusers: the last modulation, of which it swaps shift and scale"),
        ("flux2-klein-4b", "peft", "", "not read by diffusers: everything"),
        ("hunyuan-video", "comfy", r"refiner|norm_out", ""),
        ("hunyuan-video", "comfy", r"attn\.to_[qkv]|norm_out", "diffusers: everything, for want of q, k and v"),
        ("sd35-medium", "kohya", "", "diffusers: everything"),
        ("chroma", "kohya", "text_", "everything, if it has the distilled guidance layer"),
        ("hidream", "comfy", "", ""),
    ):
        layers = without(whole(id), pattern) if pattern else whole(id)
        line = other_tools(adapter(id, layers), format)
        assert expected in line and (expected or "diffusers" not in line), (id, line)


def test_a_lack_that_one_layer_helps() -> None:
    """Nothing is lacking where one of the names is there."""
    lack = Lack("x", "a", unless="b")
    assert lack.of(["a", "c"]) == ["a"] and lack.of(["a", "b"]) == []
