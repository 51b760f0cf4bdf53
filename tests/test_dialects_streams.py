"""Every dialect of a model of two streams reads to the same delta weights, and what is written is read by peers."""

from __future__ import annotations

import re
from functools import cache
from itertools import pairwise
from pathlib import Path

import diffusers
import pytest
import torch
from peft.tuners.lora import LoraLayer as PeftLayer
from safetensors.torch import save_file
from torch import Tensor

import mergelab as ml
from mergelab.formats.architectures import ARCHITECTURES
from tests.architecture_dialects import (
    MINIATURES,
    ORIGINALS,
    RANK,
    Layers,
    dotted,
    fused,
    layers_of,
    miniature,
    with_alpha,
)

IDS = tuple(MINIATURES)
PIPELINES = {
    "chroma": "ChromaPipeline",
    "flux2-dev": "Flux2Pipeline",
    "flux2-klein-9b": "Flux2Pipeline",
    "qwen-image": "QwenImagePipeline",
    "sd3": "StableDiffusion3Pipeline",
    "sd35-medium": "StableDiffusion3Pipeline",
    "sd35-large": "StableDiffusion3Pipeline",
    "hunyuan-video": "HunyuanVideoPipeline",
}


@cache
def layers(id: str, seed: int = 0) -> Layers:
    """An adapter of every linear layer of the miniature."""
    return layers_of(miniature(id), ORIGINALS[id], seed)


def original(id: str) -> Layers:
    return fused(layers(id), ORIGINALS[id])


def parts_of_fused(id: str) -> Layers:
    """OneTrainer numbers the parts of the original's fused modules."""
    places = {path: ORIGINALS[id](path) for path in layers(id)}
    several = {place.module for place in places.values() if place.number}
    single = {module: pair for module, pair in original(id).items() if module not in several}
    numbered = {f"{p.module}.{p.number}": layers(id)[path] for path, p in places.items() if p.module in several}
    return single | numbered


def fused_by_diffusers(id: str, added: str) -> Layers:
    """q, k and v in one module of diffusers' model: nunchaku composes so, `fuse_qkv_projections` does it to a model."""
    held: dict[str, dict[str, tuple[Tensor, Tensor]]] = {}
    for path, pair in layers(id).items():
        match = re.fullmatch(r"((?:single_)?transformer_blocks\.\d+\.attn\.)(to|add)_([qkv])(?:_proj)?", path)
        block, kind, part = match.groups() if match else (path, "", "")
        held.setdefault(block + {"to": "to_qkv", "add": added, "": ""}[kind], {})[part] = pair
    return {
        path: (
            next(iter(parts.values()))[0],
            torch.cat([parts[part][1] for part in "qkv" if part in parts] or [parts[""][1]]),
        )
        for path, parts in held.items()
    }


DIALECTS = {
    "AI-toolkit, diffusion-pipe": lambda id: dotted(original(id), "diffusion_model."),
    "kohya, musubi-tuner": lambda id: with_alpha(original(id), "lora_unet_"),
    "PEFT, original names": lambda id: dotted(original(id), "base_model.model."),
    "original names as transformer": lambda id: dotted(original(id), "transformer."),
    "OneTrainer, parts by number": lambda id: with_alpha(parts_of_fused(id), "diffusion_model.", flat=False),
    "diffusers": lambda id: dotted(layers(id), "transformer."),
    "PEFT": lambda id: dotted(layers(id), "base_model.model."),
    "DiffSynth": lambda id: dotted(layers(id), "", ("lora_A.default", "lora_B.default")),
    "Lightning": lambda id: with_alpha(layers(id), "", flat=False),
    "OneTrainer": lambda id: with_alpha(layers(id), "lora_transformer_"),
    "SimpleTuner": lambda id: with_alpha(layers(id), "lycoris_"),
    "nunchaku": lambda id: dotted(fused_by_diffusers(id, "add_qkv_proj"), "transformer."),
    "diffusers, fused": lambda id: dotted(fused_by_diffusers(id, "to_added_qkv"), "transformer."),
}


def header(id: str) -> dict[str, str]:
    return {"modelspec.architecture": ARCHITECTURES[id].modelspec}


def changes(adapter: ml.Adapter) -> dict[str, Tensor]:
    return {name.removeprefix("transformer."): layer.delta_weight() for name, layer in adapter.layers.items()}


def expected(id: str, seed: int = 0) -> dict[str, Tensor]:
    return {path: up @ down for path, (down, up) in layers(id, seed).items()}


def assert_equal(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert found.keys() == wanted.keys()
    for path, change in wanted.items():
        torch.testing.assert_close(found[path].float(), change, rtol=1e-5, atol=1e-6, msg=path)


@cache
def adapter_of(id: str) -> ml.Adapter:
    return ml.load(dotted(layers(id), "transformer."), architecture=id)


@pytest.mark.parametrize("id", IDS)
@pytest.mark.parametrize("dialect", DIALECTS)
def test_every_dialect_is_one_adapter(dialect: str, id: str, tmp_path: Path) -> None:
    """The same modules, the same delta weights, and the base model that the header says."""
    path = tmp_path / "some.safetensors"
    save_file({key: tensor.clone() for key, tensor in DIALECTS[dialect](id).items()}, path, metadata=header(id))
    adapter = ml.load(path)
    assert adapter.architecture == id
    assert_equal(changes(adapter), expected(id))


@pytest.mark.parametrize("id", IDS)
def test_what_is_written_is_loaded_by_diffusers(id: str, tmp_path: Path) -> None:
    """The pipeline's own reading, and the change that PEFT makes of it in the model."""
    path = tmp_path / "some.safetensors"
    ml.load(DIALECTS["kohya, musubi-tuner"](id), architecture=id).save(path, format="diffusers")
    read = getattr(diffusers, PIPELINES[id]).lora_state_dict(path)
    model = miniature(id)
    model.load_lora_adapter(read, prefix="transformer")
    found = {
        name: module.get_delta_weight("default_0").detach()
        for name, module in model.named_modules()
        if isinstance(module, PeftLayer)
    }
    assert_equal(found, expected(id))


@pytest.mark.parametrize("format", ["diffusers", "kohya", "comfy", "peft"])
@pytest.mark.parametrize("id", IDS)
def test_every_format_is_read_back(id: str, format: str, tmp_path: Path) -> None:
    """With the base model and the delta weights that it was written with."""
    path = tmp_path / ("some" if format == "peft" else "some.safetensors")
    adapter_of(id).save(path, format=format)
    back = ml.load(path)
    assert_equal(changes(back), expected(id))
    if format != "peft":
        assert back.architecture == id


@pytest.mark.parametrize("id", IDS)
def test_two_dialects_merge(id: str) -> None:
    """The weighted sum of two adapters, one by original names, one by diffusers'."""
    one = ml.load(DIALECTS["kohya, musubi-tuner"](id), architecture=id)
    other = ml.load(dotted(layers(id, 1), "transformer."), architecture=id)
    merged = ml.merge([one, other], weights=[1.0, 0.5], rank=2 * RANK)
    both = {path: change + 0.5 * expected(id, 1)[path] for path, change in expected(id).items()}
    assert merged.architecture == id
    assert_equal(changes(merged), both)


@pytest.mark.parametrize("pair", list(pairwise(IDS)), ids=" and ".join)
def test_two_models_do_not_merge(pair: tuple[str, str]) -> None:
    """In one sentence that names both."""
    first, second = map(adapter_of, pair)
    with pytest.raises(ml.ArchitectureError) as caught:
        ml.merge([first, second])
    assert all(f"is for {id}" in str(caught.value) for id in pair)
    assert "\n" not in str(caught.value)
