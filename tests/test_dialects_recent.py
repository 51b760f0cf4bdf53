"""Adapters of newer base models in every dialect: read to the same changes; what is written, diffusers reads."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from diffusers.loaders import lora_conversion_utils as converters
from diffusers.pipelines.ltx2.connectors import LTX2TextConnectors
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import load_file, save_file
from torch import nn

import mergelab as ml
from mergelab.formats.architectures import ARCHITECTURES
from mergelab.layer import LoraLayer
from tests.architecture_dialects2 import DIALECTS, TINY, File, renaming
from tests.synthetic import adapter, lora

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


def saved(file: File, path: Path, header: str = "") -> Path:
    """The file on disk, with a header that names a base model."""
    save_file(file, path, {"modelspec.architecture": header} if header else None)
    return path


def changes(of: ml.Adapter) -> dict[str, torch.Tensor]:
    return {name: layer.delta_weight() for name, layer in of.layers.items()}


@EVERY
def test_a_dialect_is_read(id: str, dialect: str, tmp_path: Path) -> None:
    """Every layer has its canonical name and its change, with the header that names the base model and without."""
    file = DIALECTS[id][dialect](layers(id))
    for header, known in ((ARCHITECTURES[id].modelspec, {id}), ("", {id, None})):
        read = ml.load(saved(file, tmp_path / "a.safetensors", header))
        assert read.architecture in known
        assert_same(changes(read), layers(id))


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


@pytest.mark.parametrize("id", DIALECTS)
def test_diffusers_reads_what_is_written(id: str, tmp_path: Path) -> None:
    """Two dialects of one model, merged and written for diffusers, change its layers as they should."""
    header, (first, *_, last) = ARCHITECTURES[id].modelspec, DIALECTS[id].values()
    paths = [saved(write(layers(id)), tmp_path / f"{write is first}.safetensors", header) for write in (first, last)]
    merged = ml.merge(paths, weights=[0.5, 0.5])
    merged.save(tmp_path / "merged.safetensors", format="diffusers")
    target = deepcopy(model(id))
    target.load_lora_adapter(tmp_path, weight_name="merged.safetensors", prefix="transformer", adapter_name="merged")
    tuned = {f"transformer.{path}": m for path, m in target.named_modules() if isinstance(m, BaseTunerLayer)}
    assert_same({name: module.get_delta_weight("merged") for name, module in tuned.items()}, layers(id))


@pytest.mark.parametrize("id", [id for id in DIALECTS if ARCHITECTURES[id].kohya])
def test_kohyas_format_is_read_back(id: str, tmp_path: Path) -> None:
    """By the names of the model that kohya's tools train, of which the tool for this one is named."""
    first = next(iter(DIALECTS[id].values()))
    trained = ml.load(saved(first(layers(id)), tmp_path / "a.safetensors", ARCHITECTURES[id].modelspec))
    trained.save(tmp_path / "b.safetensors", format="kohya")
    read = ml.load(tmp_path / "b.safetensors")
    assert read.architecture == id
    assert_same(changes(read), layers(id))
    written = load_file(tmp_path / "b.safetensors")
    assert written.keys() == DIALECTS[id]["kohya" if "kohya" in DIALECTS[id] else "musubi"](layers(id)).keys()


def test_two_models_do_not_go_together(tmp_path: Path) -> None:
    """Said in one sentence, with their names."""
    paths = [
        saved(DIALECTS[id]["diffusers"](layers(id)), tmp_path / f"{id}.safetensors") for id in ("z-image", "krea2")
    ]
    with pytest.raises(ml.ArchitectureError, match=r"z-image.* is for z-image, .*krea2.* is for krea2; use"):
        ml.merge(paths)


# What diffusers has as a component of its own, and ComfyUI within the denoiser.
BESIDE: dict[str, tuple[dict[str, tuple[int, int]], dict[str, str]]] = {
    "anima": (
        {
            "text_conditioner.blocks.5.self_attn.o_proj": (16, 16),
            "text_conditioner.blocks.0.mlp.2": (16, 64),
            "text_conditioner.out_proj": (16, 16),
        },
        {"text_conditioner": "llm_adapter"},
    ),
    "ltx-2": (
        {
            "connectors.video_connector.transformer_blocks.1.attn1.to_out.0": (16, 16),
            "connectors.audio_connector.transformer_blocks.0.ff.net.2": (16, 64),
            "connectors.text_proj_in": (16, 48),
        },
        {
            "connectors.text_proj_in": "text_embedding_projection.aggregate_embed",
            "connectors.video_connector.transformer_blocks": "video_embeddings_connector.transformer_1d_blocks",
            "connectors.audio_connector.transformer_blocks": "audio_embeddings_connector.transformer_1d_blocks",
        },
    ),
}


def original(id: str, name: str) -> str:
    """The name in a checkpoint."""
    return renaming(*BESIDE[id][1].items())(name)


WRITTEN: dict[str, Callable[[str, str], str]] = {
    "diffusers": lambda id, name: name,
    "AI-toolkit, as trained": lambda id, name: f"transformer.{name}",
    "AI-toolkit": lambda id, name: f"diffusion_model.{original(id, name)}",
    "bare": original,
    "kohya": lambda id, name: f"lora_unet.{original(id, name)}".replace(".", "_"),
}


@pytest.mark.parametrize("write", WRITTEN)
@pytest.mark.parametrize("id", BESIDE)
def test_what_is_trained_beside_the_denoiser(id: str, write: str, tmp_path: Path) -> None:
    """Read from all dialects, and written: alone, and with a layer of the denoiser."""
    beside = BESIDE[id][0]
    change = adapter(1, shapes={**beside, "transformer.transformer_blocks.0.attn1.to_q": (16, 16)})
    file: File = {}
    for name, layer in change.layers.items():
        written = WRITTEN[write](id, name) if name in beside else name
        file |= {f"{written}.lora_down.weight": layer.lora_A, f"{written}.lora_up.weight": layer.lora_B}
    assert ml.load({key: t for key, t in file.items() if "attn1.to_q" not in key}).architecture == id
    read = ml.load(file)
    assert read.architecture == id
    assert_same(changes(read), dict(change.layers))
    for format in ("diffusers", "kohya") if ARCHITECTURES[id].kohya else ("diffusers",):
        again = ml.load(read.save(tmp_path / f"{format}.safetensors", format=format))
        assert_same(changes(again), dict(change.layers))
    names = {key.removesuffix(".lora_B.weight") for key in load_file(tmp_path / "diffusers.safetensors")}
    assert set(beside) <= names


COMPANIONS: list[tuple[str, type[nn.Module], dict[str, Any]]] = [
    ("anima", diffusers.AnimaTextConditioner, {}),
    ("ltx-2", LTX2TextConnectors, {"video_gated_attn": True, "audio_gated_attn": True}),
    ("ltx-2", LTX2TextConnectors, {"per_modality_projections": True}),
]


@pytest.mark.parametrize(("id", "kind", "config"), COMPANIONS, ids=["anima", "ltx-2.3", "ltx-2.3, projections"])
def test_what_is_beside_the_denoiser_is_diffusers(id: str, kind: Any, config: dict[str, Any]) -> None:
    """Every linear layer of it is in the table."""
    naming = ARCHITECTURES[id].companions[0]
    with torch.device("meta"):
        modules = kind.from_config(config).named_modules()
    for path in [path for path, module in modules if isinstance(module, nn.Linear)]:
        place = naming.place(path)
        assert place is not None
        assert naming.module(place.module.path) == place.module


def test_diffusers_names_what_is_beside_the_denoiser() -> None:
    """By its own converters, of what they know."""
    for name in BESIDE["anima"][0]:
        key = f"diffusion_model.{original('anima', name)}.lora_A.weight"
        converted = converters._convert_non_diffusers_anima_lora_to_diffusers({key: torch.ones(1)})
        assert list(converted) == [f"{name}.lora_A.weight"]
    key = "text_embedding_projection.aggregate_embed.lora_A.weight"
    convert = converters._convert_non_diffusers_ltx2_lora_to_diffusers
    assert list(convert({key: torch.ones(1)}, "text_embedding_projection")) == ["connectors.text_proj_in.lora_A.weight"]


def test_a_bias_and_a_convolution_of_wan() -> None:
    """A distilled Wan changes biases, and the layer that takes the video apart, a convolution in three dimensions."""
    file = DIALECTS["wan-14b"]["Lightning"](layers("wan-14b"))
    file["diffusion_model.blocks.0.self_attn.q.diff_b"] = torch.ones(16)
    file["diffusion_model.patch_embedding.lora_down.weight"] = torch.ones(2, 4, 1, 2, 2)
    file["diffusion_model.patch_embedding.lora_up.weight"] = torch.ones(16, 2, 1, 1, 1)
    read = ml.load(file)
    assert list(read.extras) == ["transformer.blocks.0.attn1.to_q.lora_B.bias"]
    assert torch.equal(read.layers["transformer.patch_embedding"].delta_weight(), torch.full((16, 4, 1, 2, 2), 2.0))
