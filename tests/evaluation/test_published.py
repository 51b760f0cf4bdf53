"""The protocols of published tables: every configuration is valid, every twin runs, what is to be trained can be."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import mergelab as ml
from experiments.published import photographs, train_loras
from experiments.published.catalogue import RECIPES, STYLES
from mergelab import miniature
from mergelab.evaluation.reading import read_config
from mergelab.evaluation.recipes import recipes
from mergelab.evaluation.sets import adapter_sets
from mergelab.formats.yaml_files import read_yaml
from mergelab.methods.registry import METHODS
from mergelab.pipelines.combinations.registry import COMBINATIONS

FOLDER = Path(train_loras.__file__).parent
CONFIGS = sorted(FOLDER.glob("*.yaml"))
TWINS = [path for path in CONFIGS if path.stem.endswith("-miniature")]
EVERY = FOLDER / "ssr-preservation-3-miniature.yaml"
TRAINED = {
    f"./loras/{recipe}/{job.name}/pytorch_lora_weights.safetensors": job
    for recipe in RECIPES
    for job in train_loras.jobs(recipe, FOLDER / "data", FOLDER / "loras")
}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_configurations_are_valid_and_say_where_their_adapters_come_from(path: Path) -> None:
    """They are read, stand in the table of README.md, and no adapter is called by an accident of its prompt."""
    config = read_config(path)
    assert f"]({path.name})" in (FOLDER / "README.md").read_text()
    assert f"experiments/published/{path.name}" in path.read_text()
    for lora in config.loras:
        if job := TRAINED.get(lora.path):
            assert set(lora.trigger.split()) <= set(job.prompt.split())
            assert (FOLDER / lora.references).resolve() == job.images.resolve()
        else:
            known = ("ginipick/", "glif-loradex-trainer/", "./ComposLoRA/", str(miniature.WEIGHTS))
            assert lora.path.startswith(known)


def test_the_subjects_of_the_twin_meet_every_method() -> None:
    """The table of the preservation protocol has all that mergelab has, but K-LoRA, which takes two adapters."""
    config = read_config(EVERY)
    merges = recipes(config, adapter_sets(config)[0])
    assert {str(recipe.keywords["method"]) for recipe in merges} == {*METHODS, *COMBINATIONS} - {"klora"}


def test_commands_that_train(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One for each subject and style, with the paper's hyper-parameters; nothing is run."""
    places = ["--data", str(tmp_path / "data"), "--out", str(tmp_path / "loras")]
    assert train_loras.main(["ziplora", "--dry-run", *places]) == 0
    commands = [shlex.split(line) for line in capsys.readouterr().out.splitlines()]
    assert len(commands) == 4 + len(STYLES) and not (tmp_path / "data").exists()
    assert "--rank=64" in commands[0] and "--instance_prompt=a sbu bear plushie" in commands[0]
    assert train_loras.main(["ssr", "--only", "dog", *places]) == 2
    assert "git clone https://github.com/google/dreambooth" in capsys.readouterr().err
    assert train_loras.main(["ssr", "--only", "doge", "--dry-run", *places]) == 2
    assert "there is no 'doge' in this recipe; known: bear_plushie, " in capsys.readouterr().err


def test_training_stops_at_the_first_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Style images go into folders of their own; what is there already is not trained again."""
    (tmp_path / "dreambooth").mkdir()
    (tmp_path / "StyleDrop-PyTorch" / "data").mkdir(parents=True)
    for style in STYLES.values():
        (tmp_path / "StyleDrop-PyTorch" / "data" / style.file).write_bytes(b"image")
    (tmp_path / "bin").mkdir()
    accelerate = tmp_path / "bin" / "accelerate"
    accelerate.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/calls\nexit 3\n')
    accelerate.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    done = tmp_path / "loras" / "klora" / "cat"
    done.mkdir(parents=True)
    (done / "pytorch_lora_weights.safetensors").touch()
    places = ["--data", str(tmp_path), "--out", str(tmp_path / "loras")]
    assert train_loras.main(["klora", "--only", "cat", "dog", "dog2", *places]) == 3
    assert (tmp_path / "calls").read_text().count("a sbu dog") == 1
    assert (tmp_path / "styles" / "wood" / "image_03_08.jpg").read_bytes() == b"image"


def test_reference_pictures_are_those_that_are_drawn() -> None:
    """The files are what `python -m experiments.published.photographs` writes."""
    for adapter in photographs.shown():
        drawn = (miniature.draw(photographs.scenes(adapter)) * 255).round().byte().permute(0, 2, 3, 1).numpy()
        files = sorted((photographs.FOLDER / adapter.name).iterdir())
        assert len(files) == len(drawn) == photographs.COUNT
        assert all((np.asarray(Image.open(file)) == picture).all() for file, picture in zip(files, drawn))


@pytest.fixture(scope="module", params=["flux", "sdxl"])
def opened(request: pytest.FixtureRequest) -> tuple[str, Any]:
    """Each small pipeline, loaded once for its twins."""
    pipe = miniature.pipeline(request.param)
    pipe.set_progress_bar_config(disable=True)
    return request.param, pipe


def test_twins_run(opened: tuple[str, Any], tmp_path: Path) -> None:
    """One step, one seed, one prompt and one set of each: the photographs are compared with, no variant fails.

    The one with every method has all its merges and metrics, the others the merge that is theirs and one metric.
    """
    name, pipe = opened
    for path in TWINS:
        content = read_yaml(path)
        if content["pipeline"] != miniature.PREFIX + name or path.stem == "ssr-preservation-8-miniature":
            continue  # the latter is that of three with more distractors
        less = ["generation.steps=1", "seeds=1", f"prompts=[{content['prompts'][0]!r}]"]
        less += [f"pairs.{role}=[{names[0]}]" for role, names in content.get("pairs", {}).items()]
        less += ["distractors.targets=[ghost]", "distractors.sets=1"] if "distractors" in content else []
        less += [f"sets=[{content['sets'][0]}]"] if "sets" in content else []
        less += [f"merges={content['merges'][1:2]}", "metrics=[clip_image]"] if path != EVERY else []
        config = read_config(path, less)
        result = ml.evaluate(config, tmp_path / path.stem, pipeline=pipe, progress=False)
        assert not result.failures
        merges = {f"merge:{recipe.label}" for recipe in recipes(config, adapter_sets(config)[0])}
        assert set(result.scores["variant"]) >= {"base", "stack", *merges}
        assert any(reference.startswith("photos:") for reference in result.scores["reference"])
