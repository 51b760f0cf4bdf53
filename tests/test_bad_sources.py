"""PEFT folders that make no sense, folders without an adapter, names that are no sources."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import mergelab as ml
from tests.files import LAYER, A, B, lora, numbers, write
from tests.refusing import Refused, commands

CONFIGS: dict[str, tuple[str, tuple[str, ...]]] = {
    "no JSON": ("{", ("no JSON",)),
    "nested too deeply": ("[" * 100_000, ("no JSON",)),
    "empty": ("", ("no JSON",)),
    "a list": ("[]", ("list", "expected 'LORA'")),
    "another method": ('{"peft_type": "VERA"}', ("VERA", "expected 'LORA'")),
    "QALoRA": ('{"use_qalora": true}', ("QALoRA",)),
    "lora_alpha a string": ('{"lora_alpha": "8"}', ("lora_alpha", "'8'", "expected")),
    "lora_alpha NaN": ('{"lora_alpha": NaN}', ("lora_alpha", "nan", "expected")),
    "lora_alpha too large": ('{"lora_alpha": 1' + "0" * 400 + "}", ("lora_alpha", "expected")),
    "alpha_pattern a list": ('{"alpha_pattern": [1]}', ("alpha_pattern", "expected")),
    "alpha_pattern a string": ('{"alpha_pattern": "to_q"}', ("alpha_pattern", "expected")),
    "alpha_pattern no number": ('{"alpha_pattern": {"to_q": "8"}}', ("alpha_pattern", "'8'", "expected")),
    "alpha_pattern no pattern": ('{"alpha_pattern": {"(": 8}}', ("alpha_pattern", "'('", "expected")),
    "alpha_pattern too large": ('{"alpha_pattern": {"a{99999999999}": 8}}', ("alpha_pattern", "expected")),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_peft_config(name: str, tmp_path: Path, refused: Refused) -> None:
    """An `adapter_config.json` that makes no sense is refused by its name, as is the same in a file's header."""
    text, needles = CONFIGS[name]
    write(tmp_path / "adapter_model.safetensors", lora("base_model.model.layers.0.to_q"))
    config = tmp_path / "adapter_config.json"
    config.write_text(text)
    refused("inspect", tmp_path, needles=[str(config), *needles])


@pytest.mark.parametrize("name", [name for name in CONFIGS if name.startswith(("lora_", "alpha_"))])
def test_header_config(name: str, tmp_path: Path, refused: Refused) -> None:
    """What is wrong in a PEFT config is wrong in `lora_adapter_metadata`, too."""
    text, needles = CONFIGS[name]
    flat = text.replace('{"', '{"unet.', 1)
    bad = write(tmp_path / "bad.safetensors", lora(), metadata={"lora_adapter_metadata": flat})
    refused("inspect", bad, needles=[str(bad), *needles])


@pytest.mark.parametrize("text", ["{", "[]", "1", "[" * 100_000])
def test_header_no_config(text: str, tmp_path: Path, refused: Refused) -> None:
    """`lora_adapter_metadata` that is no JSON object is refused."""
    bad = write(tmp_path / "bad.safetensors", lora(), metadata={"lora_adapter_metadata": text})
    refused("inspect", bad, needles=[str(bad), "lora_adapter_metadata"])


def test_rank_0_with_alpha(tmp_path: Path, refused: Refused) -> None:
    """A factor of rank 0 is refused where alpha / rank is asked for."""
    config = json.dumps({"unet.lora_alpha": 4})
    bad = write(
        tmp_path / "bad.safetensors",
        {A: numbers(0, 8), B: numbers(8, 0)},
        metadata={"lora_adapter_metadata": config},
    )
    refused("inspect", bad, needles=[str(bad), LAYER, "(0, 8)"])


def test_folders_that_hold_no_adapter(tmp_path: Path, refused: Refused) -> None:
    """A folder without an adapter, with several files, with a config alone: each says what was expected."""
    for name in ("none", "several/a.safetensors", "several/b.safetensors", "config/adapter_config.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "none").unlink()
    (tmp_path / "none").mkdir()
    (tmp_path / "config" / "adapter_config.json").write_text("{}")
    refused("inspect", tmp_path / "none", needles=["none", "expected", "adapter_config.json"])
    refused("inspect", tmp_path / "several", needles=["a.safetensors, b.safetensors", "name the file"])
    refused("inspect", tmp_path / "config", needles=["config", "adapter_model.safetensors"])


@pytest.mark.parametrize("name", ["nothing.safetensors", "no folder/nothing.safetensors", "x" * 5000, "nothing:0.5"])
def test_no_such_file(name: str, tmp_path: Path, good: Path, refused: Refused) -> None:
    """A file that is not there is named, by every command and by `load`."""
    for arguments in commands(tmp_path / name, tmp_path).values():
        refused(*arguments, needles=[name.removesuffix(":0.5")[:40]])
    with pytest.raises(ml.SourceError, match=r"no such file|too long"):
        ml.load(tmp_path / name)


@pytest.mark.parametrize("source", [None, 3, b"a.safetensors", ["a"], {"a": 1}, {1: numbers(2)}, {}])
def test_no_source(source: Any) -> None:
    """What is neither a path nor a state dict is refused."""
    with pytest.raises(Exception) as caught:
        ml.load(source)
    # Under pytest the argument's type is checked before the function sees it.
    assert isinstance(caught.value, ml.MergelabError) or "type-check" in str(caught.value)


def test_messages_are_one_line(tmp_path: Path, refused: Refused) -> None:
    """A line break in a file's name or in a key does not break the sentence into lines."""
    bad = tmp_path / "two\nlines.safetensors"
    write(bad, {"a\nkey": numbers(2)})
    assert "a\\nkey" in refused("inspect", bad)
