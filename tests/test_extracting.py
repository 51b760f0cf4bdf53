"""What tuning has changed comes back as an adapter: exactly, to the rounding of the files, or at the best of a rank."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import mergelab as ml
from mergelab import miniature
from mergelab.cli import run
from mergelab.formats import sha256_of
from mergelab.formats.base_weights import BaseWeights, open_base
from mergelab.layer import BIAS_SUFFIX
from tests.refusing import Refused
from tests.test_base_weights import single_file_of_sdxl
from tests.test_fuse_checkpoint import CLIP_G, UNET, opened, original, sdxl

State = dict[str, Tensor]
ROOT = Path(__file__).parents[1]
BLOCK = "unet.mid_block.attentions.0."
DEEP = f"{BLOCK}transformer_blocks.0."


@cache
def base(id: str) -> BaseWeights:
    return open_base(f"miniature/{id}")


def state(id: str) -> State:
    """Of all layers and their biases by canonical name, in float32."""
    model = base(id)
    weights = {f"{name}.weight": model.weight(name) for name in model.names}
    return weights | {f"{n}.bias": bias for n in model.names if (bias := model.bias(n)) is not None}


def tuned(id: str, change: ml.Adapter) -> State:
    weights = state(id)
    for name, layer in change.layers.items():
        weights[f"{name}.weight"] += layer.delta_weight()
    return weights


def check_equal(found: ml.Adapter, expected: ml.Adapter, error: float) -> None:
    """The same layers, and changes that differ by no more than this in any entry."""
    assert found.layers.keys() == expected.layers.keys()
    for name, layer in expected.layers.items():
        assert float((found.layers[name].delta_weight() - layer.delta_weight()).abs().max()) <= error, name


@pytest.mark.parametrize("id", ["sdxl", "flux"])
def test_an_adapter_comes_back(id: str) -> None:
    """In float32, at its own rank: every change to 1e-5 of the largest."""
    ghost = ml.load(f"miniature/{id}/ghost")
    found = ml.extract(tuned(id, ghost), state(id), rank=max(ghost.ranks.values()))
    largest = max(float(layer.delta_weight().abs().max()) for layer in ghost.layers.values())
    check_equal(found, ghost, 1e-5 * max(1.0, largest))
    assert found.architecture == id and not found.extras
    assert found.report.retained_energy > 1 - 1e-9
    assert f"{122 - 48} of 122 layers do not differ" in str(found.report) or id == "flux"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_from_half_precision_to_its_rounding(dtype: torch.dtype, tmp_path: Path) -> None:
    """From a fused single file in the original's names and its base model in diffusers' folder: names, fused q, k and
    v, and swapped halves, too. Rounding is a change of full rank, which the adapter's rank leaves out.
    """
    opened("flux", dtype).save_pretrained(tmp_path / "base")
    model, ghost = opened("flux", dtype).transformer, ml.load("miniature/flux/ghost")
    for name, layer in ghost.layers.items():
        parameter = model.get_submodule(name.partition(".")[2]).weight
        parameter.data = (parameter.data.float() + layer.delta_weight()).to(dtype)
    single = original(model.state_dict(), "flux")
    save_file({UNET + key: value.contiguous() for key, value in single.items()}, tmp_path / "tuned.safetensors")
    rank = max(ghost.ranks.values())
    found = ml.extract(tmp_path / "tuned.safetensors", tmp_path / "base", rank)
    assert found.layers.keys() == ghost.layers.keys()
    whole = open_base(tmp_path / "base")
    for name, layer in ghost.layers.items():
        # Half a unit in the last place of the largest weight, the rounding of what was fused.
        largest = float(whole.weight(name).abs().max()) + float(layer.delta_weight().abs().max())
        error = (found.layers[name].delta_weight() - layer.delta_weight()).abs().max()
        assert float(error) <= torch.finfo(dtype).eps * largest, name
    assert 0 < found.report.relative_error < 0.05
    assert "not compared, in" in str(found.report) and "all of text_encoder_2" in str(found.report)
    check_equal(ml.extract(model, tmp_path / "base", rank), found, 0)


def test_a_single_file_of_sdxl_from_a_loaded_model() -> None:
    """UNet and both encoders, one of which the file has in open_clip's form, with fused q, k, v, without embeddings."""
    tensors, models = single_file_of_sdxl(), SimpleNamespace(components=sdxl())
    key = f"{CLIP_G}transformer.resblocks.0.attn.in_proj_weight"
    change = torch.outer(torch.arange(len(tensors[key])), torch.ones(tensors[key].shape[1])) / 64
    tensors[key] = tensors[key].float() + change
    found = ml.extract(tensors, models, 1, components=["unet", "text_encoder", "text_encoder_2"])
    layers = [f"text_encoder_2.text_model.encoder.layers.0.self_attn.{x}_proj" for x in "qkv"]
    assert sorted(found.layers) == sorted(layers)
    for layer, expected in zip(layers, change.chunk(3)):
        assert torch.allclose(found.layers[layer].delta_weight(), expected, atol=1e-4)
    assert "differ (" not in str(found.report)
    assert "alone: 1 layer (text_encoder_2.text_projection, ...)" in str(found.report)


def noise(names: list[str], seed: int = 0) -> State:
    """A small SDXL whose named layers have a random change of full rank."""
    generator, weights = torch.Generator().manual_seed(seed), state("sdxl")
    for name in names:
        weight = weights[f"{name}.weight"]
        weights[f"{name}.weight"] = weight + torch.randn(weight.shape, generator=generator)
    return weights


LAYERS = [f"{BLOCK}proj_in", f"{DEEP}attn2.to_k", "unet.conv_in", "unet.mid_block.resnets.0.conv1"]


@pytest.mark.parametrize("rank", [1, 8, 0.9, "mean=6", ml.RankBudget(mean=6, max=8)])
def test_the_best_of_its_rank(rank: Any) -> None:
    """Against numpy's singular values in float64: of linear layers and of convolutions."""
    changed = noise(LAYERS)
    found = ml.extract(changed, state("sdxl"), rank)
    rows = {row.name: row for row in found.report.layers}
    assert set(rows) == set(LAYERS)
    for name in LAYERS:
        exact = (changed[f"{name}.weight"].double() - base("sdxl").weight(name).double()).flatten(1)
        squares = torch.linalg.svdvals(exact).square()
        count = found.layers[name].rank if name in found.layers else 0
        stored = found.layers[name].delta_weight().double().flatten(1) if count else torch.zeros_like(exact)
        assert rows[name].rank == count
        assert rows[name].energy == pytest.approx(float(squares.sum()), rel=1e-6)
        assert float((exact - stored).square().sum()) <= 1.001**2 * float(squares[count:].sum()) + 1e-6
        assert rows[name].energy - rows[name].kept == pytest.approx(float(squares[count:].sum()), rel=0.003)
        if isinstance(rank, float):
            assert squares[:count].sum() >= 0.9 * squares.sum() > squares[: count - 1].sum()
    if not isinstance(rank, (int, float)):
        assert sum(found.ranks.values()) == 6 * len(LAYERS)


def test_a_capped_rank_is_said() -> None:
    """A layer that cannot hold it has all of its change."""
    found = ml.extract(noise(LAYERS[:1]), state("sdxl"), 1000)
    full = min(found.layers[LAYERS[0]].shape)
    assert found.ranks == {LAYERS[0]: full}
    assert f"rank capped at {full}" in str(found.report)


def test_biases_are_kept_and_the_rest_is_told(tmp_path: Path) -> None:
    """Biases exactly, also through a file; a norm, an embedding and the VAE by their number and norm."""
    folder = tmp_path / "tuned"
    pipe = opened("sdxl")
    with torch.no_grad():
        pipe.unet.conv_in.bias += 0.5
        pipe.unet.conv_in.weight += 0.25
        pipe.unet.mid_block.resnets[0].conv1.bias[0] -= 2.0
        pipe.unet.conv_norm_out.weight[0] += 3.0
        pipe.unet.conv_norm_out.bias[0] += 4.0
        pipe.text_encoder.get_input_embeddings().weight[3, 2] += 2.0
        pipe.vae.decoder.conv_in.weight[0, 0, 0, 0] += 1.0
    pipe.save_pretrained(folder)
    found = ml.extract(folder, opened("sdxl"), rank=2)
    names = ["unet.conv_in", "unet.mid_block.resnets.0.conv1"]
    assert list(found.layers) == names[:1]
    assert set(found.extras) == {name + BIAS_SUFFIX for name in names}
    assert torch.allclose(found.extras[names[0] + BIAS_SUFFIX], torch.full((64,), 0.5), atol=1e-6)
    told = str(found.report)
    assert "2 tensors of unet that differ (unet.conv_norm_out.bias the first), by 5 in norm" in told
    assert "1 tensor of text_encoder that differ" in told and "by 2 in norm" in told
    assert "1 tensor of vae that differ" in told and "2 differences of a bias, kept exactly" in told
    for format in ("diffusers", "kohya", "comfy"):
        again = ml.load(found.save(tmp_path / f"{format}.safetensors", format=format))
        assert all(torch.equal(again.extras[key], tensor) for key, tensor in found.extras.items())
    assert "text_encoder" not in str(ml.extract(folder, opened("sdxl"), rank=2, components=["unet"]).report)


def test_another_dtype_is_no_difference(tmp_path: Path) -> None:
    """A file in float16 of a model in float32 is the model; what differs beyond the rounding is told to have some."""
    weights = noise(LAYERS[:1])
    halves = {key: value.half() for key, value in weights.items()}
    save_file(halves, tmp_path / "tuned.safetensors")
    found = ml.extract(tmp_path / "tuned.safetensors", state("sdxl"), 4)
    assert list(found.layers) == LAYERS[:1]
    assert "tuned.safetensors in F16 and <state dict> in F32: the difference holds the rounding" in str(found.report)
    with pytest.raises(ml.OptionError, match="do not differ in any of 122 layers: there is nothing to extract"):
        ml.extract({key: value.half() for key, value in state("sdxl").items()}, "miniature/sdxl")


def without(name: str) -> State:
    return {key: value for key, value in state("sdxl").items() if not key.startswith(name)}


def with_weight(name: str, weight: Tensor) -> State:
    return state("sdxl") | {f"{name}.weight": weight}


@pytest.mark.parametrize(
    ("wrong", "match"),
    [
        (lambda: ml.extract(without(LAYERS[0]), "miniature/sdxl"), r"has 1 layer of the unet that the other .*proj_in"),
        (lambda: ml.extract("miniature/sdxl", without("unet.conv_in")), "miniature/sdxl has 1 layer of the unet that"),
        (lambda: ml.extract("miniature/flux", "miniature/sdxl"), "is flux and miniature/sdxl is sdxl: expected two of"),
        (
            lambda: ml.extract(with_weight("unet.conv_in", torch.ones(64, 9, 3, 3)), "miniature/sdxl"),
            r"layer unet\.conv_in: <state dict> has a weight of shape \(64, 9, 3, 3\), expected \(64, 8, 3, 3\)",
        ),
        (
            lambda: ml.extract(with_weight(LAYERS[0], torch.full((128, 128), torch.nan)), "miniature/sdxl"),
            r"layer unet\.mid_block\S+proj_in: the difference of the two models has values that are NaN",
        ),
        (
            lambda: ml.extract(with_weight(LAYERS[0], torch.ones(128, 128, dtype=torch.int8)), "miniature/sdxl"),
            r"proj_in: its weight is quantised, I8",
        ),
        (lambda: ml.extract("miniature/sdxl", "miniature/sdxl", "max"), "rank='max': expected a number"),
        (lambda: ml.extract("miniature/sdxl", "miniature/sdxl", 0), "rank=0"),
        (lambda: ml.extract("miniature/sdxl", "miniature/sdxl", components=["vae"]), "has no layers of 'vae'"),
        (lambda: ml.extract("miniature/sdxl", "miniature/sdxl", components="unet"), "expected a list of names"),
        (
            lambda: ml.extract({"x.weight": torch.ones(4, 4)}, {"x.weight": torch.ones(4, 4)}),
            "of an unknown base model: expected two of one base model; say architecture=",
        ),
    ],
)
def test_what_cannot_be_extracted_is_refused(wrong: Callable[[], Any], match: str) -> None:
    """By name, with what to do."""
    with pytest.raises(ml.MergelabError, match=match):
        wrong()


def test_what_one_tells_goes_for_the_other() -> None:
    """A text encoder alone, of which nothing tells whose it is, beside the whole model."""
    part = {key: 2 * value for key, value in state("sdxl").items() if key.startswith("text_encoder.text_model.encoder")}
    assert open_base(part).architecture is None
    found = ml.extract(part, "miniature/sdxl", 4)
    assert found.architecture == "sdxl" and {name.partition(".")[0] for name in found.layers} == {"text_encoder"}
    assert "not compared, in miniature/sdxl alone: all of unet" in str(found.report)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str], refused: Refused) -> None:
    """From fused folder to file; what was taken out and is fused again gives the folder's weights."""
    folder, out = tmp_path / "ghostly", tmp_path / "ghost.safetensors"
    ml.fuse_checkpoint("miniature/sdxl", "miniature/sdxl/ghost", folder)
    line = ["extract", str(folder), "miniature/sdxl", "-o", str(out), "--rank", "8"]
    assert run([*line, "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("48 of 122 layers differ\ndry run, nothing was written;")
    assert "rank 8, 48 layers, format diffusers" in said and not out.exists()
    assert run([*line, "--for", "comfyui", "--components", "unet"]) == 0
    said = capsys.readouterr().out
    assert "48 layers, format comfy" in said and "relative error 0.0" in said and "extracting" not in said
    assert run([*line, "--force"]) == 0
    recipe = json.loads(ml.load(out).metadata["mergelab"])
    assert recipe["method"] == "extract" and recipe["options"] == {"rank": 8, "components": None}
    own, there = recipe["inputs"]
    assert (own["name"], own["weight"], there["name"], there["weight"]) == ("ghostly", 1.0, "sdxl", -1.0)
    files = [root / "unet/diffusion_pytorch_model.safetensors" for root in (folder, miniature.folder("sdxl"))]
    assert [own["sha256"], there["sha256"]] == list(map(sha256_of, files))
    ml.fuse_checkpoint("miniature/sdxl", out, tmp_path / "again")
    exact, again = (
        load_file(root / "unet/diffusion_pytorch_model.safetensors") for root in (folder, tmp_path / "again")
    )
    assert all(torch.allclose(again[key], value, rtol=2**-9, atol=1e-4) for key, value in exact.items())
    refused(*line, needles=["exists already"])
    refused(*line[:4], str(files[0]), "--force", needles=["an output never replaces an input"])
    refused("extract", "miniature/sdxl", "miniature/sdxl", *line[3:5], "--force", needles=["nothing to extract"])
    refused(*line[:4], str(tmp_path / "x.safetensors"), "--rank", "sum", needles=["rank='sum'"])
    refused(*line[:4], str(tmp_path / "x.safetensors"), "--format", "lora", needles=["format='lora'"])


MEMORY = """
import sys, torch
from safetensors.torch import save_file
from benchmarks.measuring import measured
import mergelab as ml

torch.set_num_threads(2)
folder, count, side = sys.argv[2], int(sys.argv[1]), 3072
base = torch.randn(side, side, generator=torch.Generator().manual_seed(0))
tuned = base + torch.outer(torch.arange(side), torch.arange(side)) / side**2
for n in (1, count):
    for name, weight in (("base", base), ("tuned", tuned)):
        halves = {f"transformer.transformer_blocks.{i}.attn.to_q.weight": weight.bfloat16() for i in range(n)}
        save_file(halves, f"{folder}/{name}{n}.safetensors")
def extracted(n):
    files = (f"{folder}/{name}{n}.safetensors" for name in ("tuned", "base"))
    return ml.extract(*files, 2, architecture="flux", progress=False)
extracted(1)  # what a process allocates once
with measured(0.001) as took:
    assert len(extracted(count).layers) == count
print(took.peak / (4 * side**2))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the memory of a process is read from Linux")
def test_peak_memory_is_bounded_by_the_layer(tmp_path: Path) -> None:
    """In dense copies of one layer in float32: less than the two models take in bfloat16, six layers each."""
    command = [sys.executable, "-c", MEMORY, "6", str(tmp_path)]
    copies = float(subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout)
    assert 0.5 < copies < 6
