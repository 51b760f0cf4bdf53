"""A loaded pipeline that is handed in, and what cannot be evaluated with one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import mergelab as ml
from mergelab import miniature
from mergelab.pipelines.adapters import check_adapters
from mergelab.pipelines.fingerprints import fingerprint
from mergelab.pipelines.images import generate_image
from mergelab.pipelines.opening import name_of, open_pipeline
from mergelab.pipelines.staging import Stage
from tests.evaluation.small import PROMPTS, SMALL, counted


def test_the_pipeline_is_handed_back_unchanged(pipeline: Any, tmp_path: Path) -> None:
    """The base model's images before and after are identical, and so are its weights."""
    keywords = miniature.settings("sdxl") | {"num_inference_steps": 4}
    before, identity = generate_image(pipeline, PROMPTS[0], 0, keywords), fingerprint(pipeline)
    ml.evaluate(SMALL | {"seeds": 1, "prompts": PROMPTS[:1], "metrics": ["judge"]}, tmp_path, pipeline=pipeline)
    assert torch.equal(before, generate_image(pipeline, PROMPTS[0], 0, keywords))
    assert fingerprint(pipeline) == identity


def test_it_stands_for_the_key(pipeline: Any, tmp_path: Path) -> None:
    """What the pipeline says of itself fills the key: the small one is known, with its judge and its settings."""
    small = SMALL | {"seeds": 1, "prompts": PROMPTS[:1], "merges": [], "metrics": ["judge", "clip_text"]}
    named = ml.evaluate(small, tmp_path / "named", pipeline=pipeline)
    del small["pipeline"]
    given = ml.evaluate(small, tmp_path / "given", pipeline=pipeline)
    assert given.config == named.config == ml.evaluation.read(tmp_path / "given" / "config.yaml")
    assert given.config.pipeline == "miniature/sdxl"
    assert (tmp_path / "given" / "scores.parquet").read_bytes() == (tmp_path / "named" / "scores.parquet").read_bytes()
    with pytest.raises(ml.OptionError, match="the key 'pipeline' is missing"):
        ml.evaluate(small, tmp_path / "new")
    other = type(pipeline)(**pipeline.components)
    assert name_of(other) == "StableDiffusionXLPipeline"
    with pytest.raises(ml.OptionError, match="judge reads images of the miniature world alone"):
        ml.evaluate(small, tmp_path / "new", pipeline=other)
    with pytest.raises(ml.OptionError, match="names 'miniature/flux', and the pipeline handed in is 'miniature/sdxl'"):
        ml.evaluate(small | {"pipeline": "miniature/flux"}, tmp_path / "new", pipeline=pipeline)
    with pytest.raises(ml.OptionError, match="dtype and memory say how a pipeline is loaded"):
        ml.evaluate(small | {"dtype": "float32"}, tmp_path / "new", pipeline=pipeline)
    assert not (tmp_path / "new").exists()
    pipeline.save_pretrained(tmp_path / "saved")
    assert name_of(type(pipeline).from_pretrained(tmp_path / "saved")) == str(tmp_path / "saved")


def test_a_folder_comes_before_the_pipeline_that_ships(
    pipeline: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever its name; a name that neither has is one sentence."""
    pipeline.save_pretrained(tmp_path / "miniature" / "flux")
    monkeypatch.chdir(tmp_path)
    assert isinstance(open_pipeline("miniature/flux")[0], type(pipeline))
    with pytest.raises(ml.OptionError, match="unknown miniature pipeline 'sd3'; known: 'sdxl', 'flux'"):
        open_pipeline("miniature/sd3")


def test_an_adapter_of_another_base_model_is_refused_before_anything_is_drawn(
    pipeline: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a transformer on a UNet, alone and beside one that fits; of another UNet, by what it says of itself."""
    drawn = counted(monkeypatch)
    flux, sdxl = {"path": "miniature/flux/ghost"}, {"path": "miniature/sdxl/stripes"}
    for loras, sentence in (
        ([flux], "ghost is for flux, and the pipeline is sdxl"),
        ([flux, sdxl], "stripes changes a UNet"),
    ):
        with pytest.raises(ml.ArchitectureError, match=sentence):
            ml.evaluate(SMALL | {"loras": loras}, tmp_path / "new", pipeline=pipeline)
        assert not (tmp_path / "new").exists()
    old = replace(ml.load(miniature.adapters("sdxl")[0].path), architecture="sd15")
    with pytest.raises(ml.ArchitectureError, match="old is for sd15, and the pipeline is sdxl"):
        check_adapters(pipeline, {"old": old})
    text = replace(old, architecture=None, layers={"model.layers.0.q_proj": next(iter(old.layers.values()))})
    with pytest.raises(ml.ArchitectureError, match="text is for another base model: StableDiffusionXLPipeline has"):
        check_adapters(pipeline, {"text": text})
    assert not drawn


def test_weights_are_strengths_everywhere(pipeline: Any) -> None:
    """A weight of zero is the base model; a layer that a pipeline does not have is said, none at all is an error."""
    keywords = miniature.settings("sdxl") | {"num_inference_steps": 3}
    fish = ml.load(miniature.adapters("sdxl")[3].path)
    base = generate_image(pipeline, PROMPTS[0], 0, keywords)
    stranger = ml.load({"unet.nowhere.lora_A.weight": torch.ones(2, 3), "unet.nowhere.lora_B.weight": torch.ones(4, 2)})
    key = "text_encoder.text_model.nowhere.lora_{}.weight"
    partly = fish + ml.load({key.format("A"): torch.ones(2, 3), key.format("B"): torch.ones(4, 2)})
    with Stage(pipeline, fish.layers) as stage:
        assert stage.show({"fish": 0.0 * fish}, "nothing") == []
        assert torch.equal(base, generate_image(pipeline, PROMPTS[0], 0, keywords))
        with pytest.raises(ml.LayerError, match="stranger: StableDiffusionXLPipeline has none of its layers"):
            stage.show({"stranger": stranger}, "stranger")
        notes = stage.show({"partly": partly}, "partly")
        assert len(notes) == 1 and f"has no module for 1 of {len(partly.layers)} layers" in notes[0]
        assert not torch.equal(base, generate_image(pipeline, PROMPTS[0], 0, keywords))
    assert torch.equal(base, generate_image(pipeline, PROMPTS[0], 0, keywords))


def test_what_cannot_work_leaves_no_folder(tmp_path: Path) -> None:
    """A guidance without effect: the miniature FLUX has no guidance embedding, as FLUX.1-schnell; no pipeline."""
    flux = {"pipeline": "miniature/flux", "loras": ["miniature/flux/fish"], "prompts": ["a qrv"], "metrics": ["judge"]}
    with pytest.raises(ml.OptionError, match=r"generation\.guidance does nothing .* set generation\.options\.true_cfg"):
        ml.evaluate(flux | {"generation": {"guidance": 3.5}}, tmp_path / "new")
    with pytest.raises(ml.OptionError, match="expected a loaded diffusers pipeline that takes adapters, found str"):
        ml.evaluate(SMALL, tmp_path / "new", pipeline="miniature/sdxl")
    with pytest.raises(ml.SourceError, match="no-such-pipeline: diffusers cannot load it"):
        ml.evaluate(flux | {"pipeline": str(tmp_path / "no-such-pipeline"), "metrics": ["lpips"]}, tmp_path / "new")
    assert not (tmp_path / "new").exists()
