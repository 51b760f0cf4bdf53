"""The tables of names against diffusers' own converters of checkpoints, by value: which rows of what become which."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import diffusers
import pytest
import torch
from diffusers.loaders import single_file_utils as converters
from torch import Tensor, nn

from mergelab.errors import LayerError
from mergelab.formats.architectures import ARCHITECTURES
from tests.architecture_dialects2 import TINY
from tests.synthetic import lora

CONVERTERS: dict[str, Callable[..., Any]] = {
    "z-image": converters.convert_z_image_transformer_checkpoint_to_diffusers,
    "lumina2": converters.convert_lumina2_to_diffusers,
    "krea2": converters.convert_krea2_transformer_checkpoint_to_diffusers,
    "wan-14b": converters.convert_wan_transformer_to_diffusers,
    "ltx-video": converters.convert_ltx_transformer_checkpoint_to_diffusers,
    "ltx-2": converters.convert_ltx2_transformer_to_diffusers,
    "hidream": converters.convert_hidream_transformer_to_diffusers,
    "anima": converters.convert_cosmos_transformer_checkpoint_to_diffusers,
}
# ComfyUI's checkpoint of Z-Image, which diffusers converts, has other names than those that adapters mostly have.
LAST = {"z-image"}
# What a checkpoint calls the weight of a norm, where that is no "weight".
NORM_LEAVES = {"krea2": "scale"}
LAYERS = (nn.Linear, nn.Conv3d)


@cache
def model(id: str) -> nn.Module:
    """A miniature with random weights, of what the converters know.

    Lumina's takes the published width for granted, that of LTX-2 does not have what 2.3 adds.
    """
    architecture = ARCHITECTURES[id]
    config = dict(architecture.model_config) | TINY[id]
    if id == "lumina2":
        config |= {"hidden_size": 2304, "num_attention_heads": 24, "num_kv_heads": 8, "axes_dim_rope": [32, 32, 32]}
        config |= {"num_layers": 1, "multiple_of": 1, "ffn_dim_multiplier": 0.001}
    if id == "ltx-2":
        config |= {"cross_attn_mod": False, "audio_cross_attn_mod": False}
    torch.manual_seed(0)
    return getattr(diffusers, architecture.model_class).from_config(config)


def original_checkpoint(id: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The weights of layers and norms under their original names, and under diffusers'."""
    naming, modules = ARCHITECTURES[id].naming, dict(model(id).named_modules())
    parts: dict[str, dict[int, Tensor]] = {}
    original: dict[str, Tensor] = {}
    expected: dict[str, Tensor] = {}
    names = original_names(id)
    for path, module in modules.items():
        if isinstance(module, LAYERS):
            expected[f"{path}.weight"] = module.weight
            whole, index = names[path]
            parts.setdefault(f"{whole}.weight", {})[index] = module.weight
        elif name := naming.original_norm(path):
            weight = getattr(module, "weight", None)
            weight = torch.rand(4) if weight is None else weight
            original[f"{name}.{NORM_LEAVES.get(id, 'weight')}"] = expected[f"{path}.weight"] = weight
    joined = {key: torch.cat([held[i] for i in range(len(held))]) for key, held in parts.items()}
    return original | joined, expected


def original_names(id: str) -> dict[str, tuple[str, int]]:
    """Canonical path -> path of the original module and part of it, of the first name or of the last."""
    naming = ARCHITECTURES[id].naming
    found: dict[str, list[tuple[str, int]]] = {}
    spelled = list(naming.top)
    for block in naming.blocks:
        numbers = range(block.count) if block.count else [0]
        spelled += [f"{block.original.replace('{}', str(n))}.{path}" for n in numbers for path in block.modules or {}]
    for path in spelled:
        module = naming.module(path)
        assert module is not None
        for index, part in enumerate(module.parts):
            found.setdefault(part, []).append((path, index))
    return {part: names[-1 if id in LAST else 0] for part, names in found.items()}


@pytest.mark.parametrize("id", CONVERTERS)
def test_names_agree_with_the_converter(id: str) -> None:
    """A checkpoint put together by the tables is taken apart by diffusers into the very weights."""
    original, expected = original_checkpoint(id)
    assert len(expected) > 20
    converted = CONVERTERS[id](dict(original))
    assert converted.keys() == expected.keys()
    for key, weight in expected.items():
        assert torch.equal(converted[key], weight), key


@pytest.mark.parametrize("id", CONVERTERS)
def test_the_published_configuration_is_that_of_diffusers(id: str) -> None:
    """Nothing in it is a setting that diffusers does not have."""
    architecture = ARCHITECTURES[id]
    known = getattr(diffusers, architecture.model_class)._get_init_keys(getattr(diffusers, architecture.model_class))
    assert set(architecture.model_config) <= known


def test_unequal_parts_of_one_module() -> None:
    """Queries of four heads beside keys and values of one: split and joined, factors as well as biases."""
    module = ARCHITECTURES["krea2"].naming.module("transformer_blocks.0.attn.to_qkv")
    assert module is not None
    assert module.sizes(48, 32) == [32, 8, 8]
    layer = lora((48, 32), 3, torch.Generator().manual_seed(0))
    parts = module.split(layer)
    assert {path[-1]: part.shape for path, part in parts.items()} == {"q": (32, 32), "k": (8, 32), "v": (8, 32)}
    whole = module.join(dict(enumerate(parts.values())))
    assert torch.equal(whole.delta_weight(), layer.delta_weight())
    alone = module.join({1: parts[module.parts[1]]}).delta_weight()
    assert torch.equal(alone[32:40], layer.delta_weight()[32:40])
    assert not alone[:32].any() and not alone[40:].any()
    bias = torch.arange(48.0)
    rows = module.split_rows(bias, None)
    assert [len(part) for part in rows.values()] == [32, 8, 8]
    assert torch.equal(module.join_rows(dict(enumerate(rows.values())), None), bias)
    assert module.join_rows({2: torch.ones(8)}, None).tolist() == [0.0] * 40 + [1.0] * 8
    with pytest.raises(
        LayerError, match=r"to_qkv: a change of shape \(96, 32\) does not hold 3 parts, expected 48 rows"
    ):
        module.sizes(96, 32)
