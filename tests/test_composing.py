"""`compose` against nunchaku's `compose_lora`, and dense sums where that fails; ranks as nunchaku counts them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import mergelab as ml
from mergelab import cli
from mergelab.formats.nunchaku import fused
from tests.nunchaku_files import layer_shapes
from tests.refusing import Refused
from tests.synthetic import adapter, relative
from tests.test_golden import Golden, find
from tests.test_golden_files import file_of

PEER = Path(__file__).parent / "data" / "nunchaku" / "compose.safetensors"
CASES = json.loads(PEER.with_suffix(".json").read_text(encoding="utf-8"))["cases"]
BLOCK = "transformer.transformer_blocks.0"
QKV = [f"{BLOCK}.attn.to_{x}" for x in "qkv"]
TOGETHER = (
    *(("to_q", "to_k", "to_v"), ("add_q_proj", "add_k_proj", "add_v_proj")),
    *(("net.0.proj", "net.2"), ("proj_mlp", "proj_out")),
)
Shapes = dict[str, tuple[int, ...]]


def flux(seed: int, shapes: Shapes | None = None, rank: int = 3) -> ml.Adapter:
    made = adapter(seed, rank, 0.5, shapes or layer_shapes(16))
    return ml.Adapter(made.layers, architecture="flux", source=f"adapter{seed}")


def whole() -> Shapes:
    """Every layer of FLUX.1 by its true name, in a model that is 16 wide."""
    sizes = {"num_attention_heads": 2, "attention_head_dim": 8, "joint_attention_dim": 24, "pooled_projection_dim": 12}
    with torch.device("meta"):
        model = diffusers.FluxTransformer2DModel(guidance_embeds=True, axes_dims_rope=(2, 2, 4), **sizes)
    linear = ((name, module) for name, module in model.named_modules() if isinstance(module, torch.nn.Linear))
    return {f"transformer.{name}": tuple(module.weight.shape) for name, module in linear}


def summed(adapters: list[ml.Adapter], strengths: list[float]) -> dict[str, Tensor]:
    """The dense sum in float64; a narrower input layer leaves the inputs alone that it does not have."""
    total: dict[str, Tensor] = {}
    for given, strength in zip(adapters, strengths):
        for name, layer in given.layers.items():
            change = strength * layer.scaling * layer.lora_B.double() @ layer.lora_A.double()
            before = total.get(name, torch.zeros(1, 1))
            wide = max(before.shape[1], change.shape[1])
            total[name] = sum(torch.nn.functional.pad(x, [0, wide - x.shape[1]]) for x in (before, change))
    return total


def check(found: ml.Adapter, expected: dict[str, Tensor], tolerance: float = 1e-6) -> None:
    assert set(found.layers) == set(expected)
    for name, change in expected.items():
        assert relative(found.layers[name].delta_weight(), change) < tolerance, name


@pytest.mark.parametrize("case", find("flux_H16_s0_compose"))
def test_golden(case: Golden, tmp_path: Path) -> None:
    """The command on files in two dialects, one strength negative, is what `compose_lora` gives."""
    out = tmp_path / "composed.safetensors"
    for i in range(2):
        save_file(file_of(case, i), tmp_path / f"{i}.safetensors")
    files = [str(tmp_path / f"{i}.safetensors") for i in range(2)]
    assert cli.run(["compose", "-i", *files, "-s", *map(str, case.weights), "-o", str(out)]) == 0
    case.check({name.removeprefix("transformer."): x.delta_weight() for name, x in ml.load(out).layers.items()})


@pytest.mark.parametrize("number", range(len(CASES)))
def test_nunchakus_own(number: int) -> None:
    """In both orders and of any sign: changes, biases, and the rank of every module, q, k and v being one."""
    tensors = load_file(PEER)

    def part(prefix: str) -> dict[str, Tensor]:
        return {key.removeprefix(prefix): tensor for key, tensor in tensors.items() if key.startswith(prefix)}

    case, peer = CASES[number], ml.load(part(f"out.{number}."), architecture="flux")
    given = [ml.load(part(f"in.{i}."), architecture="flux") for i in case["order"]]
    composed = ml.compose(given, [case["strengths"][i] for i in case["order"]])
    check(composed, {name: layer.delta_weight() for name, layer in peer.layers.items()})
    ranks = {key.removesuffix(".lora_A.weight"): len(t) for key, t in part(f"out.{number}.").items() if "lora_A" in key}
    assert {row.name: row.rank for row in composed.report.layers} == ranks
    assert {name: layer.rank for name, layer in fused(composed).items()} == ranks, "so it is in nunchaku, too"
    written = composed.state_dict(for_="nunchaku")
    for key, bias in part(f"out.{number}.").items():
        assert not key.endswith("lora_B.bias") or relative(written[key], bias) < 1e-6, key


@pytest.mark.parametrize("strengths", [[0.8, 0.3], [-0.4, 0.8]])
def test_every_layer_in_both_orders(strengths: list[float]) -> None:
    """Over the whole key set the exact sum, whatever the order."""
    shapes = whole()
    assert len(shapes) == 504
    adapters = [flux(1, shapes, 1), flux(2, shapes, 2)]
    expected = summed(adapters, strengths)
    check(ml.compose(adapters, strengths), expected)
    check(ml.compose(adapters[::-1], strengths[::-1]), expected)


def _ending(*ends: str) -> Shapes:
    return {name: shape for name, shape in layer_shapes(16).items() if name.endswith(ends)}


@pytest.mark.parametrize(("first", "second"), [
    ({"transformer.x_embedder": (16, 64), **_ending("to_out.0")}, {"transformer.x_embedder": (16, 128)}),
    (_ending("to_k", "add_k_proj"), _ending("to_k")),
    (_ending("to_v"), _ending("to_q", "to_k")),
    (_ending("0.proj_out"), _ending("ff.net.0.proj")),
], ids=["widths", "k alone", "v beside q and k", "half an mlp"])  # fmt: skip
def test_where_nunchaku_fails(first: Shapes, second: Shapes) -> None:
    """Input layers of two widths, and files without all of q, k and v or one end of an mlp: the exact sum."""
    adapters, strengths = [flux(1, first), flux(2, second)], [0.05, -0.4]
    composed = ml.compose(adapters, strengths)
    expected = summed(adapters, strengths)
    check(composed, expected)
    # Written, each stands in the company that nunchaku expects, at no higher rank than its own.
    tensors = composed.state_dict(for_="nunchaku")
    names = {key.removesuffix(".lora_A.weight") for key in tensors if key.endswith("lora_A.weight")}
    for name in names:
        for group in TOGETHER:
            stem = next((name.removesuffix(end) for end in group if name.endswith(f".{end}")), None)
            assert stem is None or {f"{stem}{end}" for end in group} <= names
    again = ml.load(tensors, architecture="flux")
    added = {name: torch.zeros(layer.shape) for name, layer in again.layers.items() if name not in expected}
    check(again, expected | added, 2e-6)
    ranks = {row.name: row.rank for row in composed.report.layers}
    assert {name: x.rank for name, x in fused(again).items() if name in ranks} == ranks


def test_a_rank_cuts_q_k_and_v_as_one() -> None:
    """The best approximation of the three stacked, and the rank that was asked for in nunchaku."""
    adapters = [flux(1, dict.fromkeys(QKV, (16, 16))), flux(2, dict.fromkeys(QKV, (16, 16)))]
    composed = ml.compose(adapters, [0.8, -0.4], rank=5)
    dense = torch.cat([summed(adapters, [0.8, -0.4])[name] for name in QKV])
    u, s, v = torch.linalg.svd(dense, full_matrices=False)
    found = torch.cat([composed.layers[name].delta_weight() for name in QKV])
    assert relative(found, (u[:, :5] * s[:5]) @ v[:5]) < 1e-5
    assert composed.report.relative_error == pytest.approx(float(s[5:].norm() / s.norm()), abs=1e-5)
    assert [layer.rank for layer in fused(composed).values()] == [5]


def test_a_rank_above_256_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With the option that lowers it, and what that costs, which is what it then costs: nothing outside the blocks."""
    name, outside = f"{BLOCK}.attn.to_out.0", "transformer.context_embedder"
    for seed in (1, 2):
        shapes = {name: (288, 288), f"{BLOCK}.norm1.linear": (24, 288), outside: (288, 320)}
        flux(seed, shapes, 140).save(tmp_path / f"{seed}.safetensors")
    files = [str(tmp_path / f"{seed}.safetensors") for seed in (1, 2)]
    given = ["--input-paths", *files, "--strengths", "1", ".5", "--architecture", "flux"]
    arguments = ["compose", *given, "--output-path", str(tmp_path / "out.safetensors")]
    assert cli.run(arguments) == 0
    said = capsys.readouterr().out
    assert f"above it in 2 modules, 280 in {name}" in said
    cost = said.partition("--rank 256, lowers it, at a relative error of ")[2].split()[0]
    assert cli.run([*arguments, "--rank", "256", "--force"]) == 0
    said = capsys.readouterr().out
    assert f"relative error {cost} from truncation" in said and cost != "0.00%" and "slows down" not in said
    ranks = ml.load(tmp_path / "out.safetensors", architecture="flux").ranks
    assert (ranks[name], ranks[outside]) == (256, 280)


def test_a_rank_leaves_other_layers_exact() -> None:
    """Those outside the blocks, of one adapter alone too; header and notes are those of all inputs."""
    outside = "transformer.context_embedder"
    first = replace(flux(1, {QKV[0]: (16, 16), outside: (16, 24)}), metadata={"modelspec.trigger_phrase": "sks"})
    second = replace(flux(2, {outside: (16, 24)}), metadata={"modelspec.trigger_phrase": "szn"})
    composed = ml.compose([first, second], [0.8, -0.4], rank=2)
    expected = summed([first, second], [0.8, -0.4])
    assert composed.ranks == {QKV[0]: 2, outside: 6}
    assert relative(composed.layers[outside].delta_weight(), expected[outside]) < 1e-6
    lost = torch.linalg.svdvals(expected[QKV[0]])[2:].square().sum()
    whole = sum(change.square().sum() for change in expected.values())
    assert composed.report.relative_error == pytest.approx(float(torch.sqrt(lost / whole)), abs=1e-5)
    assert composed.metadata["modelspec.trigger_phrase"] == "sks, szn"
    recipe = json.loads(composed.metadata["mergelab"])
    assert (recipe["method"], recipe["options"]["rank"]) == ("svd", 2) and len(recipe["inputs"]) == 2
    assert ml.compose([second], [1.0], rank=2).ranks == {outside: 3}
    budget = ml.compose([first, second], [1.0, 1.0], rank="mean=1")
    assert budget.ranks == {QKV[0]: 1, outside: 6}


@pytest.mark.parametrize("strengths", [(0.8, -0.4), np.array([0.8, -0.4]), torch.tensor([0.8, -0.4]).double()])
def test_strengths_in_any_sequence(strengths: Any) -> None:
    """As for `merge`."""
    adapters = [flux(1, dict.fromkeys(QKV, (16, 16))), flux(2, dict.fromkeys(QKV, (16, 16)))]
    check(ml.compose(adapters, strengths), summed(adapters, [0.8, -0.4]))


def test_refused(tmp_path: Path, refused: Refused) -> None:
    """Other counts, what is no number, other base models."""
    flux(1).save(tmp_path / "a.safetensors")
    flux(2).save(tmp_path / "b.safetensors")
    files, end = ["-i", tmp_path / "a.safetensors", tmp_path / "b.safetensors"], ["-o", tmp_path / "out.safetensors"]
    for arguments, needles in (
        ([*files, "-s", "0.8", *end], ["found 1 strength and 2 adapters"]),
        ([*files, "-s", "0.8", "-0.4", "1", *end], ["found 3 strengths and 2 adapters"]),
        ([*files, *end], ["'-s'"]),
        ([*files, "-s", "0.8", "x", *end], ["0.5"]),
        ([*files, "-s", "0.8", "1", "--rank", "none", *end], ["rank='none'"]),
        (["-i", "miniature/sdxl/ghost", "-s", "1", *end, "--architecture", "sdxl"], ["FLUX.1", "found sdxl"]),
    ):
        refused("compose", *arguments, needles=needles)
    with pytest.raises(ml.OptionError, match="expected a list of numbers"):
        ml.compose([flux(1)], "1")  # type: ignore[arg-type]
    with pytest.raises(ml.OptionError, match="weights by layer are for merge"):
        ml.compose([flux(1)], [{"transformer": 1.0}])  # type: ignore[list-item]
    with pytest.raises(ml.ArchitectureError, match="say which one it is"):
        ml.compose([ml.Adapter(flux(1).layers)], [1.0])
