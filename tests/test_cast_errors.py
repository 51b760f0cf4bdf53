"""The error of a cast, as it is reported, against dense float64."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import mergelab as ml
from mergelab import cli
from tests.synthetic import adapter

FORMATS = ("diffusers", "kohya", "comfy", "peft", "same")


def dense_error(saved: ml.Adapter, exact: ml.Adapter) -> float:
    """Over all layers, from the changes themselves."""
    lost = whole = 0.0
    for name, layer in exact.layers.items():
        after = saved.layers[name]
        x, y = (z.scaling * z.lora_B.double().flatten(1) @ z.lora_A.double().flatten(1) for z in (layer, after))
        lost, whole = lost + float((x - y).norm() ** 2), whole + float(x.norm() ** 2)
    return (lost / whole) ** 0.5


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("format", FORMATS)
def test_the_error_that_is_reported_is_the_files(format: str, dtype: str, tmp_path: Path) -> None:
    """In every format, with scalings, with factors that have to be balanced, and never more than a rounding."""
    given = adapter(3, rank=(4, 2, 3, 1), scaling=0.3)
    layers = dict(given.layers)
    first = next(iter(layers))
    layers[first] = ml.LoraLayer(layers[first].lora_A * 1e-6, layers[first].lora_B * 1e6, 0.7)
    given = ml.Adapter(layers, architecture="sd15", source="x")
    written = given.write(tmp_path / ("x" if format == "peft" else "x.safetensors"), format=format, dtype=dtype)
    found = dense_error(ml.load(written.path, architecture=None if format == "peft" else "sd15"), given)
    assert written.cast_error == pytest.approx(found, rel=1e-3)
    assert 0 < found < 2 * torch.finfo(getattr(torch, dtype)).eps


def test_nothing_is_said_where_nothing_is_cast(tmp_path: Path) -> None:
    """By default every value is exact; a file of that dtype already has no error."""
    assert adapter(4).write(tmp_path / "x.safetensors").cast_error is None
    assert adapter(4).write(tmp_path / "x.safetensors", dtype="float32").cast_error == 0.0


def test_the_command_line_says_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """For merge, resize and convert, in one line, beside what was written."""
    path = str(adapter(5).save(tmp_path / "a.safetensors"))
    commands = (["merge", path, path], ["resize", path, "--rank", "2"], ["convert", path, "--format", "kohya"])
    for command in commands:
        assert cli.run([*command, "--dtype", "bf16", "-o", str(tmp_path / "out.safetensors"), "--force"]) == 0
        lines = capsys.readouterr().out.splitlines()
        (line,) = [line for line in lines if "from the cast" in line]
        assert 1e-4 < float(line.split()[2]) < 1e-2
