"""The table of tools against diffusers itself: what its pipelines read of each format is what the table says."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import (
    FluxPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)

import mergelab as ml
from mergelab.formats import TOOLS
from mergelab.formats.tools.tool import EVERYTHING
from tests.test_loaders import (
    FLUX_DEV,
    SDXL_UNET,
    flux_pipeline,
    random_layer,
    read_by,
    sdxl_pipeline,
    text_weights,
    weights_of,
)

T5 = "text_encoder_2.encoder.block.0.layer.0.SelfAttention.q"


@pytest.fixture(scope="module")
def sdxl() -> StableDiffusionXLPipeline:
    return sdxl_pipeline(UNet2DConditionModel(**SDXL_UNET))


@pytest.fixture(scope="module")
def flux() -> FluxPipeline:
    return flux_pipeline(FLUX_DEV)


def adapter_of(pipeline: StableDiffusionPipeline | FluxPipeline, id: str) -> ml.Adapter:
    """One layer in twelve of a pipeline, of FLUX also those outside the blocks and one of T5."""
    denoiser = "transformer" if id == "flux" else "unet"
    shapes = weights_of(denoiser, getattr(pipeline, denoiser)) | text_weights("text_encoder", pipeline.text_encoder)
    names = [n for i, n in enumerate(shapes) if i % 12 == 0 or (id == "flux" and "blocks" not in n and i % 3 == 0)]
    generator = torch.Generator().manual_seed(0)
    layers = {name: random_layer(shapes[name], 2, 1.0, generator) for name in names}
    if id == "flux":
        layers[T5] = random_layer((8, 8), 2, 1.0, generator)
    return ml.Adapter(layers, architecture=id, source="x")


@pytest.mark.parametrize("format", ["diffusers", "kohya", "comfy"])
@pytest.mark.parametrize("id", ["sdxl", "flux"])
def test_what_diffusers_reads(id: str, format: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """Layer by layer: those that the table says it lacks are not there, all others are."""
    pipeline = request.getfixturevalue(id)
    adapter = adapter_of(pipeline, id)
    way = TOOLS["diffusers"].way(id)
    assert way is not None
    lacks = way.missed(format)
    expected = set(adapter.layers) - {name for lack in lacks for name in lack.of(adapter.layers)}
    path = adapter.save(tmp_path / "x.safetensors", format)
    if EVERYTHING not in lacks:
        # A fused module holds zeros for the parts that the adapter does not have.
        assert set(read_by(pipeline, path)) & set(adapter.layers) == expected
        return
    try:
        found = set(read_by(pipeline, path))
    except (ValueError, KeyError, RuntimeError):
        found = set()
    assert found == set()


@pytest.mark.parametrize("id", ["sdxl", "flux"])
def test_diffusers_reads_all_of_a_file_for_it(id: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """And no more than the file has."""
    pipeline = request.getfixturevalue(id)
    adapter = adapter_of(pipeline, id)
    path = adapter.save(tmp_path / "x.safetensors", for_="diffusers")
    assert set(read_by(pipeline, path)) == set(ml.load(path).layers) == set(adapter.layers) - {T5}
