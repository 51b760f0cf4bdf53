"""Every field of PEFT's LoraConfig: honoured, harmless, or refused by its name when it is set."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

import mergelab as ml
from mergelab.formats.peft_config import HARMLESS, HONOURED, REFUSED, check_config
from tests.files import lora, numbers, write

MODULE = "base_model.model.model.layers.0.self_attn.q_proj"
# A value that sets the field, where PEFT's default is not such a value or says too little.
SET: dict[str, object] = {
    "alora_invocation_tokens": [5, 7],
    "use_bdlora": {"target_modules_bd_a": ["q_proj"], "nblocks": 2},
    "kasa_config": {"beta": 1e-4},
    "arrow_config": {"top_k": 3},
    "monteclora_config": {"num_samples": 8},
    "velora_config": {"num_groups": 64},
    "layer_replication": [[0, 4], [2, 5]],
    "target_parameters": ["experts.down_proj"],
    "megatron_config": {"tensor_model_parallel_size": 2},
}
FIELDS = [field.name for field in dataclasses.fields(LoraConfig)]


def folder(path: Path, **config: object) -> Path:
    """A PEFT folder of one layer with these fields."""
    write(path / "adapter_model.safetensors", lora(MODULE))
    fields = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"], **config}
    (path / "adapter_config.json").write_text(json.dumps(fields))
    return path


def in_header(path: Path, **config: object) -> Path:
    """A diffusers file of one layer whose header has these fields, as diffusers writes them."""
    fields = {f"unet.{name}": value for name, value in {"r": 2, "lora_alpha": 4, **config}.items()}
    write(path / "a.safetensors", lora(), metadata={"lora_adapter_metadata": json.dumps(fields)})
    return path / "a.safetensors"


@pytest.mark.parametrize("field", FIELDS)
def test_every_field_of_peft(field: str, tmp_path: Path) -> None:
    """A field that mergelab does not know, of a PEFT to come, fails here and is refused when it is set."""
    assert (field in HONOURED) + (field in HARMLESS) + (field in REFUSED) == 1, f"{field}: decide what it changes"
    if field not in REFUSED:
        return
    for given in (folder, in_header):
        with pytest.raises(ml.FormatError, match=field) as caught:
            ml.load(given(tmp_path, **{field: SET.get(field, True)}))
        assert "\n" not in str(caught.value)


def test_what_peft_writes_by_default_is_plain(tmp_path: Path) -> None:
    """All fields at their defaults, as in a folder that PEFT wrote, in a folder and in a header."""
    model = get_peft_model(nn.Sequential(nn.Linear(8, 8)), LoraConfig(r=2, lora_alpha=4, target_modules=["0"]))
    model.save_pretrained(str(tmp_path))
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert set(config) >= set(FIELDS) - {"runtime_config"}
    for path in (tmp_path, in_header(tmp_path / "header", **{**config, "r": 2, "lora_alpha": 4})):
        assert [layer.scaling for layer in ml.load(path).layers.values()] == [2.0]


@pytest.mark.parametrize("field", ["a_field_to_come", "swift_field", "", "r\n"])
def test_unknown_fields(field: str, tmp_path: Path) -> None:
    """A field of nobody's is refused where it is set, and does nothing where it is not."""
    for value in (True, 1, "x", [0], {"a": None}):
        with pytest.raises(ml.FormatError, match="does not know what that changes") as caught:
            ml.load(folder(tmp_path, **{field: value}))
        assert "\n" not in str(caught.value) and repr(field) in str(caught.value)
    for value in (None, False, 0, "", [], {}):
        assert ml.load(folder(tmp_path, **{field: value})).layers


STARTS: dict[Any, bool] = {
    **dict.fromkeys((True, False, None, "gaussian", "eva", "orthogonal", "mica", "true"), True),
    **dict.fromkeys(("pissa", "PiSSA", "pissa_niter_16", "olora", "corda", "lora_ga", "lora-ga", "loftq"), False),
    **dict.fromkeys(("a_start_to_come", 2), False),
}


@pytest.mark.parametrize("start", STARTS)
def test_starts_that_change_the_base_model(start: object, tmp_path: Path) -> None:
    """An adapter of a changed base model is refused, in a folder and in a header; other starts leave no trace."""
    for given in (folder, in_header):
        path = given(tmp_path, init_lora_weights=start)
        if STARTS[start]:
            assert ml.load(path).layers
        else:
            with pytest.raises(ml.FormatError, match=f"init_lora_weights is {start!r}"):
                ml.load(path)


@pytest.mark.parametrize("field", ["corda_config", "lora_ga_config", "eva_config", "loftq_config"])
def test_configs_of_a_start_count_only_with_it(field: str) -> None:
    """They stay in a config when PEFT has converted the adapter to a plain one."""
    check_config({field: {"x": 1}, "init_lora_weights": True})


@pytest.mark.parametrize("bias", ["all", "lora_only", 1])
def test_whole_biases_are_refused(bias: object, tmp_path: Path) -> None:
    """A bias that replaces the base model's has no place in a weighted sum."""
    with pytest.raises(ml.FormatError, match="bias is"):
        ml.load(folder(tmp_path, bias=bias))


def test_another_method_in_a_header(tmp_path: Path) -> None:
    """`peft_type` is asked for in a header, too; and the message names the component."""
    with pytest.raises(ml.FormatError, match=r"lora_adapter_metadata.*'unet'.*peft_type is 'LOHA'"):
        ml.load(in_header(tmp_path, peft_type="LOHA"))


@pytest.mark.parametrize("prefix", ["unet.", ""])
def test_a_field_of_the_header_is_named(prefix: str, tmp_path: Path) -> None:
    """With a component before it, or without, as a model's own `save_lora_adapter` writes it."""
    text = json.dumps({f"{prefix}lora_alpha": 4, f"{prefix}use_dora": True})
    path = write(tmp_path / "a.safetensors", lora(), metadata={"lora_adapter_metadata": text})
    with pytest.raises(ml.FormatError, match=r"is a DoRA \(use_dora\), and '\S+' has no magnitudes"):
        ml.load(path)


@pytest.mark.parametrize(
    ("leaf", "kind"),
    {
        "lora_diag": "KaSA",
        "lora_magnitude": "DoRA",
        "lora_magnitude_vector": "DoRA",
        "lora_magnitude_vector.default.weight": "DoRA",
        "magnitude": "DoRA",
        "lora_E": "AdaLoRA",
        "lora_velora_embed": "VeLoRA",
        "lora_monteclora_sampler.std_prior": "MonteCLoRA",
        "lora_to_come": "lora_to_come",
        "base_layer.bias": "base_layer.bias",
        "gate.weight": "gate.weight",
    }.items(),
)
def test_tensors_of_a_layer_are_no_saved_modules(leaf: str, kind: str, tmp_path: Path) -> None:
    """What stands under a LoRA layer's own path belongs to it, in a folder and in a file, and is refused by name."""
    extra = {f"{MODULE}.{leaf}": numbers(8)}
    for config in ({"peft_type": "LORA", "lora_alpha": 4, "modules_to_save": ["q_proj", "gate"]}, None):
        path = write(tmp_path / "x" / "adapter_model.safetensors", lora(MODULE), extra)
        if config:
            (path.parent / "adapter_config.json").write_text(json.dumps(config))
        with pytest.raises(ml.FormatError, match=kind) as caught:
            ml.load(path.parent if config else path)
        assert leaf in str(caught.value) and "remove" not in str(caught.value) and "\n" not in str(caught.value)


def test_a_part_of_a_layer_that_is_not_there(tmp_path: Path) -> None:
    """A `lora_` tensor of a module without factors is no saved module either."""
    path = folder(tmp_path)
    write(path / "adapter_model.safetensors", lora(MODULE), {"base_model.model.emb.lora_to_come": torch.ones(2)})
    with pytest.raises(ml.FormatError, match="lora_to_come"):
        ml.load(path)
