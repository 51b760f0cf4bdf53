"""How much work a merge does, counted instead of timed: no dense matrix on the linear path, memory, threads."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import mergelab as ml
from benchmarks.full_size import main
from mergelab.engine import layers, thresholds
from mergelab.engine.thresholds import layer_thresholds
from mergelab.linalg import selection, stacks
from mergelab.linalg.lowrank import Factors
from mergelab.linalg.selection import sampled_bracket
from mergelab.linalg.stacks import ChangeStack
from mergelab.linalg.workspace import Workspace
from mergelab.methods.registry import options_of
from tests.synthetic import adapter

ROOT = Path(__file__).parent.parent
SHAPES: dict[str, tuple[int, ...]] = {
    "unet.mid_block.attentions.0.proj_in": (700, 600),
    "unet.mid_block.attentions.0.proj_out": (40, 900),
    "unet.up_blocks.0.resnets.0.conv1": (400, 60, 3, 3),
}


class Watch(TorchDispatchMode):
    """What every operation of torch returns: the largest tensor, and the shapes that are decomposed."""

    def __init__(self) -> None:
        super().__init__()
        self.largest = 0
        self.decomposed: list[tuple[int, ...]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        outputs = result if isinstance(result, (tuple, list)) else (result,)
        self.largest = max([self.largest, *(x.numel() for x in outputs if isinstance(x, torch.Tensor))])
        if any(name in str(func) for name in ("svd", "eigh")):
            self.decomposed.append(tuple(args[0].shape))
        return result


@pytest.mark.parametrize(
    ("method", "options"),
    [("linear", {}), ("svd", {}), ("svd", {"rank": 0.9}), ("cat", {}), ("ties", {"space": "core"})],
)
def test_low_rank_merges_form_nothing_dense(method: str, options: dict[str, Any]) -> None:
    """No tensor of the size of a layer is ever made, and nothing wider than the sum of the ranks is decomposed."""
    loras = [adapter(i, rank=4, shapes={n: s for n, s in SHAPES.items() if s[0] > 100}) for i in range(3)]
    with Watch() as watch:
        ml.merge(loras, method=method, **options)
    assert 0 < watch.largest < 400 * 540
    assert all(min(shape) <= 12 and max(shape) <= 36 for shape in watch.decomposed)


@pytest.mark.parametrize("method", ["ties", "dare", "dare_ties", "magnitude_prune"])
def test_dense_merges_decompose_nothing_dense(method: str) -> None:
    """An entry-wise rule costs products with a few columns, not a dense decomposition."""
    shapes = {n: s for n, s in SHAPES.items() if min(s[0], math.prod(s[1:])) > 256}
    with Watch() as watch:
        ml.merge([adapter(i, rank=4, shapes=shapes) for i in range(3)], method=method)
    assert watch.decomposed and all(max(shape) <= 32 for shape in watch.decomposed)


OPTIONS: tuple[dict[str, Any], ...] = ({}, {"space": "core"}, {"scope": "adapter"}, {"variant": "peft"})


@pytest.mark.parametrize(
    ("method", "options"),
    [(m, o) for m in ("svd", "ties", "dare") for o in OPTIONS if o.keys() <= options_of(m).keys()],
)
def test_any_number_of_threads_gives_the_same_bytes(
    method: str, options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Within a large layer as well as across small ones."""
    monkeypatch.setattr(layers, "LARGE", 100_000)
    monkeypatch.setattr(stacks, "BLOCK", 1 << 14)
    monkeypatch.setattr(selection, "MAX_CANDIDATES", 1 << 12)
    monkeypatch.setattr(thresholds, "MAX_SEARCHED", 1 << 12)
    loras = [adapter(i, rank=4, shapes=SHAPES) for i in range(3)]
    found = []
    for threads in (1, 3):
        torch.set_num_threads(threads)
        try:
            path = ml.merge(loras, method=method, seed=5, **options).save(tmp_path / f"{threads}.safetensors")
            assert torch.get_num_threads() == threads
        finally:
            torch.set_num_threads(1)
        found.append(path.read_bytes())
    assert found[0] == found[1]


def test_threads_come_back_after_an_error() -> None:
    """A merge that fails leaves torch's threads as they were."""
    bad = adapter(0)
    next(iter(bad.layers.values())).lora_A.fill_(float("nan"))
    torch.set_num_threads(2)
    try:
        with pytest.raises(ml.LayerError):
            ml.merge([bad, adapter(1)])
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)


@pytest.mark.parametrize("density", [0.02, 0.5, 0.97])
def test_a_sampled_threshold_is_exact(density: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether the bracket holds the answer, misses it on either side, or holds more than is kept."""
    change = adapter(3, rank=6, shapes={"unet.conv_in": (300, 500)}).matrices("unet.conv_in")
    exact = float(change.delta().abs().flatten().sort(descending=True).values[int(density * 150_000) - 1])
    stacked = ChangeStack((change,), (1.0,))
    monkeypatch.setattr(thresholds, "MAX_SEARCHED", 1000)
    low, high = sampled_bracket(stacked.spread_sample(0, 20_000), density)
    assert low <= exact <= high
    for bracket in ((low, high), (0.0, exact / 2), (2 * exact, math.inf), (exact, exact * 1.001)):
        for kept in (1 << 22, 1000):
            monkeypatch.setattr(selection, "MAX_CANDIDATES", kept)
            monkeypatch.setattr(thresholds, "sampled_bracket", lambda *_, bracket=bracket: bracket)
            assert layer_thresholds([(0, density)], [stacked], Workspace()) == [exact]


MEMORY = """
import sys, torch
from benchmarks.measuring import measured
import mergelab as ml
from mergelab.layer import LoraLayer

torch.set_num_threads(2)
generator = torch.Generator().manual_seed(0)
loras = [
    ml.Adapter({
        f"unet.mid_block.attentions.{i}.proj_in":
        LoraLayer(torch.randn(8, 2048, generator=generator), torch.randn(3072, 8, generator=generator))
        for i in range(2)
    })
    for _ in range(int(sys.argv[1]))
]
small = [a.select("unet.mid_block.attentions.0.proj_in") for a in loras[:2]]
ml.merge(small, method="ties", rank=8)  # what a process allocates once
with measured(0.001) as took:
    ml.merge(loras, method="ties", rank=8)
print(took.peak / (4 * 3072 * 2048))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the memory of a process is read from Linux")
@pytest.mark.parametrize("adapters", [2, 8])
def test_peak_memory_is_bounded_by_the_layer(adapters: int) -> None:
    """At most three dense copies of the largest layer, however many adapters."""
    command = [sys.executable, "-c", MEMORY, str(adapters)]
    copies = float(subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout)
    assert 0.5 < copies < 3


def test_a_factor_is_never_changed() -> None:
    """The rules overwrite memory of their own, not the inputs."""
    loras = [adapter(i, shapes=SHAPES) for i in range(2)]
    before = [[t.clone() for x in a.layers.values() for t in (x.lora_A, x.lora_B)] for a in loras]
    for method in ("ties", "dare", "magnitude_prune"):
        ml.merge(loras, method=method)
    after = [[t for x in a.layers.values() for t in (x.lora_A, x.lora_B)] for a in loras]
    assert all(torch.equal(x, y) for xs, ys in zip(before, after) for x, y in zip(xs, ys))
    assert isinstance(loras[0].matrices(next(iter(SHAPES))), Factors)


def test_the_benchmark_runs(capsys: pytest.CaptureFixture[str]) -> None:
    """On two layers of SD 1.5."""
    words = "--arch sd15 --layers 2 --rank 4 --adapters 2 --method ties"
    result = main(words.split())
    assert result["layers_of_the_model"] == 192 and result["ratio"] > 0
    assert all(-1e-4 < excess < 1e-3 for excess in result["excess_error"].values())
    assert result["peft"]["seconds"] > 0 and "merging" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arch", "file", "count"), [("flux", "flux_dev", 494), ("sdxl", "sdxl_base", 722), ("sd15", "sd15", 192)]
)
def test_the_benchmark_has_the_shapes_of_the_real_models(arch: str, file: str, count: int, shared: Path) -> None:
    """Against the lists that were taken from the real models."""
    import json

    from benchmarks.architectures import all_shapes, usual_layers

    expected = json.loads((shared / "shapes" / f"shapes_{file}.json").read_text())
    assert all_shapes(arch) == {name: tuple(shape) for name, shape in expected.items()}
    assert len(usual_layers(arch)) == count
