"""Adapters of several kinds and dialects in one command, as a user gives it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import mergelab as ml
from mergelab import miniature
from mergelab.cli.app import run

BASE = "miniature/sdxl"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A LoKr in kohya's names and a DoRA in diffusers', for layers of the small SDXL."""
    folder = tmp_path_factory.mktemp("kinds")
    unet = load_file(miniature.folder("sdxl") / "unet" / "diffusion_pytorch_model.safetensors")
    torch.manual_seed(0)
    lokr: dict[str, Tensor] = {}
    dora: dict[str, Tensor] = {}
    for key in [k for k in unet if k.endswith(("attn1.to_q.weight", "attn2.to_k.weight"))]:
        path, weight = key.removesuffix(".weight"), unet[key].float()
        out, columns = weight.shape
        flat = f"lora_unet_{path.replace('.', '_')}"
        lokr |= {f"{flat}.lokr_w1": torch.randn(4, 4) / 4, f"{flat}.lokr_w2_a": torch.randn(out // 4, 2) / 8}
        lokr |= {f"{flat}.lokr_w2_b": torch.randn(2, columns // 4) / 8, f"{flat}.alpha": torch.tensor(1.0)}
        down, up = torch.randn(4, columns) / 8, torch.randn(out, 4) / 8
        moved = weight + up @ down
        dora |= {f"unet.{path}.lora_A.weight": down, f"unet.{path}.lora_B.weight": up}
        dora[f"unet.{path}.dora_scale"] = moved.norm(dim=1, keepdim=True) * (1 + torch.rand(out, 1) / 10)
    save_file(lokr, folder / "lokr.safetensors")
    save_file(dora, folder / "dora.safetensors")
    return {"lokr": folder / "lokr.safetensors", "dora": folder / "dora.safetensors"}


def test_four_kinds_in_one_command(files: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """kohya, diffusers, LoKr and DoRA: the sum at full rank is the sum of the four changes."""
    inputs = ["miniature/sdxl/ghost", "miniature/sdxl/fish", *map(str, files.values())]
    weights = [0.5, 1.0, -0.75, 1.25]
    output = tmp_path / "merged.safetensors"
    given = [f"{path}:{weight}" for path, weight in zip(inputs, weights)]
    assert run(["merge", *given, "--method", "cat", "--base", BASE, "-o", str(output)]) == 0
    said = capsys.readouterr().out
    assert "of kind LoKr: exact as factors of rank 8" in said and "of kind DoRA" in said
    merged = ml.load(output)
    parts = [ml.load(path, base=BASE) for path in inputs]
    for name, layer in merged.layers.items():
        terms = [
            weight * part.layers[name].delta_weight() for part, weight in zip(parts, weights) if name in part.layers
        ]
        torch.testing.assert_close(layer.delta_weight(), torch.stack(terms).sum(0), atol=2e-5, rtol=1e-4)
    assert run(["merge", *given, "--method", "ties", "--rank", "8", "--base", BASE, "-o", str(output), "--force"]) == 0
    assert set(ml.load(output).ranks.values()) == {8}


def test_without_the_base_model(files: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The sentence says what is needed; nothing is written."""
    output = tmp_path / "merged.safetensors"
    assert run(["merge", str(files["dora"]), str(files["lokr"]), "-o", str(output)]) == 2
    assert "changes the base model's own weights: give them too" in capsys.readouterr().err
    assert not output.exists()


@pytest.mark.parametrize("form", ["folder", "file", "state dict", "pipeline"])
def test_every_form_of_the_base_model(form: str, files: dict[str, Path], tmp_path: Path) -> None:
    """A folder, one of its files, tensors, a loaded pipeline: the same change."""
    given: Any = miniature.folder("sdxl")
    if form == "pipeline":
        given = miniature.pipeline("sdxl")
    elif form != "folder":
        tensors = load_file(given / "unet" / "diffusion_pytorch_model.safetensors")
        given = {f"unet.{key}": value for key, value in tensors.items()}
        if form == "file":
            save_file(given, tmp_path / "unet.safetensors")
            given = tmp_path / "unet.safetensors"
    changes = [ml.load(files["dora"], base=base) for base in (BASE, given)]
    for name, layer in changes[0].layers.items():
        assert layer.kind == "DoRA"
        torch.testing.assert_close(layer.delta_weight(), changes[1].layers[name].delta_weight())


def test_convert_at_a_rank(files: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`convert` is exact without a rank; with one it says what that lost, and it is the best there is."""
    output = tmp_path / "lora.safetensors"
    assert run(["convert", str(files["lokr"]), "-o", str(output), "--format", "kohya"]) == 0
    lokr, exact = ml.load(files["lokr"]), ml.load(output)
    assert all(layer.kind == "LoRA" for layer in exact.layers.values())
    assert (exact - lokr).norm() < 1e-5 * lokr.norm()
    assert run(["convert", str(files["lokr"]), "-o", str(output), "--format", "kohya", "--rank", "2", "--force"]) == 0
    assert "retained" in capsys.readouterr().out
    small = ml.load(output)
    best = 0.0
    for layer in lokr.layers.values():
        best += float(torch.linalg.svdvals(layer.delta_weight().double())[2:].square().sum())
    assert math.isclose((small - lokr).norm(), math.sqrt(best), rel_tol=1e-3)


@pytest.mark.parametrize("rank", [5, 0.8, "mean=6"])
def test_large_changes_are_resized_through_their_form(rank: Any) -> None:
    """A Kronecker product by the decompositions of its sides, a dense change by its leading directions: the best."""
    torch.manual_seed(0)
    name = "lora_unet_mid_block_attentions_0_proj_in"
    w1, w2 = torch.randn(4, 4), torch.randn(96, 72) @ torch.diag(torch.linspace(0.1, 1, 72) ** 4)
    lokr = -0.5 * ml.load({f"{name}.lokr_w1": w1, f"{name}.lokr_w2": w2})
    full = ml.load({f"{name}.diff": -0.5 * torch.kron(w1, w2)})
    exact = torch.linalg.svdvals(0.5 * torch.kron(w1, w2).double()).square()
    for adapter in (lokr, full):
        assert set(adapter.ranks.values()) == {288}
        small = adapter.resize(rank)
        (count,) = small.ranks.values()
        if isinstance(rank, float):
            assert count == int((exact.cumsum(0) < rank * exact.sum()).sum()) + 1
        else:
            assert count == int(str(rank).removeprefix("mean="))
        lost = float((small - adapter).norm() ** 2)
        assert abs(lost / float(exact[count:].sum()) - 1) < 3e-3
        assert abs(small.report.retained_energy - float(exact[:count].sum() / exact.sum())) < 3e-3


def test_in_an_evaluation(files: dict[str, Path], tmp_path: Path) -> None:
    """The pipeline of an evaluation is the base model of its adapters."""
    config = {
        "pipeline": BASE,
        "loras": [{"path": str(files["dora"]), "name": "dora"}, "miniature/sdxl/ghost"],
        "merges": [{"method": "ties", "rank": 8}],
        "prompts": ["a sks on a gray background"],
        "seeds": 1,
        "metrics": ["judge"],
        "generation": {"steps": 2},
    }
    result = ml.evaluate(config, tmp_path / "run", progress=False)
    frame = result.scores
    assert {"single:dora", "single:ghost"} <= set(frame["variant"])
    assert not frame["value"].isna().any()


@pytest.mark.parametrize("rank", [16, 0.9, "mean=8"])
def test_sums_of_full_rank_are_cut_as_what_is_dense(rank: Any) -> None:
    """Where the factors are no smaller than the layer, its leading part is found without decomposing the whole."""
    torch.manual_seed(0)
    name = "lora_unet_mid_block_attentions_0_proj_in"
    delta = torch.randn(1100, 1050) @ torch.diag(torch.linspace(0, 1, 1050) ** 6)
    full = ml.load({f"{name}.diff": delta})
    lora = ml.load({f"{name}.lora_down.weight": torch.randn(4, 1050), f"{name}.lora_up.weight": torch.randn(1100, 4)})
    merged = ml.merge([full, lora], [1.0, -0.5], "svd", rank=rank)
    wanted = delta - 0.5 * lora.layers[layer_name(lora)].delta_weight()
    layer, values = merged.layers[layer_name(merged)], torch.linalg.svdvals(wanted.double())
    best = float(values[layer.rank :].square().sum().sqrt())
    assert abs(float((layer.delta_weight() - wanted).norm()) / best - 1) < 1e-3
    row = merged.report.layers[0]
    assert abs(row.kept / row.energy - float(values[: layer.rank].square().sum() / values.square().sum())) < 1e-3
    for part, found in zip((delta, -0.5 * lora.layers[layer_name(lora)].delta_weight()), row.projections):
        exact = float((layer.delta_weight().double() * part.double()).sum())
        assert abs(found - exact) < 1e-4 * float(delta.norm()) ** 2


def layer_name(adapter: ml.Adapter) -> str:
    """The only layer."""
    (name,) = adapter.layers
    return name


def test_flat_names_are_found_in_a_base_model() -> None:
    """An OFT in kohya's names of an unknown model: its layer is the one of that name in the base model's."""
    path = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
    weight, blocks = torch.randn(64, 64), torch.randn(16, 4, 4)
    oft = {f"lora_unet_{path.replace('.', '_')}.oft_blocks": blocks}
    (layer,) = ml.load(oft, base={f"{path}.weight": weight}).layers.values()
    turned = layer.delta_weight() + weight
    torch.testing.assert_close(turned.T @ turned, weight.T @ weight, atol=1e-3, rtol=1e-3)


def test_a_base_model_that_is_not_there() -> None:
    """It is said also where no layer would need it."""
    name = "lora_unet_mid_block_attentions_0_proj_in"
    lora = {f"{name}.lora_down.weight": torch.ones(1, 4), f"{name}.lora_up.weight": torch.ones(3, 1)}
    with pytest.raises(ml.SourceError, match="there is no such file"):
        ml.load(lora, base="/nowhere/at/all")


def test_not_a_number_is_named() -> None:
    """Whichever way a layer is computed, the sentence names it."""
    name = "lora_unet_mid_block_attentions_0_proj_in"
    w2 = torch.randn(80, 80)
    w2[3, 4] = math.nan
    adapter = ml.load({f"{name}.lokr_w1": torch.randn(4, 4), f"{name}.lokr_w2": w2})
    for use in (lambda: adapter.resize(4), lambda: ml.merge([adapter], rank=4), lambda: adapter.state_dict("kohya")):
        with pytest.raises(ml.LayerError, match=r"proj_in: its change, computed from LoKr, holds NaN"):
            use()
