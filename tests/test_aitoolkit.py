"""AI Toolkit's generate configurations: the example files on the small models, both forms, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import mergelab as ml
from mergelab import cli, miniature
from tests.aitoolkit import FLUX, LORAS, SDXL, SINGLE, config, written
from tests.files import lora, write
from tests.live import latents
from tests.refusing import Refused
from tests.synthetic import difference


@pytest.mark.parametrize(
    ("file", "base", "loras"),
    [
        (SINGLE, "flux", {"ghost": 0.9}),
        (FLUX, "flux", {"ghost": 1.0, "day": 0.7}),
        (SDXL, "sdxl", {"ghost": 1.0, "day": 0.7}),
    ],
)
def test_examples_merge_as_their_adapters_do(file: Path, base: str, loras: dict[str, float], tmp_path: Path) -> None:
    """The same bytes as on a plain command line, which says the base model as well."""
    paths = [f"miniature/{base}/{name}" for name in loras]
    found = ml.generate_config(file)
    assert (found.base, found.architecture) == (f"miniature/{base}", base)
    assert (list(found.loras), list(found.weights)) == (paths, list(loras.values()))
    adapters = [f"{path}={weight}" for path, weight in zip(paths, loras.values())]
    lines = (["--config", str(file)], [*adapters, "--architecture", base])
    outs = [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
    for out, line in zip(outs, lines):
        assert cli.run(["merge", *line, "--method", "cat", "-o", str(out)]) == 0
    assert outs[0].read_bytes() == outs[1].read_bytes()


def test_old_and_new_form_are_the_same_bytes(tmp_path: Path) -> None:
    """With a weight, and without one."""
    path = "miniature/flux/ghost"
    for weight in (0.5, None):
        old = {"lora_path": path} | ({} if weight is None else {"lora_weight": weight})
        new = {"lora_paths": [{"path": path} | ({} if weight is None else {"weight": weight})]}
        outs = []
        for i, model in enumerate((old, new)):
            file = written(tmp_path, config({"name_or_path": "miniature/flux", "is_flux": True} | model))
            outs.append(tmp_path / f"{i}.safetensors")
            assert cli.run(["merge", "--config", str(file), "-o", str(outs[-1]), "--force"]) == 0
        assert outs[0].read_bytes() == outs[1].read_bytes()
        assert ml.generate_config(file).weights == (1.0 if weight is None else weight,)


def test_fused_is_what_a_live_pipeline_draws(tmp_path: Path) -> None:
    """The image of the adapter at its weight."""
    model = {"name_or_path": "miniature/flux", "is_flux": True, "low_vram": True}
    file = written(tmp_path, config(model | {"lora_paths": [{"path": "miniature/flux/ghost", "weight": 0.8}]}))
    found, out = ml.generate_config(file), tmp_path / "fused"
    assert cli.run(["fuse", "--config", str(file), "-o", str(out)]) == 0
    drawn, bare = latents(_flux(out), "flux"), _flux(miniature.folder("flux"))
    with ml.fused(bare, found.loras, found.weights, keep="cpu"):
        # The folder is in half precision, and so is what is fused into it.
        torch.testing.assert_close(drawn, latents(bare, "flux"), atol=5e-3, rtol=0)
    assert (drawn - latents(bare, "flux")).abs().max() > 0.05


def _flux(folder: Path) -> Any:
    from diffusers import FluxPipeline

    pipe = FluxPipeline.from_pretrained(str(folder))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_fuse_says_what_it_does_not_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Weights of another file, quantisation: nothing is made of them, and not in silence."""
    keys = {"name_or_path": "miniature/sdxl", "unet_path": "x", "quantize": True, "te_name_or_path": None}
    file = written(tmp_path, config(keys | {"lora_paths": [{"path": "miniature/sdxl/ghost"}]}))
    assert cli.run(["fuse", "--config", str(file), "-o", str(tmp_path / "out")]) == 0
    assert (
        "not read, the base model is miniature/sdxl as it is: model.unet_path, model.quantize"
        in capsys.readouterr().out
    )


def test_fuse_takes_another_base(tmp_path: Path, refused: Refused) -> None:
    """A model on the Hub has to be here first; one that is here is named before the options."""
    lora_paths = [{"path": "miniature/sdxl/ghost", "weight": 0.5}]
    file = written(
        tmp_path, config({"name_or_path": "stabilityai/stable-diffusion-xl-base-1.0", "lora_paths": lora_paths})
    )
    refused("fuse", "--config", file, "-o", tmp_path / "out", needles=["stabilityai", "downloaded first"])
    unet = miniature.folder("sdxl") / "unet" / "diffusion_pytorch_model.safetensors"
    base = tmp_path / "base.safetensors"
    base.write_bytes(unet.read_bytes())
    refused(
        "fuse", base, "miniature/sdxl/day", "--config", file, "-o", tmp_path / "out", needles=["give one of the two"]
    )
    nameless = written(tmp_path, config({"lora_paths": lora_paths}), "nameless.yaml")
    refused("fuse", "--config", nameless, "-o", tmp_path / "out", needles=["no model.name_or_path"])
    refused("fuse", "-o", tmp_path / "out", needles=["no adapters"])


def test_relative_paths_are_beside_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Or in the working directory, as AI Toolkit has them; variables of the environment and the job's name count."""
    folder, here = tmp_path / "configs", tmp_path / "here"
    (folder / "test").mkdir(parents=True)
    here.mkdir()
    monkeypatch.chdir(here)
    monkeypatch.setenv("LORAS", str(here))
    a, b = write(folder / "test" / "a.safetensors", lora()), write(here / "b.safetensors", lora(rank=3))
    paths = ["[name]/a.safetensors", "b.safetensors", "${LORAS}/b.safetensors"]
    found = ml.generate_config(written(folder, config({"lora_paths": paths})))
    assert [Path(path) for path in found.loras] == [a, b, b] and found.weights == (1.0, 1.0, 1.0)


@pytest.mark.parametrize(
    ("flags", "architecture", "width"),
    [({}, None, 768), ({"arch": "sd1"}, "sd15", 768), ({"is_v2": True, "is_xl": False}, "sd2", 1024)],
)
def test_sd_1_and_2(flags: dict[str, Any], architecture: str | None, width: int, tmp_path: Path) -> None:
    """Their adapters merge, too."""
    path = "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k"
    files = [write(tmp_path / f"{i}.safetensors", lora(f"unet.{path}", 640, width, i)) for i in (1, 2)]
    entries = [{"path": str(file), "weight": weight} for file, weight in zip(files, (0.5, -1.0))]
    file, out = written(tmp_path, config(flags | {"lora_paths": entries})), tmp_path / "out.safetensors"
    assert ml.generate_config(file).architecture == architecture
    assert cli.run(["merge", "--config", str(file), "--method", "cat", "-o", str(out)]) == 0
    assert difference(ml.load(out), 0.5 * ml.load(files[0]) - ml.load(files[1])) < 1e-6


@pytest.mark.parametrize("arch", ["flux", "flux_kontext", "flex1", "flux:tag"])
def test_models_of_the_architecture_of_flux(arch: str, tmp_path: Path) -> None:
    """AI Toolkit's name of a model is more than that of its architecture."""
    file = written(tmp_path, config({"arch": arch, "lora_path": "miniature/flux/ghost"}))
    assert ml.generate_config(file).architecture == "flux"


WEIGHTS = {"1e-1": 0.1, "1e0": 1.0, "-5E-1": -0.5, "2.e+0": 2.0, ".5e1": 5.0, "0.7": 0.7, "1": 1.0}


def test_numbers_as_ai_toolkit_has_them(tmp_path: Path) -> None:
    """An exponent without a point or a sign, which plain YAML takes for a text."""
    text = "job: generate\nconfig: {process: [{model: {lora_paths: [%s]}}]}\n"
    entries = ", ".join(f"{{path: miniature/sdxl/ghost, weight: {weight}}}" for weight in WEIGHTS)
    assert ml.generate_config(written(tmp_path, text % entries)).weights == tuple(WEIGHTS.values())


def test_anchors_and_merge_keys(tmp_path: Path) -> None:
    """An entry that is another one but for its weight, and an entry that is that one but for its path."""
    entries = "[&a {path: x, weight: 0.5}, &b {<<: *a, weight: 0.7}, {<<: *b, path: y}, {<<: [*b, *a], weight: 2}]"
    file = written(tmp_path, f"job: generate\nconfig: {{process: [{{model: {{lora_paths: {entries}}}}}]}}\n")
    found = ml.generate_config(file)
    assert (found.loras, found.weights) == (("x", "x", "y", "x"), (0.5, 0.7, 0.7, 2.0))


REFUSED: dict[str, tuple[Any, list[str]]] = {
    "no mapping": ("- a\n- b\n", ["'job' and 'config'"]),
    "no YAML": ("a: [", ["no YAML"]),
    "an evaluation": ({"pipeline": "miniature/sdxl", "loras": LORAS}, ["'job' and 'config'"]),
    "training": (config({"lora_paths": LORAS}) | {"job": "extension"}, ["'extension'", "'generate'"]),
    "another process": (config({"lora_paths": LORAS}, type="sd_trainer"), ["'sd_trainer'", "'to_folder'"]),
    "two processes": ({"job": "generate", "config": {"process": [{}, {}]}}, ["one process"]),
    "no model": (config(None), ["model: expected a mapping"]),
    "no adapter": (config({"is_xl": True}), ["model.lora_paths: expected a list"]),
    "an empty list": (config({"lora_paths": []}), ["model.lora_paths", "found []"]),
    "no path": (config({"lora_paths": [*LORAS, {"weight": 1.0}]}), ["model.lora_paths.1", "has no path"]),
    "both forms": (config({"lora_paths": LORAS, "lora_path": "x"}), ["model.lora_path and model.lora_paths"]),
    "both, the weight": (config({"lora_paths": LORAS, "lora_weight": 1.0}), ["model.lora_weight and"]),
    "a weight alone": (config({"lora_weight": 1.0}), ["without model.lora_path"]),
    "a text as weight": (config({"lora_paths": [{"path": "x", "weight": "1"}]}), ["weight '1'"]),
    "a number as path": (config({"lora_paths": [{"path": 7}]}), ["found 7"]),
    "an unknown key": (config({"lora_pahts": LORAS}), ["'model.lora_pahts'", "did you mean 'lora_paths'"]),
    "of an entry": (config({"lora_paths": [{"path": "x", "wieght": 1}]}), ["lora_paths.0.wieght", "'weight'"]),
    "of generate": (config({"lora_paths": LORAS}, {"promts": ["a"]}), ["'generate.promts'", "'prompts'"]),
    "of the process": (config({"lora_paths": LORAS}, modle={}), ["modle", "'model'"]),
    "a key twice": (
        "job: generate\nconfig:\n  process:\n    - model:\n        lora_path: a\n        lora_path: b\n",
        ["'lora_path' is there twice"],
    ),
    "two base models": (config({"is_xl": True, "is_flux": True, "lora_paths": LORAS}), ["flux and sdxl"]),
    "an empty path": (config({"lora_paths": [{"path": ""}]}), ["model.lora_paths.0", "found ''"]),
    "an empty old path": (config({"lora_path": ""}), ["model.lora_path: expected a path", "found ''"]),
    "an empty base": (config({"name_or_path": "", "lora_paths": LORAS}), ["model.name_or_path", "found ''"]),
    "no truth": (config({"low_vram": "yes please", "lora_paths": LORAS}), ["model.low_vram", "true or false"]),
    "another base model": (config({"is_flux": True, "lora_paths": LORAS}), ["architecture='flux'"]),
    "other adapters": (config({"lora_paths": LORAS, "assistant_lora_path": "x"}), ["model.assistant_lora_path"]),
    "no such variable": (config({"lora_paths": ["${NO_SUCH_VARIABLE}/x"]}), ["NO_SUCH_VARIABLE"]),
    "no such adapter": (config({"lora_paths": ["./none.safetensors"]}), ["none.safetensors"]),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str, tmp_path: Path, refused: Refused) -> None:
    """In one sentence that names the file and the key."""
    content, needles = REFUSED[name]
    file = written(tmp_path, content)
    said = refused("merge", "--config", file, "-o", tmp_path / "out.safetensors", needles=needles)
    assert str(file) in said or name in ("another base model", "no such adapter")


def test_adapters_beside_a_config_are_refused(tmp_path: Path, refused: Refused) -> None:
    """One of the two says what is merged."""
    file = written(tmp_path, config({"lora_paths": LORAS}))
    line = ("merge", "miniature/sdxl/day", "--config", file, "-o", tmp_path / "out.safetensors")
    refused(*line, needles=["miniature/sdxl/day", "generate.yaml", "give one of the two"])
    refused("merge", "--config", tmp_path / "no.yaml", "-o", tmp_path / "out.safetensors", needles=["no such file"])
