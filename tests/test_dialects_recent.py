"""Adapters of newer base models in every dialect: read to the same changes; what is written, diffusers reads."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import diffusers
import pytest
import torch
from diffusers.loaders import lora_conversion_utils as converters
from torch import nn

import mergelab as ml
from mergelab.formats.architectures import ARCHITECTURES
from mergelab.layer import LoraLayer
from tests.architecture_dialects2 import DIALECTS, TINY, File
from tests.synthetic import lora

CASES = [pytest.param(id, dialect, id=f"{id}, {dialect}") for id, dialects in DIALECTS.items() for dialect in dialects]
EVERY = pytest.mark.parametrize("id, dialect", CASES)


@cache
def model(id: str) -> nn.Module:
    """A miniature of the denoiser."""
    architecture = ARCHITECTURES[id]
    return getattr(diffusers, architecture.model_class).from_config(dict(architecture.model_config) | TINY[id])


@cache
def layers(id: str) -> dict[str, LoraLayer]:
    """A random change of every linear layer, under canonical names."""
    generator = torch.Generator().manual_seed(0)
    found = {}
    for path, module in model(id).named_modules():
        if isinstance(module, nn.Linear):
            found[f"transformer.{path}"] = lora((module.out_features, module.in_features), 2, generator, 0.5)
    return found


def assert_same(found: dict[str, torch.Tensor], expected: dict[str, LoraLayer]) -> None:
    assert found.keys() == expected.keys()
    for name, delta in found.items():
        torch.testing.assert_close(delta, expected[name].delta_weight(), atol=1e-6, rtol=1e-5)


@EVERY
def test_a_dialect_is_read(id: str, dialect: str) -> None:
    """Every layer has its canonical name and its change."""
    adapter = ml.load(DIALECTS[id][dialect](layers(id)))
    assert_same({name: layer.delta_weight() for name, layer in adapter.layers.items()}, layers(id))


# Converters of diffusers, the dialects that they read, and the layers that they know.
CONVERTED: list[tuple[str, str, Callable[..., Any], str]] = [
    ("z-image", "AI-toolkit", converters._convert_non_diffusers_z_image_lora_to_diffusers, ""),
    ("z-image", "musubi", converters._convert_non_diffusers_z_image_lora_to_diffusers, ""),
    ("krea2", "AI-toolkit", converters._convert_non_diffusers_krea2_lora_to_diffusers, ""),
    ("krea2", "AI-toolkit, earlier", converters._convert_non_diffusers_krea2_lora_to_diffusers, ""),
    ("wan-14b", "AI-toolkit", converters._convert_non_diffusers_wan_lora_to_diffusers, ""),
    ("wan-14b", "Lightning", converters._convert_non_diffusers_wan_lora_to_diffusers, ".blocks."),
    ("wan-14b", "musubi", converters._convert_musubi_wan_lora_to_diffusers, ".blocks."),
    ("ltx-video", "diffusion-pipe", converters._convert_non_diffusers_ltxv_lora_to_diffusers, ".transformer_blocks."),
    ("ltx-2", "AI-toolkit", converters._convert_non_diffusers_ltx2_lora_to_diffusers, ""),
    ("hidream", "AI-toolkit", converters._convert_non_diffusers_hidream_lora_to_diffusers, ""),
    ("anima", "AI-toolkit", converters._convert_non_diffusers_anima_lora_to_diffusers, ""),
]


@pytest.mark.parametrize("id, dialect, convert, known", CONVERTED, ids=lambda x: x if isinstance(x, str) else "")
def test_a_dialect_is_what_diffusers_reads(id: str, dialect: str, convert: Callable[[File], File], known: str) -> None:
    """The rules of the dialects, held against diffusers' converters."""
    expected = {name: layer for name, layer in layers(id).items() if known in name}
    # A copy: diffusers scales in place.
    file = convert({key: tensor.clone() for key, tensor in DIALECTS[id][dialect](expected).items()})
    ups = {key.removesuffix(".lora_B.weight"): key for key in file if key.endswith(".lora_B.weight")}
    deltas = {name: file[key] @ file[f"{name}.lora_A.weight"] for name, key in ups.items()}
    assert_same(deltas, expected)
