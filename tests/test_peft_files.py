"""PEFT's two files: the weights named alone, the fields that a config leaves out, folders of components."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn

import mergelab as ml
from mergelab.formats.peft_config import DEFAULT_ALPHA
from tests.files import lora, write
from tests.peft_folders import peft_folder
from tests.refusing import Refused


def put(folder: Path, files: dict[str, bytes]) -> Path:
    """Write files into a new folder."""
    folder.mkdir(parents=True)
    for name, body in files.items():
        (folder / name).write_bytes(body)
    return folder


def scalings(path: Path, **options: bool) -> list[float]:
    """Of all layers."""
    return [layer.scaling for layer in ml.load(path, **options).layers.values()]


def test_weights_named_alone(tmp_path: Path) -> None:
    """The config beside them counts; alone, or under another name, they are what they say themselves."""
    folder = put(tmp_path / "peft", peft_folder())
    weights = folder / "adapter_model.safetensors"
    adapter = ml.load(weights)
    assert scalings(folder) == scalings(weights) == [3.0]
    assert adapter.inputs == (weights, folder / "adapter_config.json") and adapter.is_file
    assert scalings(weights.rename(folder / "other.safetensors")) == [1.0]


def test_the_weights_that_are_named(tmp_path: Path) -> None:
    """Where a folder holds both, the folder means the safetensors file, a name means what it names."""
    folder = put(tmp_path / "peft", peft_folder())
    torch.save(lora("base_model.model.mid_block.attentions.0.proj_in", rank=3), folder / "adapter_model.bin")
    assert scalings(folder / "adapter_model.bin", allow_pickle=True) == [2.0]
    assert scalings(folder, allow_pickle=True) == [3.0]


def test_a_config_that_is_none(tmp_path: Path, refused: Refused) -> None:
    """It is not passed over because the weights were named."""
    folder = put(tmp_path / "peft", {**peft_folder(), "adapter_config.json": b"{"})
    refused("inspect", folder / "adapter_model.safetensors", needles=["adapter_config.json", "no JSON"])


def test_fields_that_are_left_out(tmp_path: Path) -> None:
    """PEFT's defaults, as PEFT itself loads the same folder: rank 8 and alpha 8."""
    torch.manual_seed(0)
    config = LoraConfig(target_modules=["0"], init_lora_weights=False)
    assert config.lora_alpha == DEFAULT_ALPHA
    get_peft_model(nn.Sequential(nn.Linear(32, 32)), config).save_pretrained(str(tmp_path))
    for use_rslora in (False, True):
        fields = {"peft_type": "LORA", "target_modules": ["0"], "use_rslora": use_rslora}
        (tmp_path / "adapter_config.json").write_text(json.dumps(fields))
        model = PeftModel.from_pretrained(nn.Sequential(nn.Linear(32, 32)), str(tmp_path))
        expected = model.base_model.model[0].get_delta_weight("default")
        (layer,) = ml.load(tmp_path).layers.values()
        torch.testing.assert_close(layer.delta_weight(), expected)
    write(tmp_path / "a.safetensors", lora(), metadata={"lora_adapter_metadata": json.dumps({"unet.r": 2})})
    assert scalings(tmp_path / "a.safetensors") == [4.0]


def test_an_alpha_of_nothing(tmp_path: Path) -> None:
    """PEFT cannot divide it either."""
    config = b'{"peft_type": "LORA", "lora_alpha": null}'
    with pytest.raises(ml.FormatError, match=r"lora_alpha .*None, expected finite numbers"):
        ml.load(put(tmp_path / "peft", {**peft_folder(), "adapter_config.json": config}))


def test_two_folders_of_one_component(tmp_path: Path, refused: Refused) -> None:
    """Neither takes the place of the other."""
    for component in ("unet", "text_encoder"):
        put(tmp_path / component, peft_folder("unet"))
    refused("inspect", tmp_path, needles=[str(tmp_path), "two of its folders hold unet.mid_block", "one for each"])
