"""What a saved file holds: the recipe, the header, the dtype, biases."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

import mergelab as ml
from mergelab.formats import hashing, sha256_of
from mergelab.layer import LoraLayer
from tests.synthetic import SHAPES, adapter, difference, lora

NAMES = list(SHAPES)


def test_the_recipe_is_in_the_file(tmp_path: Path) -> None:
    """Method, options, weights and sha256 of the inputs, modelspec with a true hash, trigger words of all inputs."""
    import hashlib

    for i, word in ((26, "sks, dog"), (27, "szn")):
        metadata = {"modelspec.trigger_phrase": word, "ss_output_name": "x"}
        ml.Adapter(adapter(i).layers, metadata=metadata, architecture="sd15").save(tmp_path / f"{i}.safetensors")
    merged = ml.merge(
        [tmp_path / "26.safetensors", tmp_path / "27.safetensors"], [0.5, {"unet": 0.7}], "ties", density=0.4
    )
    merged.save(tmp_path / "out.safetensors")
    with safe_open(tmp_path / "out.safetensors", framework="pt") as file:
        metadata = file.metadata()
    recipe = json.loads(metadata["mergelab"])
    assert recipe["method"] == "ties" and recipe["options"]["density"] == 0.4 and recipe["options"]["rank"] == "max"
    assert [i["name"] for i in recipe["inputs"]] == ["26", "27"]
    assert [i["weight"] for i in recipe["inputs"]] == [0.5, {"unet": 0.7}]
    digest = hashlib.sha256((tmp_path / "26.safetensors").read_bytes()).hexdigest()
    assert recipe["inputs"][0]["sha256"] == digest and recipe["version"] == ml.__version__
    assert metadata["modelspec.architecture"] == "stable-diffusion-v1/lora"
    assert metadata["modelspec.trigger_phrase"] == "sks, dog, szn"
    assert metadata["modelspec.merged_from"] == "26, 27"
    raw = (tmp_path / "out.safetensors").read_bytes()
    body = raw[8 + int.from_bytes(raw[:8], "little") :]
    assert metadata["modelspec.hash_sha256"] == "0x" + hashlib.sha256(body).hexdigest()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *((key, "sks, dog") for key in ("trained_words", "trainedWords", "ss_trigger_words", "trigger_phrase")),
        *(
            (key, "sks, dog")
            for key in ("trigger_words", "instance_prompt", "activation text", "modelspec.trigger_word")
        ),
        *((key, '["sks", "dog"]') for key in ("trained_words", "modelspec.trigger_phrase")),
    ],
)
def test_trigger_words_under_any_key(key: str, value: str) -> None:
    """As the trainers and the hubs spell it, in one text or a list."""
    given = ml.Adapter(adapter(29).layers, metadata={key: value, "trigger": "no", "ss_output_name": "no"})
    assert ml.merge([given]).metadata["modelspec.trigger_phrase"] == "sks, dog"


def test_dtype_on_save(tmp_path: Path) -> None:
    """Cast once, on save; float16 that would overflow is an error; by default nothing is rounded."""
    a = adapter(28, scaling=0.3)
    a.save(tmp_path / "bf16.safetensors", dtype="bfloat16")
    loaded = ml.load(tmp_path / "bf16.safetensors")
    assert {x.lora_A.dtype for x in loaded.layers.values()} == {torch.bfloat16}
    assert difference(loaded, a) < 1e-2
    half = {n: LoraLayer(x.lora_A.half(), x.lora_B.half(), 0.3) for n, x in a.layers.items()}
    exact = ml.load(ml.Adapter(half, source="half").save(tmp_path / "exact.safetensors"))
    assert difference(exact, ml.Adapter(half, source="half")) < 1e-7
    with pytest.raises(ml.OutputError, match=r"conv_in.lora_B.*has values up to 2e\+05.*bfloat16"):
        big = LoraLayer(torch.ones(1, 3), torch.full((4, 1), 2e5))
        ml.Adapter({"unet.conv_in": big}, source="big").save(tmp_path / "f16.safetensors", dtype="float16")
    assert not (tmp_path / "f16.safetensors").exists()


def test_the_header_of_a_fused_file_says_its_rank(tmp_path: Path) -> None:
    """q, k, v of rank 2 with factors of their own stand in one module of rank 6."""
    generator = torch.Generator().manual_seed(0)
    names = [f"transformer.transformer_blocks.0.attn.to_{part}" for part in "qkv"]
    a = ml.Adapter({n: lora((16, 16), 2, generator) for n in names}, architecture="flux", source="a")
    with safe_open(a.save(tmp_path / "a.safetensors", format="kohya"), framework="pt") as file:
        assert file.metadata()["ss_network_dim"] == "6" and file.metadata()["ss_network_alpha"] == "6"
    again = ml.load(tmp_path / "a.safetensors").resize(1).save(tmp_path / "b.safetensors")
    with safe_open(again, framework="pt") as file:
        assert "ss_network_dim" not in file.metadata()


def test_alpha_in_the_header_without_a_prefix() -> None:
    """A model's own save_lora_adapter writes one config for the whole file."""
    from mergelab.formats.reading import parse

    pair = {"lora_A.weight": torch.ones(4, 3), "lora_B.weight": torch.ones(5, 4)}
    tensors = {f"mid_block.attentions.0.proj_in.{k}": v for k, v in pair.items()}
    header = {"lora_adapter_metadata": json.dumps({"r": 4, "lora_alpha": 8, "target_modules": ["proj_in"]})}
    (layer,) = parse(tensors, header, "file").layers.values()
    assert layer.scaling == 2.0


def test_a_bias_at_scaling_zero_survives_a_peft_folder(tmp_path: Path) -> None:
    """PEFT would multiply it by the scaling of its layer."""
    bias = f"{NAMES[0]}.lora_B.bias"
    silent = ml.Adapter((0 * adapter(34)).layers, {bias: torch.ones(24)}, source="silent")
    assert ml.load(silent.save(tmp_path / "folder", format="peft")).extras[bias].tolist() == [1.0] * 24


def test_a_fused_bias_without_its_weight_is_split_as_flux_is() -> None:
    """q, k, v and four times that."""
    pair = {"lora_A.weight": torch.ones(2, 5), "lora_B.weight": torch.ones(5, 2)}
    tensors = {f"diffusion_model.single_blocks.0.linear2.{k}": v for k, v in pair.items()}
    loaded = ml.load({**tensors, "diffusion_model.single_blocks.3.linear1.diff_b": torch.arange(28.0)})
    assert [len(loaded.extras[k]) for k in sorted(loaded.extras)] == [4, 4, 4, 16]


def test_names_and_seeds_that_would_mislead(tmp_path: Path) -> None:
    """A name no tool knows a safetensors file by, a seed that is no integer, a local path that looks like the Hub's."""
    for name in ("out.bin", "out.txt", "out"):
        with pytest.raises(ml.OutputError, match=r"ends in \.safetensors"):
            adapter(45).save(tmp_path / name)
    with pytest.raises(ml.OptionError, match="expected an integer"):
        ml.merge([adapter(45)], seed=1.5)  # type: ignore[arg-type]
    with pytest.raises(ml.SourceError, match="no such file"):
        ml.load("tests/data/nowhere/x.safetensors")


def test_files_are_hashed_beside_what_is_done_meanwhile(tmp_path: Path) -> None:
    """As without; what cannot be read is told where its hash is asked for, and nowhere else."""
    path = adapter(0).save(tmp_path / "a.safetensors")
    with hashing([path, path, tmp_path / "none"]) as digest_of:
        assert digest_of(path) == sha256_of(path)
        with pytest.raises(FileNotFoundError):
            digest_of(tmp_path / "none")
