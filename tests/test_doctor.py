"""`doctor`: what is told of files that are well, ill, damaged and none at all."""

from __future__ import annotations

import hashlib
import json
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import mergelab as ml
from mergelab import cli
from mergelab.diagnosing import doctor
from mergelab.formats.authors import author_of, spelling_of
from mergelab.formats.planning import written_keys
from mergelab.formats.tools import TOOLS
from tests.files import LAYER, OTHER, A, B, lora, numbers, write
from tests.keymaps import keymaps
from tests.peft_folders import peft_folder
from tests.refusing import Refused
from tests.test_damaged_files import DAMAGED

WIDE = {"out": 320, "inner": 320, "rank": 4}


@pytest.fixture
def sound(tmp_path: Path) -> dict[str, Tensor]:
    """Layers of SDXL, as kohya writes them."""
    layers = {f"unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_{p}": (1280, 2048) for p in "kv"}
    made = {n: ml.LoraLayer(numbers(4, i), 0.1 * numbers(o, 4), 0.5) for n, (o, i) in layers.items()}
    return ml.Adapter(made, architecture="sdxl").state_dict(format="kohya")


def levels(found: ml.Diagnosis) -> list[str]:
    return [finding.level for finding in found.findings]


def test_a_sound_file(tmp_path: Path, sound: dict[str, Tensor]) -> None:
    """All that there is to say, and nothing to worry about."""
    header = {"ss_network_module": "networks.lora", "ss_learning_rate": "1e-4", "ss_base_model_version": "pony"}
    header |= {"ss_training_finished_at": "1680721307.2", "ss_trigger_words": "sks"}
    found = ml.doctor(write(tmp_path / "a.safetensors", sound, metadata=header))
    assert (found.verdict, found.refusal, found.findings, found.architecture) == ("healthy", "", (), "sdxl")
    facts = dict(found.facts)
    assert facts.pop("ranks").startswith("4; 99 % of the energy")
    assert facts == {
        "made by": "sd-scripts or its kin (header: ss_network_module = networks.lora), finished 2023-04-05; "
        "keys in the style of kohya",
        "for": "SDXL, told by the names and shapes of its layers; header: ss_base_model_version = pony",
        "holds": "LoRA in 2 layers (unet 2)",
        "alphas": "2 (0.5 of the rank), from tensors",
        "stored as": "float32, 0.1 MB",
        "trigger words": "sks",
    }
    read = {one.tool: (one.missed, one.left_out) for one in found.readings}
    assert set(read) == set(TOOLS)
    assert read["comfyui"] == ("", "") and read["aitoolkit"] == ("everything", "") and read["nunchaku"] == (None, None)
    assert "read as it is: all of it by ComfyUI, Forge, A1111, sd-scripts, OneTrainer" in str(found)
    assert "nunchaku: no place for it" in str(found)


def test_where_alphas_come_from(tmp_path: Path) -> None:
    """Tensors, the header, a config, or nowhere."""
    diffusers = lora(**WIDE)
    header = {"lora_adapter_metadata": json.dumps({"unet.r": 4, "unet.lora_alpha": 8})}
    paths = {
        "none: alpha = rank": write(tmp_path / "none.safetensors", diffusers),
        "8 (2 of the rank), from the header's lora_adapter_metadata": write(
            tmp_path / "header.safetensors", diffusers, metadata=header
        ),
        "8 (2 of the rank), from the header's 'alpha'": write(
            tmp_path / "alpha.safetensors", diffusers, metadata={"alpha": "8"}
        ),
        "4 (the rank), from tensors and the rank where there is none": write(
            tmp_path / "tensors.safetensors", diffusers, lora(OTHER, **WIDE), {f"{LAYER}.alpha": torch.tensor(4.0)}
        ),
    }
    assert {said: doctor(path).facts["alphas"] for said, path in paths.items()} == {said: said for said in paths}
    assert doctor("miniature/sdxl/medal").facts["alphas"] == "8 (the rank), from adapter_config.json"


def test_values_that_are_no_numbers(tmp_path: Path, sound: dict[str, Tensor]) -> None:
    """Are counted and named; no tool is recommended; the other layers are looked at all the same."""
    key = next(key for key in sound if key.endswith("lora_up.weight"))
    sound[key] = sound[key].clone()
    sound[key][0, :3] = torch.tensor([float("nan"), float("inf"), -float("inf")])
    found = doctor(write(tmp_path / "a.safetensors", sound))
    assert found.verdict == "ill: 1 problem" and found.readings == ()
    assert found.findings[0].layers == (key,)
    assert f"1 of 6 tensors hold NaN or infinity, 3 values in all, most in {key}" in found.findings[0].text
    assert "99 %" in found.facts["ranks"]


def test_values_far_beyond_any_adapters(sound: dict[str, Tensor]) -> None:
    """They are numbers, which float32 arithmetic cannot work with."""
    found = doctor({key: tensor * 1e20 for key, tensor in sound.items() if not key.endswith("alpha")})
    assert levels(found) == ["problem"] and "all 2 layers cannot be computed with; of the first" in str(found)


def test_layers_that_change_nothing(tmp_path: Path) -> None:
    """Some: a warning; all: a problem, with its reason."""
    zero = {key: torch.zeros_like(x) if "lora_B" in key else x for key, x in lora(OTHER).items()}
    some, all_ = doctor(lora() | zero), doctor(zero)
    assert levels(some) == ["warning"] and some.findings[0].layers == (OTHER,)
    assert "1 of 2 layers change nothing" in some.findings[0].text and some.verdict == "usable, with 1 warning"
    assert levels(all_)[0] == "problem" and "factors are zero" in all_.findings[0].text
    silent = doctor(lora() | {f"{LAYER}.alpha": torch.tensor(0.0)})
    assert levels(silent) == ["problem"] and "every alpha is 0" in silent.findings[0].text


def test_padded_ranks(tmp_path: Path) -> None:
    """Zero rows, and rows that depend on others; `resize` to the rank that is named loses nothing."""
    tensors, other = lora(out=32, inner=32, rank=3), lora(OTHER, out=32, inner=32, rank=2)
    padded = {A: torch.cat([tensors[A], torch.zeros(5, 32)]), B: torch.cat([tensors[B], torch.randn(32, 5)], 1)}
    twice = {key: torch.cat([x, x], 0 if "lora_A" in key else 1) for key, x in other.items()}
    path = write(tmp_path / "a.safetensors", padded, twice)
    found = doctor(path)
    assert levels(found) == ["note"] and found.verdict == "healthy"
    assert "all 2 layers have a higher rank than they use (8 for 3 in" in found.findings[0].text
    assert "58% of the parameters are padding; mergelab resize FILE --rank 3" in found.findings[0].text
    whole = ml.load(path)
    assert (whole.resize(3) - whole).norm() < 1e-5 * whole.norm()
    assert doctor(lora()).findings == ()


@pytest.mark.parametrize(
    ("small", "large", "lost"),
    [(1e-9, 1e4, "a plain cast to float16 loses up to 100% of a layer"), (1e-3, 1e6, "values overflow in float16")],
    ids=["below", "above"],
)
def test_what_a_plain_cast_to_float16_loses(tmp_path: Path, small: float, large: float, lost: str) -> None:
    """Below the smallest numbers or above the largest; the remedy works."""
    tensors = lora(**WIDE)
    path = write(tmp_path / "a.safetensors", {A: tensors[A] * large, B: tensors[B] * small})
    found = doctor(path)
    assert levels(found) == ["warning"] and lost in str(found)
    out = tmp_path / "half.safetensors"
    assert cli.run(["convert", str(path), "-o", str(out), "--format", "same", "--dtype", "float16"]) == 0
    assert doctor(out).findings == ()
    assert doctor({key: tensor.half() for key, tensor in tensors.items()}).findings == ()


def test_float8(tmp_path: Path) -> None:
    """Is told from the file, of which the adapter has float32."""
    path = write(tmp_path / "a.safetensors", {key: x.to(torch.float8_e4m3fn) for key, x in lora(**WIDE).items()})
    found = doctor(path)
    assert levels(found) == ["warning"] and "all 2 tensors are stored in float8" in found.findings[0].text
    assert found.facts["stored as"].startswith("float8_e4m3fn, ")


def test_a_header_of_another_file(tmp_path: Path) -> None:
    """Its rank is that of no layer."""
    found = doctor(write(tmp_path / "a.safetensors", lora(), metadata={"ss_network_dim": "64"}))
    assert [finding.text for finding in found.findings] == ["the header's ss_network_dim = 64 is the rank of no layer"]


def test_what_a_header_says_stays_in_its_line(tmp_path: Path) -> None:
    """No line breaks, nothing that steers a terminal, no pages of text."""
    words = "sks\n\x1b[31mred " + "very " * 100
    found = doctor(write(tmp_path / "a.safetensors", lora(), metadata={"trained_words": words}))
    assert found.facts["trigger words"].startswith("sks ?[31mred very") and len(found.facts["trigger words"]) < 210


def test_a_file_that_is_cut_short(tmp_path: Path, sound: dict[str, Tensor]) -> None:
    """Its header still tells what it was."""
    path = write(tmp_path / "a.safetensors", sound, metadata={"trained_words": "sks"})
    path.write_bytes(path.read_bytes()[:-50_000])
    found = doctor(path)
    assert found.verdict == "mergelab cannot read it" and found.refusal.startswith("is no whole safetensors file")
    assert "the file ends too early: 50,000 of " in found.findings[0].text
    assert found.facts["for"].startswith("SDXL") and found.facts["holds"] == "LoRA in 2 layers (unet 2)"
    assert found.facts["ranks"] == "4" and found.facts["trigger words"] == "sks" and "alphas" not in found.facts


@pytest.mark.parametrize("kind", list(DAMAGED))
def test_a_damaged_file_is_a_finding(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Whatever it is: the sentence of `load`, and exit code 0."""
    path = tmp_path / "damaged.safetensors"
    DAMAGED[kind](path)
    with pytest.raises(ml.MergelabError) as refusal:
        ml.load(path)
    assert cli.run(["doctor", str(path)]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith(f"{path}: mergelab cannot read it\n  {str(refusal.value).removeprefix(f'{path}: ')}\n")


def test_a_header_of_nonsense(tmp_path: Path) -> None:
    """Entries that are none, sizes that no file has."""
    entry = {"dtype": "F16", "shape": [2**40, 2**30], "data_offsets": [0, 2]}
    text = json.dumps({"a.lora_A.weight": entry, "b": 3, "c": {"dtype": 1, "shape": 2, "data_offsets": [0]}}).encode()
    path = tmp_path / "a.safetensors"
    path.write_bytes(struct.pack("<Q", len(text)) + text)
    found = doctor(path)
    assert found.refusal and found.facts["holds"].startswith("1 tensor, the largest a.lora_A.weight")


@pytest.mark.parametrize(
    ("tensors", "sentence"),
    [
        ({"model.diffusion_model.input_blocks.0.0.weight": numbers(4, 4)}, "is a whole checkpoint"),
        ({"lora_unet_mid_block_attentions_0_proj_in.bogus_w1_a": numbers(4, 4)}, "are none that mergelab knows"),
        (lora() | {"unet.conv_in.lora_A.weight": numbers(2, 4)}, "has no matching lora_B"),
    ],
)
def test_what_is_refused_has_its_reason(tensors: dict[str, Tensor], sentence: str) -> None:
    """With the tensors that it holds."""
    found = doctor(tensors)
    assert sentence in found.refusal and found.verdict == "mergelab cannot read it" and found.readings == ()
    assert found.facts["holds"].startswith(f"{len(tensors)} tensor")


def test_a_folder_whose_config_is_none(tmp_path: Path) -> None:
    """The tensors beside it are looked at all the same."""
    for name, content in peft_folder().items():
        (tmp_path / name).write_bytes(content)
    whole = doctor(tmp_path)
    assert whole.facts["alphas"].endswith("from adapter_config.json") and whole.readings[-1].missed == ""
    (tmp_path / "adapter_config.json").write_text("none")
    found = doctor(tmp_path)
    assert found.refusal.endswith("is no JSON: Expecting value: line 1 column 1 (char 0)")
    assert found.facts["holds"] == whole.facts["holds"] and "alphas" not in found.facts


def test_pickles(tmp_path: Path) -> None:
    """Are refused by name, and read when allowed."""
    path = tmp_path / "a.pt"
    torch.save(lora(), path)
    assert doctor(path).refusal.startswith("is a pickle by its name")
    found = doctor(path, allow_pickle=True)
    assert found.verdict == "healthy" and found.facts["stored as"].startswith("float32")


def test_what_cannot_be_opened_is_an_error(tmp_path: Path, good: Path, refused: Refused) -> None:
    """Exit code 2: no file, no architecture, an empty folder."""
    refused("doctor", tmp_path / "nothing.safetensors", needles=["there is no such file"])
    refused("doctor", good, "--architecture", "sdxxl", needles=["sdxxl"])
    (tmp_path / "empty").mkdir()
    refused("doctor", tmp_path / "empty", needles=["expected a PEFT folder"])


def test_an_architecture_that_is_told(tmp_path: Path) -> None:
    """As the user says, or a refusal."""
    assert doctor(lora(**WIDE), architecture="sd15").facts["for"] == "SD 1.x, as you say"
    assert "FLUX" in doctor(lora(**WIDE), architecture="flux").refusal
    unknown = doctor("miniature/sdxl/ghost")
    assert unknown.architecture is None and "depends on the base model, say --architecture" in str(unknown)


def test_json(good: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Has all that the text has."""
    assert cli.run(["doctor", str(good), "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert found == json.loads(json.dumps(doctor(good).to_dict()))
    assert found["verdict"] == "healthy" and found["tools"][0]["tool"] == "comfyui"


def test_a_merge_tells_its_recipe() -> None:
    """Method and inputs with weights, from the header."""
    merged = ml.merge(["miniature/sdxl/ghost", "miniature/sdxl/day"], [0.7, 1.0], rank=2)
    from mergelab.diagnosing.facts import facts_of
    from mergelab.diagnosing.specimen import Specimen
    from mergelab.formats.glancing import Glance

    facts = facts_of(Specimen(Glance(metadata=merged.metadata), merged))
    assert facts["made by"].endswith("svd of ghost at 0.7, day at 1") and facts["trigger words"] == "sks, szn"


@pytest.mark.parametrize("name", ["gen_sdscripts__sd15_lora_r16", "gen_diffusers__sdxl_peft_attn_r8"])
def test_the_table_of_tools_is_asked_for_files_that_it_knows(name: str) -> None:
    """The keys of real trainers are those that mergelab writes; of others nothing is said."""
    tensors = {key: torch.ones(()).expand(shape) for key, shape in keymaps()[name].shapes.items()}
    adapter = ml.load(tensors)
    assert adapter.dialect
    assert {k for k in written_keys(adapter, adapter.dialect) if not k.endswith("alpha")} == {
        key for key in tensors if not key.endswith("alpha")
    }
    strange = doctor({key.replace(LAYER, f"module.{LAYER}"): x for key, x in lora(**WIDE).items()}, architecture="sd15")
    assert all(one.missed is None for one in strange.readings) and "read as it is: not known" in str(strange)


@pytest.mark.parametrize(("alpha", "missed"), [(4.0, ""), (2.0, "alphas other than the rank")])
def test_a_tool_that_ignores_alphas_misses_those_alone_that_are_not_the_rank(alpha: float, missed: str) -> None:
    """AI-toolkit, of a UNet in kohya's format; `convert` folds them in."""
    name = f"lora_unet_{LAYER.removeprefix('unet.').replace('.', '_')}"
    tensors = {f"{name}.lora_down.weight": numbers(4, 320), f"{name}.lora_up.weight": numbers(320, 4)}
    found = doctor(tensors | {f"{name}.alpha": torch.tensor(alpha)}, architecture="sd15")
    (reading,) = (one for one in found.readings if one.tool == "aitoolkit")
    assert (reading.missed, reading.left_out) == (missed, "")


@pytest.mark.parametrize(
    ("header", "author"),
    [
        ({"ot_branch": "master"}, "OneTrainer (header: ot_branch)"),
        ({"software": "my trainer"}, "my trainer (header: software)"),
        ({"software": '{"name": "ai-toolkit", "version": "0.7.1"}'}, "ai-toolkit 0.7.1 (header: software)"),
        (
            {"ss_network_module": "lycoris.kohya", "ss_learning_rate": "1"},
            "LyCORIS in a trainer with kohya's header (header: ss_network_module = lycoris.kohya)",
        ),
        ({"ss_training_started_at": "x"}, "sd-scripts or its kin (header: ss_training_started_at)"),
        ({"format": "pt"}, ""),
    ],
)
def test_authors(header: dict[str, str], author: str) -> None:
    """By what the header says, and nothing else."""
    assert author_of(header) == author


def test_styles_of_keys() -> None:
    """Those of the key maps of real files and of trainers."""
    found = {name: spelling_of(one.shapes) for name, one in keymaps().items()}
    assert found["muchai__real_flux1"] == "attention processors (XLabs, older diffusers)"
    assert found["invokeai__flux_lora_aitoolkit_format"] == "ComfyUI (AI-toolkit)"
    assert found["invokeai__flux_lora_diffusers_base_model_format"] == "PEFT"
    assert {found[name] for name in found if name.startswith(("gen_sdscripts", "gen_lycoris"))} == {"kohya"}


def test_ranks_and_alphas_are_those_of_the_file() -> None:
    """Of what is no pair of factors: its own rank, that alpha is divided by, and that of its factors."""
    name = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
    sides = {"w1": numbers(4, 4), "w2_a": numbers(80, 2), "w2_b": numbers(2, 80)}
    lokr = {f"{name}.lokr_{leaf}": tensor for leaf, tensor in sides.items()}
    found = doctor(lokr | {f"{name}.alpha": torch.tensor(1.0)})
    assert found.facts["ranks"].startswith("2; as factors rank 8; 99 %")
    assert found.facts["alphas"] == "1 (0.5 of the rank), from tensors"
    halves = {f"w{i}_{leaf}": numbers(3, 320) if leaf == "b" else numbers(320, 3) for i in "12" for leaf in "ab"}
    loha = {f"{name}.hada_{leaf}": tensor for leaf, tensor in halves.items()}
    found = doctor(loha | {f"{name}.alpha": torch.tensor(3.0)})
    assert found.facts["ranks"].startswith("3; as factors rank 9; 99 %")
    assert found.facts["alphas"] == "3 (the rank), from tensors"


def test_what_needs_the_base_model() -> None:
    """Is not what cannot be read: kind, model, rank and alpha are told, and what to give."""
    name = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
    dora = {f"{name}.lora_down.weight": numbers(4, 320), f"{name}.lora_up.weight": numbers(320, 4)}
    dora |= {f"{name}.dora_scale": numbers(1, 320).abs(), f"{name}.alpha": torch.tensor(2.0)}
    found = doctor(dora)
    assert found.verdict == "needs the base model: give --base" and "--base" in found.refusal
    assert found.facts["for"].startswith("SD 1.x") and found.facts["holds"] == "DoRA in 1 layer (unet 1)"
    assert (found.facts["ranks"], found.facts["alphas"]) == ("4", "2 (0.5 of the rank), from tensors")
    given = doctor(dora, base={f"{LAYER}.weight": numbers(320, 320)})
    assert given.refusal == "" and given.facts["alphas"] == "2 (0.5 of the rank), from tensors"
    assert given.facts["ranks"].startswith("4; as factors rank 320")
    rotations = {f"{name}.oft_blocks": 0.1 * numbers(4, 80, 80), f"{name}.alpha": torch.tensor(0.0)}
    turned = doctor(rotations)
    assert (
        turned.verdict.startswith("needs the base") and "OFT" in turned.facts["holds"] and "ranks" not in turned.facts
    )


@pytest.mark.parametrize(("other", "remedy"), [(1e-3, "balances the factors"), (1e4, "keep bfloat16 or float32")])
def test_values_that_overflow_in_float16(other: float, remedy: str) -> None:
    """Are counted, and a balance of the factors is advised where it makes them fit."""
    a, b = torch.full((1, 8), other), torch.full((8, 1), 1e6)
    (finding,) = [x for x in doctor({A: a, B: b}).findings if "float16" in x.text]
    assert finding.text.startswith("8 values overflow in float16, whose largest number is 65504")
    assert finding.text.endswith(remedy) and finding.layers == (LAYER,)


def test_a_resized_file_says_so(tmp_path: Path) -> None:
    """With whose file it was; a merge keeps its own recipe, and what keeps every rank is not resized."""
    header = {"ss_learning_rate": "1e-4"}
    path = write(tmp_path / "style.safetensors", lora(**WIDE), metadata=header)
    out = tmp_path / "small.safetensors"
    assert cli.run(["resize", str(path), "--rank", "2", "-o", str(out)]) == 0
    recipe = json.loads(ml.load(out).metadata["mergelab"])
    (source,) = recipe["inputs"]
    assert (recipe["method"], recipe["options"], source["name"]) == ("resize", {"rank": 2}, "style")
    assert source["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    made = f"(header: ss_learning_rate); resized by mergelab {recipe['version']}; keys in the style of diffusers"
    assert doctor(out).facts["made by"].endswith(made)
    assert "mergelab" not in ml.load(path).resize(8).metadata
    merged = ml.merge([ml.load(path), ml.load(out)], rank=2).resize(1)
    assert json.loads(merged.metadata["mergelab"])["resized"][0]["rank"] == 1
    merged.save(tmp_path / "merged.safetensors")
    assert "style at 1, small at 1; resized by mergelab" in doctor(tmp_path / "merged.safetensors").facts["made by"]
