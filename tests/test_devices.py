"""Which device computes, with how much memory: the rule, on a machine that says it has a GPU; what a user names."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import mergelab as ml
from mergelab import cli, devices
from mergelab.devices import CPU, LAYER_BY_LAYER, WORTH, chosen_device, memory_budget, parsed_memory
from mergelab.engine import merge as merging
from mergelab.layer import LoraLayer
from mergelab.pipelines.opening import usual_device
from tests.aitoolkit import LORAS, config, written
from tests.refusing import Refused
from tests.synthetic import adapter, difference

GPU, GIB = torch.device("cuda", 0), 1 << 30
no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, int]]:
    """A machine whose one GPU has so much memory free, reserved by torch, and in use."""
    memory = {"free": 24 * GIB, "reserved": 0, "allocated": 0}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (memory["free"], 80 * GIB))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: memory["reserved"])
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: memory["allocated"])
    devices._say_once.cache_clear()
    yield memory
    devices._say_once.cache_clear()


def test_a_gpu_is_chosen_where_the_work_is_worth_it(gpu: dict[str, int]) -> None:
    """None is "auto"; a device that is named is taken whatever the work."""
    for auto in ("auto", None):
        assert chosen_device(auto, WORTH) == GPU
        assert chosen_device(auto, 0.99 * WORTH) == chosen_device(auto, LAYER_BY_LAYER) == CPU
    assert chosen_device("cpu", math.inf) == chosen_device(torch.device("cpu"), math.inf) == CPU


def test_a_gpu_that_is_full_is_left_alone(gpu: dict[str, int]) -> None:
    """What torch has reserved and does not use is free."""
    gpu["free"] = GIB - 1
    assert chosen_device("auto", WORTH) == CPU
    gpu |= {"reserved": 3 * GIB, "allocated": 3 * GIB - 1}
    assert chosen_device("auto", WORTH) == GPU


def test_a_gpu_that_cannot_be_used_is_said_once(
    gpu: dict[str, int], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A driver that is too old, a card in exclusive use."""

    def busy(device: Any) -> Any:
        raise RuntimeError("CUDA error: all CUDA-capable devices are busy or unavailable\nCompile with ...")

    monkeypatch.setattr(torch.cuda, "mem_get_info", busy)
    assert chosen_device("auto", WORTH) == chosen_device("auto", WORTH) == CPU
    assert [record.name for record in caplog.records] == ["mergelab"]
    assert "all CUDA-capable devices are busy or unavailable): computed on the CPU" in caplog.text


@no_gpu
def test_without_a_gpu_auto_is_the_cpu() -> None:
    """Whatever the work."""
    assert chosen_device("auto", math.inf) == CPU
    assert usual_device("auto") == usual_device(None) == "cpu"


@pytest.mark.parametrize("device", ["toaster", "", "cuda:x", "cuda:99", "mps", "meta", 3.5])
def test_what_is_no_device_here(device: Any) -> None:
    """One sentence, with those that there are."""
    with pytest.raises(ml.OptionError, match=r"cannot be used here; expected one of auto, cpu"):
        chosen_device(device, math.inf)


@no_gpu
@pytest.mark.parametrize("device", ["cuda", "cuda:1", torch.device("cuda")])
def test_a_gpu_that_is_not_there(device: Any) -> None:
    """Named, it has to be."""
    with pytest.raises(ml.OptionError, match=r"^device='cuda(:1)?' cannot be used here; expected one of auto, cpu$"):
        chosen_device(device, 0.0)


def test_mps_is_the_cpu_and_said_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, gpu: dict[str, int]
) -> None:
    """On a Mac: there is no float64 there; "auto" does not mean it."""
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert chosen_device("auto", math.inf) == CPU and not caplog.records
    loras = [adapter(1), adapter(2)]
    assert difference(ml.merge(loras, device="mps"), ml.merge(loras, device="cpu")) == 0
    assert loras[0].resize(2, device="mps:0").ranks == loras[0].resize(2).ranks
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "needs float64" in caplog.text and "computed on the CPU" in caplog.text


def stand_in(layers: int, rank: int, shape: tuple[int, ...] = (3072, 3072)) -> ml.Adapter:
    """An adapter with shapes alone."""
    with torch.device("meta"):
        layer = LoraLayer(torch.empty(rank, *shape[1:]), torch.empty(shape[0], rank))
    return ml.Adapter({f"transformer.transformer_blocks.{i}.attn.to_q": layer for i in range(layers)})


class Chosen(Exception):
    """Ends a merge when it begins to compute."""


@pytest.mark.parametrize(
    ("method", "options", "layers", "rank", "expected"),
    [
        ("svd", {}, 400, 64, GPU),  # 400 * 6144 * 128**2 = 4.03e10
        ("svd", {}, 390, 64, CPU),  # 3.93e10
        ("cat", {}, 400, 64, GPU),
        ("ties", {"space": "core"}, 390, 64, CPU),
        ("ties", {}, 40, 1, GPU),  # 40 * 3072**2 * 2 * 64 = 4.8e10
        ("ties", {}, 30, 1, CPU),
        ("linear", {"space": "factors"}, 4000, 64, CPU),  # PEFT's arithmetic, to the last bit
    ],
)
def test_what_is_worth_a_gpu(
    method: str,
    options: dict[str, Any],
    layers: int,
    rank: int,
    expected: torch.device,
    gpu: dict[str, int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Counted by hand, for two adapters; one at weight 0 is no work."""

    def begin(jobs: Any, *_: Any) -> Any:
        raise Chosen(jobs[0].device)

    monkeypatch.setattr(merging, "merge_layers", begin)
    loras = [stand_in(layers, rank), stand_in(layers, rank)]
    for weights, device in (([1.0, 0.5], expected), ([1.0, 0.0], CPU)):
        with pytest.raises(Chosen) as caught:
            ml.merge(loras, weights, method, **options)
        assert caught.value.args == (device,)


def test_memory_as_people_write_it() -> None:
    """Decimal and binary units, bytes."""
    assert [parsed_memory(text) for text in ("8GB", " 8 gib", "1.5GB", "512MB", "1 MiB", "2TB")] == [
        8 * 10**9, 8 * GIB, 1_500_000_000, 512 * 10**6, 1 << 20, 2 * 10**12,
    ]  # fmt: skip
    assert parsed_memory(GIB) == GIB and parsed_memory(None) is None


@pytest.mark.parametrize(
    "memory", [8, "8", "8G", "GB", "-8GB", "1.2.3GB", "0.5 KB", "1e9GB", "²GB", 0, True, 1e10, "all"]
)
def test_memory_that_is_none(memory: Any) -> None:
    """Also a number of gigabytes without its unit."""
    with pytest.raises(ml.OptionError, match=r"^memory=.*: expected at least 1 MiB, with a unit \('8GB', '512 MiB'\)"):
        ml.merge([adapter(1)], memory=memory)


def test_the_budget_of_a_gpu(gpu: dict[str, int]) -> None:
    """What is asked for; else 80 % of what is free, at most 10 GiB; none on a CPU."""
    assert memory_budget(GPU) == 10 * GIB
    assert memory_budget(GPU, 30 * GIB) == 30 * GIB
    gpu |= {"free": 4 * GIB, "reserved": 3 * GIB, "allocated": 2 * GIB}
    assert memory_budget(GPU) == 4 * GIB  # 80 % of 4 + 3 - 2
    assert memory_budget(CPU) == memory_budget(CPU, 30 * GIB) == 0


def test_on_the_command_line(tmp_path: Path, refused: Refused) -> None:
    """`--device`, `--memory`: neither bytes nor recipe tell the device; what is wrong, a dry run finds too."""
    a, b = (adapter(i).save(tmp_path / f"{i}.safetensors") for i in (1, 2))
    outs = [tmp_path / f"out{i}.safetensors" for i in range(3)]
    lines: tuple[list[str], ...] = ([], ["--device", "auto", "--memory", "8 GiB"], ["--device", "cpu"])
    for out, line in zip(outs, lines):
        assert cli.run(["merge", str(a), str(b), "-o", str(out), *line]) == 0
    assert outs[0].read_bytes() == outs[1].read_bytes() == outs[2].read_bytes()
    recipe = json.loads(ml.load(outs[0]).metadata["mergelab"])
    assert not {"device", "memory"} & {*recipe, *recipe["options"]}
    assert cli.run(["resize", str(a), "--rank", "2", "--device", "cpu", "-o", str(tmp_path / "small.safetensors")]) == 0
    assert cli.run(["compare", str(a), str(b), "--device", "cpu"]) == 0
    new = str(tmp_path / "new.safetensors")
    for dry in ([], ["--dry-run"]):
        refused("merge", a, "-o", new, "--device", "toaster", *dry, needles=("device='toaster'", "auto, cpu"))
        refused("merge", a, "-o", new, "--memory", "8", *dry, needles=("memory='8'", "8GB"))
        refused("resize", a, "--rank", "2", "-o", new, "--device", "toaster", *dry, needles=("device='toaster'",))
    refused("compare", a, b, "--device", "toaster", needles=("device='toaster'",))


@no_gpu
def test_the_device_of_a_configuration(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A merge is the same anywhere, so that a configuration from another machine is no error; what is named here is."""
    model = {"name_or_path": "miniature/sdxl", "is_xl": True, "lora_paths": LORAS}
    file, out = written(tmp_path, config(model, device="cuda:0")), str(tmp_path / "out.safetensors")
    assert cli.run(["merge", "--config", str(file), "-o", out]) == 0
    assert f"not used, since it is not here: device cuda:0 of {file}" in capsys.readouterr().out
    assert cli.run(["merge", "--config", str(file), "-o", out, "--force", "--device", "cpu"]) == 0
    assert "not used" not in capsys.readouterr().out
    assert cli.run(["merge", "--config", str(file), "-o", out, "--force", "--device", "cuda:0"]) == 2


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_named_gpu_compares_and_resizes() -> None:
    """To float tolerance; the result is on the CPU."""
    a, b = adapter(31), adapter(32)
    small = a.resize(2, device="cuda")
    assert difference(small, a.resize(2, device="cpu")) < 1e-3
    assert {layer.lora_A.device.type for layer in small.layers.values()} == {"cpu"}
    rows = zip(ml.compare(a, b, device="cuda").rows, ml.compare(a, b, device="cpu").rows)
    for x, y in rows:
        assert [x.inner, x.shared_subspace, x.sign_conflict] == pytest.approx(
            [y.inner, y.shared_subspace, y.sign_conflict], rel=1e-3, abs=1e-4
        )
