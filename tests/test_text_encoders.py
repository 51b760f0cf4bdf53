"""Adapters of text encoders in the real loaders: diffusers' pipelines, PEFT and transformers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionXLPipeline, UNet2DConditionModel
from peft import PeftModel
from transformers import CLIPTextModel, CLIPTextModelWithProjection

import mergelab as ml
from tests.test_loaders import (
    SDXL_UNET,
    assert_deltas,
    clip,
    injected,
    peft_deltas,
    random_adapter,
    random_layer,
    read_by,
    sdxl_pipeline,
    text_weights,
)

PROJECTION = "text_encoder_2.text_projection"


@pytest.fixture(scope="module")
def pipeline() -> StableDiffusionXLPipeline:
    return sdxl_pipeline(UNet2DConditionModel(**SDXL_UNET))


def assert_loads(pipeline: StableDiffusionXLPipeline, adapter: ml.Adapter, path: Path) -> None:
    """Every layer with its change, the projection included, which is beside the text model and not in it."""
    found = {
        name.replace("text_model.text_projection", "text_projection"): x for name, x in read_by(pipeline, path).items()
    }
    assert_deltas(found, adapter)


def adapter_of(pipeline: StableDiffusionXLPipeline, end: str, ranks: tuple[int, ...], projection: int) -> ml.Adapter:
    """Layers of the second encoder whose names hold this, and its projection at a rank of its own (0: none)."""
    generator = torch.Generator().manual_seed(0)
    shapes = {n: s for n, s in text_weights("text_encoder_2", pipeline.text_encoder_2).items() if end in n}
    layers = {
        name: random_layer(shape, ranks[i % len(ranks)], 0.5 + i % 2, generator)
        for i, (name, shape) in enumerate(shapes.items())
    }
    if projection:
        layers[PROJECTION] = random_layer((32, 32), projection, 0.7, generator)
    return ml.Adapter(layers, architecture="sdxl", source="x")


@pytest.mark.parametrize("format", ["kohya", "diffusers"])
@pytest.mark.parametrize("ranks", [((2,), 5), ((5,), 2), ((2, 3), 5), ((2, 3, 2), 1), ((2, 3), 2)], ids=str)
def test_a_projection_at_a_rank_of_its_own(
    pipeline: StableDiffusionXLPipeline, ranks: tuple[tuple[int, ...], int], format: str, tmp_path: Path
) -> None:
    """diffusers gives it the most frequent rank of the others in kohya's names: it is padded to that, or they to it."""
    adapter = adapter_of(pipeline, "", *ranks)
    assert_loads(pipeline, adapter, adapter.save(tmp_path / "x.safetensors", format))


@pytest.mark.parametrize("format", ["kohya", "diffusers"])
@pytest.mark.parametrize("projection", [0, 5])
@pytest.mark.parametrize("ranks", [(2,), (2, 3)], ids=str)
def test_an_mlp_without_attention(
    pipeline: StableDiffusionXLPipeline, ranks: tuple[int, ...], projection: int, format: str, tmp_path: Path
) -> None:
    """diffusers tells its own keys of a text encoder by those of attention; others are written in its older ones."""
    adapter = adapter_of(pipeline, ".mlp.", ranks, projection)
    path = adapter.save(tmp_path / "x.safetensors", format)
    assert_loads(pipeline, adapter, path)
    assert_deltas({name: layer.delta_weight for name, layer in ml.load(path).layers.items()}, adapter)


# PEFT asks transformers 5 for a property under its old name.
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
@pytest.mark.parametrize(
    ("id", "component", "kind"),
    [
        ("sdxl", "text_encoder", CLIPTextModel),
        ("sdxl", "text_encoder_2", CLIPTextModelWithProjection),
        ("sd3", "text_encoder", CLIPTextModelWithProjection),
    ],
)
def test_a_folder_loads_in_the_live_class(id: str, component: str, kind: type[CLIPTextModel], tmp_path: Path) -> None:
    """With or without `text_model.`, as the class has it; in PEFT, in transformers, and read again."""
    adapter = random_adapter(text_weights(component, clip(kind)), id)
    folder = adapter.save(tmp_path / "folder", format="peft")
    loaded = PeftModel.from_pretrained(clip(kind), str(folder))
    assert_deltas(peft_deltas(loaded, component), adapter)
    model = clip(kind)
    model.load_adapter(str(folder))
    assert_deltas(injected({component: model}), adapter)
    assert_deltas({name: layer.delta_weight for name, layer in ml.load(folder).layers.items()}, adapter)
