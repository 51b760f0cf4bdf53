"""nunchaku's packed layout, read by the tests' own unpacker; and the factors that nunchaku's own converter gives."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

import mergelab as ml
from mergelab import cli
from mergelab.formats.nunchaku.packing import pack, unpack
from tests.nunchaku_files import WIDTH, branches, changes, layer_shapes, quantized, stored
from tests.refusing import Refused
from tests.synthetic import adapter, relative

PEER = Path(__file__).parent / "data" / "nunchaku"
BLOCK, SINGLE = "transformer.transformer_blocks.0", "transformer.single_transformer_blocks.0"
# Two roundings, of lora_A and of lora_B.
ROUNDING = {"bfloat16": 2**-8, "float16": 2**-11}


def flux(seed: int = 1, shapes: dict[str, tuple[int, ...]] | None = None, rank: int | None = None) -> ml.Adapter:
    """An adapter of every kind of layer, ranks mixed, of scaling 0.5."""
    chosen = shapes or layer_shapes()
    made = adapter(seed, rank or [1 + i % 19 for i in range(len(chosen))], 0.5, chosen)
    return ml.Adapter(made.layers, architecture="flux", source="style")


@pytest.mark.parametrize("down", [True, False])
@pytest.mark.parametrize("shape", [(16, 16), (32, 80), (48, 16)])
def test_the_order_of_the_numbers(shape: tuple[int, int], down: bool) -> None:
    """As the description says it, number by number; unpacked again nothing has changed."""
    factor = torch.arange(shape[0] * shape[1]).reshape(shape)
    packed = pack(factor, down)
    assert torch.equal(packed, stored(factor, down)) and torch.equal(unpack(packed, down), factor)


@pytest.mark.parametrize("dtype", ROUNDING)
@pytest.mark.parametrize("fp4", [False, True], ids=["int4", "fp4"])
def test_every_kind_of_layer(tmp_path: Path, capsys: pytest.CaptureFixture[str], fp4: bool, dtype: str) -> None:
    """The command; the delta weights are those of the adapter, the model's own branch is there unchanged."""
    model = quantized(tmp_path / "transformer_blocks.safetensors", fp4=fp4)
    style = flux()
    style.save(tmp_path / "style.safetensors")
    given = [
        tmp_path / "style.safetensors",
        "--quantized",
        model,
        "--dtype",
        dtype,
        "-o",
        tmp_path / "packed.safetensors",
    ]
    assert cli.run(["convert", "--format", "nunchaku", *map(str, given)]) == 0
    said = capsys.readouterr().out
    assert f"packed for transformer_blocks.safetensors ({'fp4' if fp4 else 'int4'})" in said and "from the cast" in said
    found = changes(tmp_path / "packed.safetensors", model)
    assert set(found) == set(layer_shapes())
    for name, layer in style.layers.items():
        assert relative(found[name], layer.delta_weight()) < ROUNDING[dtype], name
    tensors = load_file(tmp_path / "packed.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {getattr(torch, dtype)}
    ranks = {name: down.shape[0] for name, (down, _) in branches(tmp_path / "packed.safetensors").items()}
    assert all(rank % 16 == 0 for rank in ranks.values())
    for block in ("transformer_blocks.0.mlp", "transformer_blocks.0.mlp_context", "single_transformer_blocks.0.mlp"):
        assert ranks[f"{block}_fc1"] == ranks[f"{block}_fc2"], "one kernel computes both"
    with safe_open(tmp_path / "packed.safetensors", "pt") as file:
        assert file.metadata()["mergelab.quantized"] == "transformer_blocks.safetensors"
        assert file.metadata()["modelspec.architecture"] == "flux-1-dev/lora"


def test_factors_are_nunchakus(tmp_path: Path) -> None:
    """Of an adapter with biases, and a rank for each layer of a pair, what `to_nunchaku` gives, byte for byte.

    What is not packed it leaves in float32, of which its loader reads no vector of a quantised module; here all is in
    one dtype.
    """
    case = load_file(PEER / "packed.safetensors")

    def part(prefix: str) -> dict[str, Tensor]:
        return {key.removeprefix(prefix): tensor for key, tensor in case.items() if key.startswith(prefix)}

    given, expected = ml.load(part("in."), architecture="flux"), part("out.")
    save_file(part("base."), tmp_path / "transformer_blocks.safetensors")
    found = given.state_dict("nunchaku", quantized=tmp_path / "transformer_blocks.safetensors")
    assert set(found) == set(expected)
    for key, tensor in expected.items():
        assert torch.equal(found[key], tensor.to(torch.bfloat16)), key
        assert tensor.dtype == torch.bfloat16 or "lora_down" not in key, "nothing that is packed was cast here"


@pytest.mark.parametrize("name", [
    f"{BLOCK}.attn.to_k", f"{SINGLE}.attn.to_v", f"{BLOCK}.attn.add_q_proj", f"{BLOCK}.ff.net.0.proj",
    f"{BLOCK}.ff_context.net.2", f"{SINGLE}.proj_mlp", f"{SINGLE}.proj_out", f"{SINGLE}.norm.linear",
])  # fmt: skip
def test_a_layer_alone(tmp_path: Path, name: str) -> None:
    """Others keep the model's own branch, and change nothing; some of these alone nunchaku's converter fails on."""
    model = quantized(tmp_path / "model.safetensors")
    one = flux(shapes={name: layer_shapes()[name]}, rank=20)
    one.save(tmp_path / "one.safetensors", "nunchaku", quantized=model)
    found = changes(tmp_path / "one.safetensors", model)
    assert relative(found.pop(name), one.layers[name].delta_weight()) < ROUNDING["bfloat16"]
    assert not any(change.any() for change in found.values())
    assert set(branches(tmp_path / "one.safetensors")) >= set(branches(model))


def test_a_model_without_a_branch(tmp_path: Path) -> None:
    """Where it has none of its own, the file has the adapter's alone."""
    model = quantized(tmp_path / "model.safetensors", without=("mlp_fc1", "qkv_proj"))
    style = flux()
    style.save(tmp_path / "style.safetensors", "nunchaku", quantized=model)
    found = changes(tmp_path / "style.safetensors", model)
    for name, layer in style.layers.items():
        assert relative(found[name], layer.delta_weight()) < ROUNDING["bfloat16"], name


@pytest.mark.parametrize("name", [f"{BLOCK}.ff.net.0.proj", f"{BLOCK}.ff_context.net.2", f"{SINGLE}.proj_out"])
def test_both_ends_of_an_mlp(tmp_path: Path, name: str) -> None:
    """One kernel computes both: beside one stands the other, of zeros, where the model has a branch in neither."""
    ends = [f"mlp_{fc}" for fc in ("fc1", "fc2", "context_fc1", "context_fc2")]
    model = quantized(tmp_path / "model.safetensors", without=tuple(ends))
    flux(shapes={name: layer_shapes()[name]}, rank=20).save(tmp_path / "one.safetensors", "nunchaku", quantized=model)
    found = {key: len(down) for key, (down, _) in branches(tmp_path / "one.safetensors").items() if ".mlp_" in key}
    assert list(found.values()) == [32, 32]
    assert len({key.removesuffix("fc1").removesuffix("fc2") for key in found}) == 1


def test_same_lora_a_is_shared(tmp_path: Path) -> None:
    """q, k and v of one lora_A are one module of its rank; else the ranks add up."""
    model, style = quantized(tmp_path / "model.safetensors", rank=16), flux(rank=16)
    names = [f"{BLOCK}.attn.to_{x}" for x in "qkv"]
    shared = {name: ml.LoraLayer(style.layers[names[0]].lora_A, style.layers[name].lora_B) for name in names}
    for layers, rank in (({name: style.layers[name] for name in names}, 64), (shared, 32)):
        tensors = ml.Adapter(layers, architecture="flux").state_dict("nunchaku", quantized=model)
        assert tensors["transformer_blocks.0.qkv_proj.lora_down"].shape == (WIDTH, rank)


def test_what_has_no_place(tmp_path: Path) -> None:
    """Text encoders are left out, with a sentence that says how much that is."""
    model = quantized(tmp_path / "model.safetensors")
    text = {"text_encoder.text_model.encoder.layers.0.self_attn.q_proj": (16, 16)}
    written = flux(shapes=layer_shapes() | text).write(tmp_path / "x.safetensors", "nunchaku", quantized=model)
    assert any("nunchaku has no place for text encoders" in note for note in written.notes)
    assert written.format == "nunchaku" and written.layers == len(layer_shapes())


def test_refused(tmp_path: Path, refused: Refused, capsys: pytest.CaptureFixture[str]) -> None:
    """What cannot be packed: one sentence that says what is missing, and what to do."""
    model, out = quantized(tmp_path / "model.safetensors"), tmp_path / "out.safetensors"
    style = tmp_path / "style.safetensors"
    flux().save(style)
    wide = tmp_path / "wide.safetensors"
    flux(shapes={name: shape for name, shape in layer_shapes(64).items() if "blocks" in name}).save(wide)
    broken = {key: tensor for key, tensor in load_file(model).items() if not key.endswith("0.out_proj.lora_up")}
    save_file(broken, tmp_path / "broken.safetensors")
    deep = flux(shapes={f"{BLOCK.replace('0', '1')}.attn.to_out.0": (WIDTH, WIDTH)})
    deep.save(tmp_path / "deep.safetensors")
    packing = ["-o", out, "--format", "nunchaku", "--quantized"]
    for arguments, needles in (
        ([style, "-o", out, "--format", "nunchaku"], ["--quantized transformer_blocks.safetensors", "--for nunchaku"]),
        ([style, *packing, style], ["style.safetensors: expected FLUX.1 as nunchaku quantised it", "qkv_proj"]),
        ([style, *packing, tmp_path], ["is a folder, expected a file"]),
        ([style, *packing, "./none.safetensors"], ["there is no such file"]),
        ([style, "-o", out, "--format", "kohya", "--quantized", model], ["'kohya'", "packed for"]),
        ([style, "-o", out, "--for", "nunchaku", "--quantized", model], ["format=None"]),
        ([style, *packing, model, "--dtype", "float32"], ["dtype='float32'", "bfloat16 or float16"]),
        ([wide, *packing, model, "--architecture", "flux"], ["has one of shape", "are the two for one base model?"]),
        ([tmp_path / "deep.safetensors", *packing, model, "--architecture", "flux"], ["has none there"]),
        ([style, *packing, tmp_path / "broken.safetensors"], ["lacks lora_down or lora_up"]),
        ([style, "-o", model, *packing[2:], model, "--force"], ["never replaces an input"]),
        (["miniature/sdxl/ghost", *packing, model, "--architecture", "sdxl"], ["nunchaku reads no adapters of"]),
    ):
        refused("convert", *arguments, needles=needles)
    refused("merge", style, "-o", out, "--format", "nunchaku", needles=["mergelab convert --quantized"])
    assert cli.run(["convert", str(style), *map(str, [*packing, model])]) == 0
    for command in (["merge", style, out], ["compose", "-s", "1", "-i", out], ["inspect", out], ["convert", out]):
        end = [] if command[0] == "inspect" else ["-o", tmp_path / "again.safetensors"]
        end += ["--format", "kohya"] if command[0] == "convert" else []
        refused(*command, *end, needles=["out.safetensors: is packed for nunchaku; give the file it was made from"])
