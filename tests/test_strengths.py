"""Strength: how it is written on a command line, and that by every way to give it the image follows it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import mergelab as ml
from mergelab import cli
from mergelab.cli.strengths import parse_weighted
from tests.files import LAYER, lora, write
from tests.live import latents, opened
from tests.refusing import Refused

SPELT: dict[str, tuple[str, float | dict[str, float]]] = {
    "a.safetensors": ("a.safetensors", 1.0),
    "a.safetensors:0.8": ("a.safetensors", 0.8),
    "a.safetensors=0.8": ("a.safetensors", 0.8),
    "a.safetensors=-5e-1": ("a.safetensors", -0.5),
    "a.safetensors:unet=0.7,text_encoder=.2": ("a.safetensors", {"unet": 0.7, "text_encoder": 0.2}),
    "a.safetensors=unet=0.7": ("a.safetensors", {"unet": 0.7}),
    "c=1.safetensors": ("c=1.safetensors", 1.0),
    "c=1.safetensors=0.5": ("c=1.safetensors", 0.5),
    "c=1.safetensors:0.5": ("c=1.safetensors", 0.5),
    "epoch=3/d:e.safetensors": ("epoch=3/d:e.safetensors", 1.0),
    "epoch=3/d:e.safetensors=2": ("epoch=3/d:e.safetensors", 2.0),
    r"C:\loras\f.safetensors": (r"C:\loras\f.safetensors", 1.0),
    r"C:\loras\f.safetensors=0.8": (r"C:\loras\f.safetensors", 0.8),
    r"C:\loras\f.safetensors:0.8": (r"C:\loras\f.safetensors", 0.8),
    "user/repo@v2/f.safetensors=0.5": ("user/repo@v2/f.safetensors", 0.5),
    "user/repo=0.5": ("user/repo", 0.5),
    "runs/lr=0.5:1": ("runs/lr=0.5", 1.0),
    "s3://bucket/epoch=3/f.safetensors": ("s3://bucket/epoch=3/f.safetensors", 1.0),
    "s3://bucket/epoch=3/f.safetensors=0.5": ("s3://bucket/epoch=3/f.safetensors", 0.5),
    "https://host:8080": ("https://host:8080", 1.0),
    "https://host:8080/f.safetensors": ("https://host:8080/f.safetensors", 1.0),
    "https://host:8080/f.safetensors=0.5": ("https://host:8080/f.safetensors", 0.5),
    "https://host/api/7?type=Model&format=1": ("https://host/api/7?type=Model&format=1", 1.0),
    "https://host/a.safetensors?token=b=0.5": ("https://host/a.safetensors?token=b=0.5", 1.0),
    "https://host/a?date=20240101T00:00:30": ("https://host/a?date=20240101T00:00:30", 1.0),
    "https://host/a?date=20240101T00:00:30.5": ("https://host/a?date=20240101T00:00:30.5", 1.0),
    "https://host/a?date=20240101T00:30%2B01:00": ("https://host/a?date=20240101T00:30%2B01:00", 1.0),
    "https://host/a?date=20240101T00:00:30:0.5": ("https://host/a?date=20240101T00:00:30", 0.5),
    "https://host/api/7?type=Model&format=1:0.5": ("https://host/api/7?type=Model&format=1", 0.5),
}


@pytest.mark.parametrize("text", SPELT)
def test_a_source_and_its_weight(text: str) -> None:
    """Behind a colon or an equals sign, whatever else has them: drives, ports, queries, names of files and folders."""
    assert parse_weighted(text) == SPELT[text]


def test_what_exists_is_meant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file or folder whose name ends as a weight does, or as that of no adapter; behind it there may be a weight."""
    monkeypatch.chdir(tmp_path)
    for name in ("x.pt", "folder", "x"):
        Path(name).mkdir()
    for name in ("x.pt", "folder"):
        for sign in ":=":
            parsed = parse_weighted(f"{name}{sign}unet=0.7,text_encoder=0.3")
            assert parsed == (name, {"unet": 0.7, "text_encoder": 0.3})
            assert parse_weighted(f"{name}{sign}unet=0.5") == (name, {"unet": 0.5})
    for name in ("d:0.5", "lr=0.5"):
        Path(name).mkdir()
        assert [parse_weighted(name), parse_weighted(f"{name}=2"), parse_weighted(f"{name}:2")] == [
            (name, 1.0),
            (name, 2.0),
            (name, 2.0),
        ]


@pytest.mark.parametrize("weight", ["0,7", "0_7", "1/2", "50%", "", "nan", "inf"])
@pytest.mark.parametrize("sign", [":", "="])
def test_what_is_no_weight(sign: str, weight: str, tmp_path: Path, refused: Refused) -> None:
    """Behind a file that is there."""
    file = write(tmp_path / "a.safetensors", lora())
    refused("merge", f"{file}{sign}{weight}", "-o", tmp_path / "out.safetensors")


@pytest.mark.parametrize("option", ["--weights", "--ratios", "--strength"])
def test_weights_are_no_option(option: str, tmp_path: Path, refused: Refused) -> None:
    """What other tools call it is said to stand behind the file."""
    file = write(tmp_path / "a.safetensors", lora())
    refused("merge", file, option, "0.5", "-o", tmp_path / "out.safetensors", needles=[option, "FILE=0.7"])


@pytest.fixture(scope="module")
def pipe() -> Any:
    """The small SDXL."""
    return opened("sdxl")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """A subject and a style, of few layers."""
    folder = tmp_path_factory.mktemp("loras")
    parts = {name: ml.load(f"miniature/sdxl/{name}").select("unet.mid_block.*") for name in ("ghost", "day")}
    ghost, day = (str(part.save(folder / f"{name}.safetensors")) for name, part in parts.items())
    return ghost, day


def test_as_many_weights_as_adapters(pipe: Any, files: tuple[str, str]) -> None:
    """Whoever takes a list of weights."""
    loras = [ml.load(file) for file in files]
    takers: list[Callable[[list[float]], Any]] = [
        lambda weights: ml.merge(loras, weights),
        lambda weights: ml.apply(pipe, loras, weights),
        lambda weights: ml.fuse(pipe, loras, weights),
        lambda weights: ml.fuse_checkpoint("miniature/sdxl", loras, "out", weights),
    ]
    for take in takers:
        for weights in ([], [1.0], [1.0, 1.0, 1.0]):
            with pytest.raises(ml.OptionError, match=r"weights has \d values? for 2 adapters \(ghost, day\)"):
                take(weights)


CONFIG = """
job: generate
config:
  process:
    - type: to_folder
      model:
        name_or_path: miniature/sdxl
        lora_paths: [{{path: {ghost}, weight: {strength}}}, {{path: {day}}}]
"""


def _merged(pipe: Any, files: tuple[str, str], strength: float, folder: Path) -> Tensor:
    merged = ml.merge(files, [strength, 1.0], method="cat")
    return _loaded(pipe, merged.save(folder / "merged.safetensors"))


def _on_the_command_line(pipe: Any, files: tuple[str, str], strength: float, folder: Path) -> Tensor:
    out = folder / "line.safetensors"
    assert cli.run(["merge", f"{files[0]}={strength}", files[1], "--method", "cat", "-o", str(out), "--force"]) == 0
    return _loaded(pipe, out)


def _by_config(pipe: Any, files: tuple[str, str], strength: float, folder: Path) -> Tensor:
    config, out = folder / "generate.yaml", folder / "config.safetensors"
    config.write_text(CONFIG.format(strength=strength, ghost=files[0], day=files[1]))
    assert cli.run(["merge", "--config", str(config), "--method", "cat", "-o", str(out), "--force"]) == 0
    return _loaded(pipe, out)


def _applied(pipe: Any, files: tuple[str, str], strength: float, folder: Path) -> Tensor:
    ml.apply(pipe, files, [strength, 1.0])
    try:
        return latents(pipe, "sdxl", steps=1)
    finally:
        ml.remove(pipe)


def _fused(pipe: Any, files: tuple[str, str], strength: float, folder: Path) -> Tensor:
    with ml.fused(pipe, files, [strength, 1.0]):
        return latents(pipe, "sdxl", steps=1)


def _by_blocks(pipe: Any, files: tuple[str, str], strength: float, folder: Path) -> Tensor:
    with ml.fused(pipe, files, [ml.block_weights("sdxl:ALL", strength), 1.0]):
        return latents(pipe, "sdxl", steps=1)


def _loaded(pipe: Any, file: Path) -> Tensor:
    pipe.load_lora_weights(str(file))
    try:
        return latents(pipe, "sdxl", steps=1)
    finally:
        pipe.unload_lora_weights()


def test_the_image_follows_the_strength(pipe: Any, files: tuple[str, str], tmp_path: Path) -> None:
    """At 0 the adapter is absent, at 1 it is whole; between, the distance rises; by every way alike."""
    with ml.fused(pipe, files[1]):
        without = latents(pipe, "sdxl", steps=1)
    ways = (_merged, _on_the_command_line, _by_config, _applied, _fused, _by_blocks)
    drawn = {way.__name__: [way(pipe, files, strength, tmp_path) for strength in (0.0, 0.5, 1.0)] for way in ways}
    for name, images in drawn.items():
        for image, same in zip(images, drawn["_fused"]):
            torch.testing.assert_close(image, same, atol=2e-3, rtol=0, msg=lambda text, name=name: f"{name}: {text}")
        none, half, whole = (float((image - without).norm()) for image in images)
        assert none < 0.01 * half < 0.01 * whole, (name, none, half, whole)


def test_an_adapter_alone_follows_its_strength(tmp_path: Path) -> None:
    """Its change is proportional, to the last bit of a power of two."""
    file = write(tmp_path / "a.safetensors", lora())
    whole = ml.load(file).layers[LAYER].delta_weight()
    for strength in (0.5, 2.0, -4.0):
        assert (
            cli.run(
                ["merge", f"{file}={strength}", "--method", "cat", "-o", str(tmp_path / "out.safetensors"), "--force"]
            )
            == 0
        )
        assert torch.equal(ml.load(tmp_path / "out.safetensors").layers[LAYER].delta_weight(), strength * whole)
