"""AI Toolkit's generate configurations as evaluations: what is drawn, and what cannot be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import mergelab as ml
from mergelab import cli, miniature
from mergelab.evaluation import read
from mergelab.evaluation.reading import read_config
from tests.aitoolkit import FLUX, LORAS, SDXL, SINGLE, config, written
from tests.files import lora, write
from tests.refusing import Refused

MODEL = {"name_or_path": "miniature/sdxl", "lora_paths": LORAS}
PROMPTS = ["a sks", "a red star"]


@pytest.mark.parametrize(("file", "seeds", "steps"), [(SINGLE, [42], 4), (FLUX, [42], 4), (SDXL, [0, 1, 2, 3], 4)])
def test_examples_are_evaluations(file: Path, seeds: list[int], steps: int) -> None:
    """Prompts, seeds, sizes; the merge that the command would write."""
    plain, read_here = ml.generate_config(file), read_config(file, ["device=cpu"])
    assert read_here.pipeline == plain.base and read_here.prompts == plain.generate["prompts"]
    assert [lora.weight for lora in read_here.loras] == list(plain.weights)
    assert (read_here.seeds, read_here.generation.steps, read_here.generation.width) == (seeds, steps, 48)
    assert read_here.merges == ([{"method": "svd"}] if len(plain.loras) > 1 else [])
    assert read_here.loras[0].concept == "a sks"


def test_an_example_is_drawn_and_scored(tmp_path: Path) -> None:
    """`mergelab evaluate generate.yaml`."""
    line = ["evaluate", str(SINGLE), "-o", str(tmp_path / "run")]
    settings = ["seeds=1", "metrics=[judge]", "generation.steps=1", "merges=[{method: cat}]", "device=cpu"]
    assert cli.run([*line, *(part for setting in settings for part in ("--set", setting))]) == 0
    resolved = read_config(tmp_path / "run" / "config.yaml")
    assert resolved.merges == [{"method": "cat"}] and resolved.generation.steps == 1
    assert len(list((tmp_path / "run" / "images").rglob("*.png"))) == 2 * 2  # a merge of one adapter is that adapter


def test_what_is_drawn(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Every key that an evaluation has a word for; those that it has none for are said."""
    generate = {
        "prompts": PROMPTS,
        "neg": "blurry",
        "neg_2": "",
        "prompt_2": "more",
        "seed": 7,
        "num_repeats": 3,
        "guidance_scale": 4,
        "sample_steps": 9,
        "width": 64,
        "height": 32,
        "sampler": "flowmatch",
        "ext": "jpg",
    }
    model = MODEL | {"dtype": "bf16", "quantize": True, "vae_path": None}
    read_here = read(written(tmp_path, config(model, generate, device="cpu")))
    assert read_here.generation.keywords() == {
        "num_inference_steps": 9,
        "guidance_scale": 4,
        "width": 64,
        "height": 32,
        "negative_prompt": "blurry",
        "prompt_2": "more",
    }
    assert (read_here.seeds, read_here.dtype, read_here.device) == ([7, 8, 9], "bfloat16", "cpu")
    assert "makes nothing of model.quantize, generate.sampler" in caplog.text


# The keys of the example files of a fork of AI Toolkit that has lora_paths.
FORK = {
    "sampler": "flowmatch",
    "width": 48,
    "height": 32,
    "guidance_scale": 3,
    "sample_steps": 2,
    "seed": 99,
    "walk_seed": False,
    "num_repeats": 1,
    "ext": "png",
    "prompts": PROMPTS,
    "negative_prompt": "blurry",
}


@pytest.mark.parametrize(
    ("flags", "loras"),
    [
        ({"is_flux": True, "quantize": True}, {"lora_path": "miniature/flux/ghost", "lora_weight": 1.0}),
        ({"is_flux": True, "quantize": True}, {"lora_paths": [{"path": "miniature/flux/ghost", "weight": 0.7}]}),
        ({"is_xl": True}, {"lora_paths": [{"path": "miniature/sdxl/ghost", "weight": 0.9}, *LORAS]}),
    ],
)
def test_the_keys_of_a_fork(flags: Any, loras: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """One adapter in the old form, several for FLUX and for SDXL; a seed that does not walk is no news."""
    base = "miniature/flux" if "is_flux" in flags else "miniature/sdxl"
    file = written(tmp_path, config({"name_or_path": base, "dtype": "float16"} | flags | loras, FORK, device="cuda:0"))
    read_here = read_config(file, ["device=cpu"])
    assert (read_here.prompts, read_here.seeds, read_here.dtype) == (PROMPTS, [99], "float16")
    assert read_here.generation.negative_prompt == "blurry" and read_here.generation.steps == 2
    assert len(read_here.loras) == len(ml.generate_config(file).loras)
    assert "generate.sampler" in caplog.text and "walk_seed" not in caplog.text and "negative" not in caplog.text


def test_a_name_like_a_number_stays_a_name(tmp_path: Path) -> None:
    """A file called after its learning rate, in the configuration that a run keeps."""
    file = write(tmp_path / "1e-4.safetensors", lora())
    content = read(written(tmp_path, config({"name_or_path": "x", "lora_path": str(file)}, {"prompts": PROMPTS})))
    again = read(written(tmp_path, content.model_dump(), "config.yaml"))
    assert content.loras[0].name == again.loras[0].name == "1e-4"


@pytest.mark.parametrize("low_vram", [True, False])
@pytest.mark.parametrize(("device", "gpu"), [("cuda:0", True), (None, True), ("cuda:0", False), ("cpu", True)])
def test_low_vram_needs_a_gpu(
    low_vram: bool, device: str | None, gpu: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One component at a time is there, where there is one and it is used."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    file = written(tmp_path, config(MODEL | {"low_vram": low_vram}, {"prompts": PROMPTS}, device=device))
    offloaded = read(file).memory.offload == "model"
    assert offloaded == (low_vram and gpu and device != "cpu")


def test_low_vram_draws_the_same(tmp_path: Path) -> None:
    """By the adapter as by the base model, on a pipeline whose components come and go (here from CPU to CPU)."""
    settings = ["device=cpu", "seeds=1", "metrics=[judge]", "generation.steps=1", "prompts=[a sks]"]
    images = []
    for low_vram in (False, True):
        pipe = miniature.pipeline("sdxl")
        if low_vram:
            pipe.enable_model_cpu_offload(device="cpu")
        file = written(tmp_path, config(MODEL | {"low_vram": low_vram}, {"prompts": PROMPTS}, device="cpu"))
        found = ml.evaluate(file, tmp_path / f"run_{low_vram}", pipeline=pipe, overrides=settings)
        assert not found.failures and hasattr(pipe.unet, "_hf_hook") == low_vram
        images.append({path.read_bytes() for path in (found.folder / "images").rglob("*.png")})
    assert images[0] == images[1] and len(images[0]) == 2


def test_a_walking_seed_and_settings_of_a_prompt(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Every picture has the settings of the section, and a warning says so; a dash alone is a part of the words."""
    prompts = ["photo of a hero --n bat man --w 512", "a well--known - star"]
    read_here = read(written(tmp_path, config(MODEL, {"prompts": prompts, "seed": 7, "walk_seed": True})))
    assert read_here.prompts == ["photo of a hero", "a well--known - star"] and read_here.seeds == [7]
    assert "'photo of a hero --n bat man --w 512' is drawn as 'photo of a hero'" in caplog.text
    assert caplog.text.count("is drawn as") == 1 and "makes nothing of generate.walk_seed" in caplog.text


def test_prompts_of_a_file_and_adapters_of_one_name(tmp_path: Path) -> None:
    """One prompt a line; two files of one name are told apart."""
    (tmp_path / "prompts.txt").write_text("a sks\n\n  a red star  \n")
    for folder in ("one", "two"):
        write(tmp_path / folder / "lora.safetensors", lora())
    paths = ["one/lora.safetensors", "two/lora.safetensors"]
    model = {"name_or_path": "miniature/sdxl", "lora_paths": paths}
    read_here = read(written(tmp_path, config(model, {"prompts": "prompts.txt", "seed": -1})))
    assert read_here.prompts == PROMPTS and read_here.seeds == [0, 1, 2, 3]
    assert [one.name for one in read_here.loras] == ["lora", "lora#2"]


@pytest.mark.parametrize(
    ("model", "generate", "needle"),
    [
        (MODEL, {}, "generate.prompts: expected a list of prompts"),
        (MODEL, {"prompts": "none.txt"}, "none.txt: there is no such file"),
        (MODEL, {"prompts": ["--w 512"]}, "expected words before the settings"),
        (MODEL, {"prompts": PROMPTS, "neg": "a", "negative_prompt": "b"}, "neg and generate.negative_prompt differ"),
        (MODEL, {"prompts": PROMPTS, "random_prompts": True}, "generate.random_prompts"),
        (MODEL, {"prompts": PROMPTS, "seed": "x"}, "generate.seed: expected a whole number"),
        (MODEL | {"dtype": "int4"}, {"prompts": PROMPTS}, "dtype"),
        ({"lora_paths": LORAS}, {"prompts": PROMPTS}, "'model.name_or_path' is missing"),
    ],
)
def test_what_cannot_be_drawn(model: Any, generate: Any, needle: str, tmp_path: Path, refused: Refused) -> None:
    """Said before anything is."""
    file = written(tmp_path, config(model, generate))
    refused("evaluate", file, "-o", tmp_path / "run", needles=["generate.yaml", needle])
