"""The prepared run of all that is measured on a GPU: what it does with what fails, and its units on the CPU."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from benchmarks.architectures import usual_layers
from benchmarks.gpu.__main__ import main
from benchmarks.gpu.merging import PEAKS
from benchmarks.gpu.pipelines import real_pipeline
from benchmarks.gpu.session import Session
from benchmarks.gpu.table import tables


def test_a_unit_fails_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What raises, what takes too long and what there is no time for are told, and the rest goes on."""
    session = Session("cpu", False, tmp_path, 60, tmp_path / "found.json")

    def unable() -> Any:
        raise NotImplementedError("merge takes no memory= yet")

    def slow() -> Any:
        for _ in range(200):
            try:
                time.sleep(0.1)
            except Exception:  # as an evaluation goes on after a cell that failed
                continue

    session.unit("wrong", 1, lambda: {"never": 1 / 0})
    session.unit("unknown", 1, unable)
    session.unit("long", -4.9, slow)  # its limit is four times that and 20: 0.4 s
    session.unit("too long", 61, lambda: {"never": 1})
    assert session.unit("right", 1, lambda: {"seconds": {"merge": 0.25}}) == {"seconds": {"merge": 0.25}}
    kept = json.loads((tmp_path / "found.json").read_text())["units"]
    states = [next(key for key in ("failed", "skipped", "found") if key in unit) for unit in kept]
    assert states == ["failed", "skipped", "failed", "skipped", "found"]
    assert "ZeroDivisionError" in kept[0]["failed"] and "given up" in kept[2]["failed"]
    assert "seconds (merge 0.25)" in capsys.readouterr().out.splitlines()[-1]


def test_it_runs_on_the_cpu(tmp_path: Path) -> None:
    """Merges of small layers, and those of a device beside the CPU's, which is the same device here."""
    words = ["--device", "cpu", "--small", "--arch", "sdxl", "--only", "merge,equal,cpu,peers"]
    session = main([*words, "--folder", str(tmp_path), "-o", str(tmp_path / "found.json")])
    found = {unit["unit"]: unit.get("found") for unit in session.units}
    assert all(value is not None for value in found.values())
    assert not any("missed" in value for value in found.values())
    assert found["whole merges against the CPU's"]["dare"]["largest"] == 0
    assert {path.name for path in tmp_path.iterdir()} == {"found.json"}
    text = tables(json.loads((tmp_path / "found.json").read_text()))
    assert "| sdxl ties | " in text and "| draws equal the CPU's | equal 8 |" in text
    assert None in PEAKS


@pytest.mark.parametrize("arch", ["flux", "sdxl"])
def test_the_pipelines_are_of_real_size(arch: str) -> None:
    """Every layer that is merged has its module in the denoiser, in the same shape; no weight is in float32."""
    pipe = real_pipeline(arch, "meta", False)
    component, part = ("transformer", "transformer_blocks.") if arch == "flux" else ("unet", "attentions.")
    model: nn.Module = getattr(pipe, component)
    layers = {
        f"{component}.{name}": tuple(module.weight.shape)
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and part in name
    }
    assert layers == usual_layers(arch)
    models = [part for part in pipe.components.values() if isinstance(part, nn.Module)]
    assert {p.dtype for part in models for p in part.parameters()} == {torch.bfloat16}
    assert torch.get_default_dtype() == torch.float32
