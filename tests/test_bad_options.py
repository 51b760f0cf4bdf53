"""Every bad input gives one clear sentence, exit code 2, and leaves no file behind."""

from __future__ import annotations

import hashlib
import json
import math
import os
import pickle
import re
import select
import shutil
import signal
import struct
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import mergelab as ml
from mergelab import cli

LAYER = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
OTHER = "unet.mid_block.attentions.0.proj_in"
TEXT = "text_encoder.text_model.encoder.layers.0.self_attn.q_proj"
FORMATS = ("diffusers", "kohya", "peft")
OUTPUTS = {"diffusers": "out.safetensors", "kohya": "out.safetensors", "peft": "out"}
_SCRIPT = shutil.which("mergelab", path=str(Path(sys.executable).parent))
COMMAND = [_SCRIPT] if _SCRIPT else [sys.executable, "-c", "from mergelab.cli import main; main()"]

Tensors = dict[str, Tensor]


# Files.


def numbers(*shape: int) -> Tensor:
    """Random numbers of order one, the same every time."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def lora(layer: str = LAYER, out: int = 8, inner: int = 8, rank: int = 2) -> Tensors:
    """The factors of one layer."""
    return {f"{layer}.lora_A.weight": numbers(rank, inner), f"{layer}.lora_B.weight": numbers(out, rank)}


def write(path: Path, *parts: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> Path:
    """A safetensors file, written by the safetensors package."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({key: tensor for part in parts for key, tensor in part.items()}, path, metadata)
    return path


@pytest.fixture
def good(tmp_path: Path) -> Path:
    """A good file of two layers, in the folder whose content is watched."""
    return write(tmp_path / "good.safetensors", lora(), lora(OTHER))


@pytest.fixture(autouse=True)
def _no_debugging(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MERGELAB_DEBUG", raising=False)


def content(folder: Path) -> dict[str, str]:
    """Everything in a folder, hidden files as well, with a digest of each file."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "folder"
        for path in folder.rglob("*")
    }


# One command line, in this process.


class Refused:
    """Runs command lines that have to be refused, and gives back their sentence."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder, self.capsys = folder, capsys

    def __call__(self, *arguments: str | Path, needles: Sequence[str] = ()) -> str:
        before = content(self.folder)
        self.capsys.readouterr()
        code = cli.run([str(argument) for argument in arguments])
        sentence = one_sentence(self.capsys.readouterr().err)
        assert code == 2
        assert content(self.folder) == before, "a refused command changed the folder"
        for needle in needles:
            assert needle in sentence
        return sentence


def one_sentence(stderr: str) -> str:
    """The sentence on standard error, of which there is exactly one, in words that are meant for a user."""
    assert "Traceback" not in stderr
    assert re.fullmatch(r"mergelab: error: \S.*\n", stderr), stderr
    assert "internal error" not in stderr, stderr
    return stderr


@pytest.fixture
def refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Refused:
    return Refused(tmp_path, capsys)


def commands(file: Path, folder: Path) -> dict[str, list[str | Path]]:
    """Every command that reads a file."""
    out = folder / "out.safetensors"
    return {
        "merge": ["merge", file, folder / "good.safetensors", "-o", out],
        "inspect": ["inspect", file],
        "compare": ["compare", folder / "good.safetensors", file],
        "convert": ["convert", file, "-o", out, "--format", "kohya"],
        "resize": ["resize", file, "--rank", "1", "-o", out],
    }


COMMANDS = tuple(commands(Path(), Path()))


# Files that are damaged, or something else.


def damage(change: Callable[[dict[str, Any], bytes], tuple[dict[str, Any], bytes]]) -> Callable[[Path], None]:
    """A good file of which the header and the data were changed."""

    def build(path: Path) -> None:
        raw = write(path, lora()).read_bytes()
        (length,) = struct.unpack("<Q", raw[:8])
        header, data = change(json.loads(raw[8 : 8 + length]), raw[8 + length :])
        text = json.dumps(header).encode()
        path.write_bytes(struct.pack("<Q", len(text)) + text + data)

    return build


def entry(**fields: Any) -> Callable[[Path], None]:
    """A good file of which the header lies about one tensor."""

    def change(header: dict[str, Any], data: bytes) -> tuple[dict[str, Any], bytes]:
        header[f"{LAYER}.lora_A.weight"].update(fields)
        return header, data

    return damage(change)


def shortened(keep: Callable[[int], int]) -> Callable[[Path], None]:
    """The beginning of a good file."""

    def build(path: Path) -> None:
        raw = write(path, lora()).read_bytes()
        path.write_bytes(raw[: keep(len(raw))])

    return build


def zipped(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("lora.txt", "not tensors")


DAMAGED: dict[str, Callable[[Path], object]] = {
    "truncated data": shortened(lambda size: size - 10),
    "truncated header": shortened(lambda size: 20),
    "truncated length": shortened(lambda size: 5),
    "offsets beyond the file": entry(data_offsets=[0, 10**6]),
    "offsets reversed": entry(data_offsets=[64, 0]),
    "offsets negative": entry(data_offsets=[-64, 0]),
    "wrong shape": entry(shape=[2, 9]),
    "huge shape": entry(shape=[2**40, 2**40]),
    "unknown dtype": entry(dtype="F33"),
    "header too long": lambda path: path.write_bytes(struct.pack("<Q", 2**63) + b"{}"),
    "header beyond the file": lambda path: path.write_bytes(struct.pack("<Q", 10**6) + b"{}"),
    "header no JSON": lambda path: path.write_bytes(struct.pack("<Q", 8) + b"{{{{{{{{"),
    "header a list": lambda path: path.write_bytes(struct.pack("<Q", 2) + b"[]"),
    "empty": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_text("<!DOCTYPE html>\nnot a file of tensors\n"),
    "zip": zipped,
    "pickle 2": lambda path: path.write_bytes(pickle.dumps({"a": 1}, protocol=2)),
    "pickle 3": lambda path: path.write_bytes(pickle.dumps({"a": 1}, protocol=3)),
    "pickle 5": lambda path: path.write_bytes(pickle.dumps({"a": 1}, protocol=5)),
    "torch.save": lambda path: torch.save(lora(), path),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_file(name: str, tmp_path: Path, good: Path, refused: Refused) -> None:
    """No command reads a damaged file, and each names it; so does `load`."""
    bad = tmp_path / "bad.safetensors"
    DAMAGED[name](bad)
    for arguments in commands(bad, tmp_path).values():
        refused(*arguments, needles=[str(bad)])
    with pytest.raises(ml.FormatError, match=r"expected safetensors|download or save it again") as caught:
        ml.load(bad)
    assert str(bad) in str(caught.value)


@pytest.mark.parametrize("length", [0x0280, 0x0380, 0x0480, 0x0580])
def test_length_that_looks_like_a_pickle(length: int, tmp_path: Path) -> None:
    """A header of 640 bytes is no pickle, although its length begins with the bytes of one."""
    path = write(tmp_path / "a.safetensors", lora())
    raw = path.read_bytes()
    (found,) = struct.unpack("<Q", raw[:8])
    path.write_bytes(struct.pack("<Q", length) + raw[8 : 8 + found].ljust(length) + raw[8 + found :])
    assert list(ml.load(path).layers) == [LAYER]


# Files whose tensors do not fit together.

A, B = f"{LAYER}.lora_A.weight", f"{LAYER}.lora_B.weight"
BIAS, ALPHA = f"{LAYER}.lora_B.bias", f"{LAYER}.alpha"
KOHYA = "lora_unet_mid_block_resnets_0_conv1"

# name -> tensors, and what the sentence has to say besides the file.
MISFITS: dict[str, tuple[Tensors, tuple[str, ...]]] = {
    "up without down": ({B: numbers(8, 2)}, (B, "lora_A", "expected both")),
    "down without up": ({A: numbers(2, 8)}, (A, "lora_B", "expected both")),
    "alpha alone": ({**lora(OTHER), ALPHA: numbers(1)}, (ALPHA, "expected both")),
    "ranks disagree": ({A: numbers(2, 8), B: numbers(8, 3)}, (LAYER, "(2, 8)", "(8, 3)", "expected")),
    "no dimension": ({A: numbers(2), B: numbers(8, 2)}, (LAYER, "(2,)", "expected")),
    "scalars": ({A: torch.tensor(1.0), B: torch.tensor(1.0)}, (LAYER, "expected")),
    "rank 0": ({A: numbers(0, 8), B: numbers(8, 0)}, (LAYER, "(0, 8)", "expected")),
    "no inputs": ({A: numbers(2, 0), B: numbers(8, 2)}, (LAYER, "(2, 0)", "expected")),
    "integers": ({A: torch.ones(2, 8, dtype=torch.int32), B: numbers(8, 2)}, (A, "int32", "expected floating")),
    "booleans": ({A: numbers(2, 8), B: torch.ones(8, 2, dtype=torch.bool)}, (B, "bool", "expected floating")),
    "complex": ({A: numbers(2, 8), B: torch.ones(8, 2, dtype=torch.complex64)}, (B, "complex", "expected floating")),
    "alpha NaN": ({**lora(), ALPHA: torch.tensor(math.nan)}, (ALPHA, "nan", "expected one finite")),
    "alpha infinite": ({**lora(), ALPHA: torch.tensor(math.inf)}, (ALPHA, "inf", "expected one finite")),
    "alpha a vector": ({**lora(), ALPHA: torch.ones(2)}, (ALPHA, "expected one finite")),
    "alpha too large": ({**lora(), ALPHA: torch.tensor(1e300, dtype=torch.float64)}, (ALPHA, "1e+300", "expected")),
    "alpha empty": ({**lora(), ALPHA: torch.ones(0)}, (ALPHA, "expected one finite")),
    "bias too long": ({**lora(), BIAS: numbers(7)}, (BIAS, "expected 8", "7")),
    "bias a matrix": ({**lora(), BIAS: numbers(8, 2)}, (BIAS, "expected a vector", "(8, 2)")),
    "unknown key": ({**lora(), "unet.conv_in.mystery": numbers(3)}, ("'unet.conv_in.mystery'", "1 of 3")),
    "no LoRA": ({"unet.conv_in.weight": numbers(3, 3)}, ("'unet.conv_in.weight'",)),
    "no tensors": ({}, ("no LoRA layer", "expected", "lora_A")),
    "an embedding only": ({"emb_params": numbers(2, 768)}, ("no LoRA layer", "expected")),
    "DoRA": ({**lora(), f"{LAYER}.dora_scale": numbers(8, 1)}, ("DoRA", f"{LAYER}.dora_scale", "convert")),
    "LoHa": ({f"{KOHYA}.hada_w1_a": numbers(8, 2)}, ("LoHa", f"{KOHYA}.hada_w1_a", "convert")),
    "two adapters": (
        {**{f"{LAYER}.lora_A.{name}.weight": numbers(2, 8) for name in ("a", "b")}},
        (f"{LAYER}.lora_A.a.weight", f"{LAYER}.lora_A.b.weight", "one adapter", "save each"),
    ),
    "one layer in two dialects": (
        {
            **lora("unet.conv_in"),
            "lora_unet_conv_in.lora_down.weight": numbers(2, 8),
            "lora_unet_conv_in.lora_up.weight": numbers(8, 2),
        },
        ("lora_unet_conv_in", "unet.conv_in", "expected one"),
    ),
    "lora_mid does not fit": (
        {
            f"{KOHYA}.lora_down.weight": numbers(2, 4, 1, 1),
            f"{KOHYA}.lora_up.weight": numbers(4, 2, 1, 1),
            f"{KOHYA}.lora_mid.weight": numbers(2, 3, 3, 3),
        },
        (KOHYA, "lora_mid (2, 3, 3, 3)", "lora_down (2, 4, 1, 1)"),
    ),
    "lora_mid of rank 0": (
        {
            f"{KOHYA}.lora_down.weight": numbers(0, 4, 1, 1),
            f"{KOHYA}.lora_up.weight": numbers(4, 2, 1, 1),
            f"{KOHYA}.lora_mid.weight": numbers(2, 0, 3, 3),
        },
        (KOHYA, "(2, 0, 3, 3)"),
    ),
    "lora_mid with a scalar": (
        {
            f"{KOHYA}.lora_down.weight": torch.tensor(1.0),
            f"{KOHYA}.lora_up.weight": numbers(4, 2, 1, 1),
            f"{KOHYA}.lora_mid.weight": numbers(2, 2, 3, 3),
        },
        (KOHYA, "lora_mid"),
    ),
    "fused layer too small": (
        {
            "lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight": numbers(2, 4),
            "lora_unet_double_blocks_0_img_attn_qkv.lora_up.weight": numbers(11, 2),
        },
        ("double_blocks.0.img_attn.qkv", "(11, 4)", "expected 12 rows"),
    ),
}


@pytest.mark.parametrize("name", MISFITS)
def test_misfit_tensors(name: str, tmp_path: Path, good: Path, refused: Refused) -> None:
    """Tensors that do not fit together are refused by every command; the file, the layer and the remedy are named."""
    tensors, needles = MISFITS[name]
    bad = write(tmp_path / "bad.safetensors", tensors)
    for arguments in commands(bad, tmp_path).values():
        refused(*arguments, needles=[str(bad), *needles])
    with pytest.raises(ml.MergelabError) as caught:
        ml.load(bad)
    assert all(needle in str(caught.value) for needle in (str(bad), *needles))


@pytest.mark.parametrize("name", MISFITS)
def test_misfit_state_dict(name: str) -> None:
    """The same tensors as a state dict are refused as well."""
    tensors, needles = MISFITS[name]
    with pytest.raises(ml.MergelabError) as caught:
        ml.load(tensors)
    assert all(needle in str(caught.value) for needle in needles)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("key", [A, B, BIAS])
@pytest.mark.parametrize("command", COMMANDS)
def test_not_finite(command: str, key: str, value: float, tmp_path: Path, good: Path, refused: Refused) -> None:
    """NaN and infinity are found by every command, which names the file and the layer."""
    tensors = {**lora(), BIAS: numbers(8)}
    tensors[key].view(-1)[-1] = value
    bad = write(tmp_path / "bad.safetensors", tensors)
    if command == "compare" and key == BIAS:
        pytest.skip("compare looks at the layers alone")
    sentence = refused(*commands(bad, tmp_path)[command], needles=[str(bad), "NaN or infini"])
    assert LAYER.removeprefix("unet.").replace(".", "_") in sentence.replace(".", "_")


@pytest.mark.parametrize("format", FORMATS)
def test_not_finite_in_every_format(format: str, tmp_path: Path, refused: Refused) -> None:
    """No format writes NaN, and none leaves a file or a folder behind."""
    tensors = lora()
    tensors[A][0, 0] = math.nan
    bad = write(tmp_path / "bad.safetensors", tensors)
    refused("convert", bad, "-o", tmp_path / OUTPUTS[format], "--format", format, needles=[str(bad), "NaN"])
    with pytest.raises(ml.MergelabError, match="to_q"):
        ml.load(bad).save(tmp_path / OUTPUTS[format], format=format)
    assert list(content(tmp_path)) == ["bad.safetensors"]


# Pickles.


@pytest.mark.parametrize("suffix", [".pt", ".bin", ".pth", ".ckpt", ".PT"])
def test_pickle(suffix: str, tmp_path: Path, refused: Refused, capsys: pytest.CaptureFixture[str]) -> None:
    """A pickle is refused with the option that allows it, and read with that option."""
    path = tmp_path / f"lora{suffix}"
    torch.save(lora(), path)
    refused("inspect", path, needles=[str(path), "pickle", "--allow-pickle"])
    with pytest.raises(ml.FormatError, match="allow_pickle=True"):
        ml.load(path)
    out = tmp_path / "out.safetensors"
    assert cli.run(["convert", str(path), "-o", str(out), "--format", "diffusers", "--allow-pickle"]) == 0
    torch.testing.assert_close(
        ml.load(out).layers[LAYER].delta_weight(), ml.load(lora()).layers[LAYER].delta_weight(), rtol=0, atol=0
    )


class Bomb:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("build", ["bomb", "list", "numbers", "text", "empty", "safetensors", "meta"])
def test_pickle_of_something_else(build: str, tmp_path: Path, refused: Refused) -> None:
    """An allowed pickle runs no code, and has to hold tensors by name."""
    path, mark = tmp_path / "lora.pt", tmp_path / "it ran"
    if build == "bomb":
        path.write_bytes(pickle.dumps({A: Bomb(mark)}))
    elif build == "text":
        path.write_text("hello")
    elif build == "empty":
        path.write_bytes(b"")
    elif build == "safetensors":
        write(path, lora())
    else:
        meta = {key: tensor.to("meta") for key, tensor in lora().items()}
        torch.save({"list": [1, 2], "numbers": {"a": 1.0}, "meta": meta}[build], path)
    refused("inspect", path, "--allow-pickle", needles=[str(path)])
    refused("merge", path, "-o", tmp_path / "out.safetensors", "--allow-pickle", needles=[str(path)])
    assert not mark.exists()


# PEFT folders.

CONFIGS: dict[str, tuple[str, tuple[str, ...]]] = {
    "no JSON": ("{", ("no JSON",)),
    "nested too deeply": ("[" * 100_000, ("no JSON",)),
    "empty": ("", ("no JSON",)),
    "a list": ("[]", ("list", "expected 'LORA'")),
    "another method": ('{"peft_type": "IA3"}', ("IA3", "expected 'LORA'")),
    "DoRA": ('{"use_dora": true}', ("DoRA",)),
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


# Names that are no sources.


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


# Adapters that do not go together.


def test_different_base_models(tmp_path: Path, refused: Refused) -> None:
    """SD 1.5, SD 2.x, SDXL and FLUX are told apart, and none goes with another."""
    block = "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k"
    files = {
        "sd15": write(tmp_path / "one.safetensors", lora(block, 640, 768)),
        "sd2": write(tmp_path / "two.safetensors", lora(block, 640, 1024)),
        "sdxl": write(tmp_path / "three.safetensors", lora(block, 640, 2048)),
        "flux": write(tmp_path / "four.safetensors", lora("transformer.single_transformer_blocks.0.attn.to_q")),
    }
    for first, file in files.items():
        for second, other in files.items():
            if first == second:
                continue
            needles = [f"{file.stem} is for {first}", f"{other.stem} is for {second}", "one base model"]
            refused("merge", file, other, "-o", tmp_path / "out.safetensors", needles=needles)
            refused("compare", file, other, needles=needles)
            with pytest.raises(ml.ArchitectureError):
                ml.merge([file, other])
            with pytest.raises(ml.MergelabError):
                ml.load(file) + ml.load(other)


def test_different_shapes(tmp_path: Path, good: Path, refused: Refused) -> None:
    """Layers of one name and two shapes: the layer, both files and both shapes are named."""
    other = write(tmp_path / "wide.safetensors", lora(LAYER, 8, 9))
    needles = [LAYER, "good", "wide", "(8, 8)", "(8, 9)", "different base models"]
    refused("merge", good, other, "-o", tmp_path / "out.safetensors", needles=needles)
    refused("compare", good, other, needles=needles)
    with pytest.raises(ml.LayerError, match="shape"):
        ml.load(good) + ml.load(other)


def test_different_biases(tmp_path: Path) -> None:
    """Biases of one layer without factors and of two sizes are refused, with the layer and both files."""
    first, second = (write(tmp_path / f"{n}.safetensors", lora(OTHER), {BIAS: numbers(n)}) for n in (7, 8))
    with pytest.raises(ml.LayerError) as caught:
        ml.merge([first, second])
    assert all(needle in str(caught.value) for needle in (LAYER, "7", "8"))


def test_flux_parts_that_cannot_be_fused(tmp_path: Path, refused: Refused) -> None:
    """Parts of one fused layer with other widths, other rows or a kernel have no place in kohya's format."""
    block = "transformer.single_transformer_blocks.0.attn"
    conv = {f"{block}.to_k.lora_A.weight": numbers(2, 4, 1, 1), f"{block}.to_k.lora_B.weight": numbers(4, 2, 1, 1)}
    for other in (lora(f"{block}.to_k", 4, 5), lora(f"{block}.to_k", 5, 4), conv):
        bad = write(tmp_path / "bad.safetensors", lora(f"{block}.to_q", 4, 4), other)
        refused("convert", bad, "-o", tmp_path / "out.safetensors", "--format", "kohya", needles=["single_blocks.0"])


# Options of the command line: arguments after `merge good.safetensors`, and what the sentence says.

OPTIONS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "unknown method": (("--method", "tise"), ("'tise'", "svd, ties")),
    "unknown option": (("--method", "ties", "--desnity", "1"), ("'desnity'", "density=0.5", "majority_sign='total'")),
    "option of another method": (("--method", "svd", "--density", "0.5"), ("'density'", "space='delta'")),
    "option without a value": (("--method", "ties", "--lam"), ("--lam", "needs a value")),
    "unknown short option": (("-x", "3"), ("'-x'",)),
    "density 0": (("--method", "ties", "--density", "0"), ("density", "0 < density <= 1", "found 0")),
    "density 1.5": (("--method", "ties", "--density", "1.5"), ("density", "0 < density <= 1", "found 1.5")),
    "density -1": (("--method", "dare", "--density", "-1"), ("density", "0 < density <= 1", "found -1")),
    "density tiny": (("--method", "dare", "--density", "1e-320"), ("density",)),
    "density NaN": (("--method", "dare_ties", "--density", "nan"), ("density", "found nan")),
    "density a word": (("--method", "ties", "--density", "half"), ("--density", "number")),
    "lam infinite": (("--method", "ties", "--lam", "Infinity"), ("lam=inf", "finite number")),
    "lam a list": (("--method", "ties", "--lam", "[1]"), ("lam=[1]", "finite number")),
    "lam too large": (("--method", "ties", "--lam", "1e39"), ("float32",)),
    "method misspelt": (("--method", "tie"), ("'tie'", "did you mean 'ties'?")),
    "option misspelt": (("--method", "ties", "--densty", "0.5"), ("'densty'", "did you mean 'density'?")),
    "own option misspelt": (("--metod", "ties"), ("--metod", "did you mean --method?")),
    "no miniature adapter": (("miniature/sdxl/gost",), ("miniature/sdxl/gost", "known: ghost")),
    "unknown sign": (("--method", "ties", "--majority-sign", "some"), ("'some'", "'total', 'frequency'")),
    "unknown space": (("--space", "beta"), ("'beta'", "'delta', 'core'")),
    "no such space": (("--space", "factors"), ("factors", "method='linear'")),
    "rank 0": (("--rank", "0"), ("rank=0", "at least 1")),
    "rank -3": (("--rank", "-3"), ("rank=-3", "at least 1")),
    "rank 1.5": (("--rank", "1.5"), ("rank=1.5", "between 0 and 1")),
    "rank 1.0": (("--rank", "1.0"), ("rank=1.0", "between 0 and 1")),
    "rank foo": (("--rank", "foo"), ("rank='foo'", "mean=32")),
    "rank NaN": (("--rank", "nan"), ("rank='nan'",)),
    "rank mean=0": (("--rank", "mean=0"), ("mean", "at least 1")),
    "rank mean=x": (("--rank", "mean=x"), ("mean=x", "mean=32")),
    "cat with a rank": (("--method", "cat", "--rank", "8"), ("cat", "rank=8", "method='svd'")),
    "unknown device": (("--device", "toaster"), ("device", "toaster")),
    "seed no number": (("--seed", "x"), ("--seed",)),
    "unknown format": (("--format", "onnx"), ("'onnx'", "'diffusers', 'kohya', 'peft'")),
    "unknown dtype": (("--dtype", "float99"), ("'float99'", "'float16'")),
    "integer dtype": (("--dtype", "int8"), ("'int8'", "'float16'")),
    "no dtype": (("--dtype", "nn"), ("'nn'", "'float16'")),
    "no plug-in": (("--import", "nowhere.py"), ("--import nowhere.py",)),
    "no module": (("--import", "no_such_module"), ("no_such_module",)),
    "relative module": (("--import", ".module"), (".module",)),
}


@pytest.mark.parametrize("name", OPTIONS)
def test_option(name: str, tmp_path: Path, good: Path, refused: Refused) -> None:
    """An option that does not exist or is out of range: the sentence names it and what is expected."""
    arguments, needles = OPTIONS[name]
    refused("merge", good, "-o", tmp_path / "out.safetensors", *arguments, needles=needles)


WEIGHTS = {
    "NaN": ("nan", ("good", "nan", "finite")),
    "infinite": ("inf", ("good", "inf", "finite")),
    "zero": ("0", ("every weight is 0",)),
    "too large": ("1e39", ("1e+39", "float32")),
    "no number": ("0,7", ("0,7",)),
    "mapping no number": ("unet=x", ("unet=x",)),
    "mapping NaN": ("unet=nan", ("good", "'unet'", "nan")),
    "matches nothing": ("text_encoder=1.0", ("good", "'text_encoder'", "unet")),
    "pattern matches nothing": ("unet=1.0,*.up_blocks.*=0.5", ("good", "'*.up_blocks.*'", "unet")),
    "layers without a weight": ("*.to_q=1.0", ("good", OTHER, "'*': 1.0")),
}


@pytest.mark.parametrize("name", WEIGHTS)
def test_weight(name: str, tmp_path: Path, good: Path, refused: Refused) -> None:
    """A weight that is no finite number, or belongs to no layer: the adapter and the pattern are named."""
    weight, needles = WEIGHTS[name]
    refused("merge", f"{good}:{weight}", "-o", tmp_path / "out.safetensors", needles=needles)


@pytest.mark.parametrize(
    ("arguments", "needle"),
    [
        ([], "expected a command"),
        (["frobnicate"], "frobnicate"),
        (["merge"], "adapters"),
        (["merge", "-o", "out.safetensors"], "adapters"),
        (["merge", "a.safetensors"], "--output"),
        (["inspect"], "file"),
        (["inspect", "a.safetensors", "b.safetensors"], "b.safetensors"),
        (["convert", "a.safetensors", "-o", "out.safetensors"], "--format"),
        (["resize", "a.safetensors", "-o", "out.safetensors"], "--rank"),
        (["compare"], "adapters"),
    ],
)
def test_usage(arguments: list[str], needle: str, refused: Refused) -> None:
    """What is missing on the command line is named, in one line."""
    refused(*arguments, needles=[needle])


@pytest.mark.parametrize("rank", ["0", "-3", "1.5", "foo", "sum"])
def test_resize_rank(rank: str, tmp_path: Path, good: Path, refused: Refused) -> None:
    """The rank of `resize` is checked as that of `merge`."""
    refused("resize", good, "--rank", rank, "-o", tmp_path / "out.safetensors", needles=["rank=", rank, "expected"])


def test_rank_that_no_layer_can_hold(tmp_path: Path, good: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A rank above what a layer can hold is capped, and the report says so."""
    for i, command in enumerate(["merge", "resize"]):
        out = tmp_path / f"{i}.safetensors"
        assert cli.run([command, str(good), "-o", str(out), "--rank", "1000"]) == 0
        assert re.search(r"capped at 2\b.*asked for 1000", capsys.readouterr().out)
        assert set(ml.load(out).ranks.values()) == {2}
    report = ml.merge([good, good], method="dare", rank=1000, density=0.5).report
    assert all("capped at 8" in row.note for row in report.layers)


# The same from Python.


@pytest.mark.parametrize(
    ("weights", "needle"),
    [
        ([1.0], "1 entries for 2"),
        ([1.0, 1.0, 1.0], "3 entries for 2"),
        ([], "0 entries for 2"),
        ([1.0, math.nan], "finite"),
        ([1.0, 10**400], "finite"),
        ([0.0, 0.0], "every weight is 0"),
        ([1.0, {"text_encoder": 1.0}], "matches no layer"),
        ([1.0, {}], "no weight for 2 layers"),
        ([1.0, {"*.to_q": 1.0}], OTHER),
        ([1.0, {"*": math.inf}], "finite"),
    ],
)
def test_weights_in_python(weights: list[Any], needle: str, good: Path) -> None:
    """A list of the wrong length, a number that is none, a pattern that matches nothing."""
    with pytest.raises(ml.OptionError) as caught:
        ml.merge([good, good], weights)
    assert needle in str(caught.value)


@pytest.mark.parametrize(
    ("options", "needle"),
    [
        ({"method": "tise"}, "svd, ties"),
        ({"method": "ties", "desnity": 1}, "density=0.5"),
        ({"method": ml.Ties(), "desnity": 1}, "density=0.5"),
        ({"method": "ties", "density": True}, "0 < density <= 1"),
        ({"method": "ties", "density": "0.5"}, "0 < density <= 1"),
        ({"rank": 0}, "at least 1"),
        ({"rank": True}, "at least 1"),
        ({"rank": -0.5}, "between 0 and 1"),
        ({"rank": math.nan}, "between 0 and 1"),
        ({"rank": "all"}, "'max'"),
        ({"method": "cat", "rank": 4}, "method='svd'"),
        ({"device": "toaster"}, "toaster"),
    ],
)
def test_options_in_python(options: dict[str, Any], needle: str, good: Path) -> None:
    """What the command line refuses, `merge` refuses."""
    with pytest.raises(ml.OptionError) as caught:
        ml.merge([good, good], **options)
    assert needle in str(caught.value)


def test_no_adapters() -> None:
    """An empty list, an adapter without layers."""
    with pytest.raises(ml.OptionError, match="at least 1"):
        ml.merge([])
    with pytest.raises(ml.LayerError, match="no layer"):
        ml.merge([ml.Adapter({})])
    with pytest.raises(ml.OptionError, match="at least 2"):
        ml.compare([])


def test_changes_too_large_for_float32(tmp_path: Path, good: Path, refused: Refused) -> None:
    """Finite factors whose product is not: no method drops the layer in silence, or fails within its algebra."""
    big = write(tmp_path / "big.safetensors", {key: tensor * 1e30 for key, tensor in lora().items()})
    for method in ("svd", "ties", "dare", "dare_ties", "magnitude_prune"):
        refused("merge", big, good, "-o", tmp_path / "out.safetensors", "--method", method, needles=[LAYER, "float32"])


# Outputs.


@pytest.mark.parametrize("force", [(), ("--force",)])
@pytest.mark.parametrize("kind", ["same", "symlink", "hard link", "relative", "dots", "linked folder"])
def test_output_is_an_input(
    kind: str, force: tuple[str, ...], tmp_path: Path, good: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An input is never replaced, whatever it is called, even with --force."""
    out = tmp_path / "out.safetensors"
    if kind == "symlink":
        out.symlink_to(good)
    elif kind == "hard link":
        out.hardlink_to(good)
    elif kind == "linked folder":
        (tmp_path / "linked").symlink_to(tmp_path, target_is_directory=True)
        out = tmp_path / "linked" / good.name
    else:
        out = {"relative": Path(good.name), "dots": tmp_path / "." / ".." / tmp_path.name / good.name}.get(kind, good)
        monkeypatch.chdir(tmp_path)
    before = content(tmp_path)
    for command in (["merge"], ["convert", "--format", "kohya"], ["resize", "--rank", "1"]):
        refused(*command, good, "-o", out, *force, needles=[str(out), "input"])
    with pytest.raises(ml.OutputError, match="input"):
        ml.merge([good, good]).save(out)
    with pytest.raises(ml.OutputError, match="input"):
        (0.5 * ml.load(good)).select("unet").save(out, overwrite=True)
    assert content(tmp_path) == before


def test_output_folder_is_an_input(tmp_path: Path, refused: Refused) -> None:
    """A PEFT folder is never replaced by what was made from it, or from a folder within it."""
    both = write(tmp_path / "both.safetensors", lora(), lora(TEXT))
    peft = tmp_path / "peft"
    ml.load(both).save(peft, format="peft")
    assert sorted(path.name for path in peft.iterdir()) == ["text_encoder", "unet"]
    for source in (peft, peft / "unet", peft / "unet" / "adapter_model.safetensors"):
        refused("convert", source, "-o", peft, "--format", "peft", "--force", needles=[str(peft), "input"])


def test_output_exists(tmp_path: Path, good: Path, refused: Refused, capsys: pytest.CaptureFixture[str]) -> None:
    """An existing file is kept, which is said before any merging; with --force it is replaced."""
    out = tmp_path / "out.safetensors"
    out.write_text("precious")
    poison = lora()
    poison[A][0, 0] = math.nan
    bad = write(tmp_path / "bad.safetensors", poison)
    refused("merge", bad, "-o", out, needles=[str(out), "exists", "--force"])
    refused("convert", bad, "-o", out, "--format", "kohya", needles=[str(out), "exists", "--force"])
    refused("resize", bad, "-o", out, "--rank", "1", needles=[str(out), "exists", "--force"])
    refused("merge", bad, "-o", out, "--force", needles=["NaN"])
    assert out.read_text() == "precious"
    assert cli.run(["merge", str(good), "-o", str(out), "--force"]) == 0
    assert list(ml.load(out).layers) == [LAYER, OTHER]
    with pytest.raises(ml.OutputError, match="exists"):
        ml.load(good).save(out, overwrite=False)


@pytest.mark.parametrize("format", FORMATS)
def test_output_that_cannot_be(format: str, tmp_path: Path, good: Path, refused: Refused) -> None:
    """No such folder, a folder for a file, a file for a folder, a name that is too long: nothing is left behind."""
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "precious.txt").touch()
    (tmp_path / "file").touch()
    wrong = tmp_path / ("file" if format == "peft" else "folder")
    for out in (tmp_path / "no folder" / "out", tmp_path / "file" / "out", wrong, tmp_path / ("x" * 5000)):
        refused("merge", good, "-o", out, "--format", format, "--force", needles=[str(out)])
        with pytest.raises(ml.OutputError):
            ml.load(good).save(out, format=format)
    refused("merge", good, "-o", tmp_path / "folder", "--format", "peft", "--force", needles=["folder"])


def test_float16_overflow(tmp_path: Path, refused: Refused) -> None:
    """A value that float16 cannot hold: the layer, the value and the remedy are named; bfloat16 holds it."""
    tensors = lora()
    tensors[B][0, 0] = 1e6
    file = write(tmp_path / "large.safetensors", tensors)
    out = tmp_path / "out.safetensors"
    needles = [LAYER, "1e+06", "bfloat16"]
    refused("convert", file, "-o", out, "--format", "diffusers", "--dtype", "float16", needles=[str(file), *needles])
    refused("merge", file, "-o", out, "--method", "cat", "--dtype", "float16", needles=["large", *needles])
    with pytest.raises(ml.OutputError, match="bfloat16"):
        ml.load(file).state_dict(dtype=torch.float16)
    assert cli.run(["merge", str(file), "-o", str(out), "--dtype", "bfloat16"]) == 0


def test_formats_without_a_name_for_a_layer(tmp_path: Path, refused: Refused) -> None:
    """A layer or a tensor that a format has no place for is named, with a format or an option that helps."""
    text = write(tmp_path / "text.safetensors", lora("base_model.model.layers.0.q_proj"))
    for format in ("diffusers", "kohya"):
        needles = [str(text), "q_proj", "format='peft'"]
        refused("convert", text, "-o", tmp_path / OUTPUTS[format], "--format", format, needles=needles)
    extra = write(tmp_path / "extra.safetensors", lora(), {"emb_params": numbers(4)})
    for format in FORMATS:
        needles = [str(extra), "emb_params", "--drop-extras"]
        refused("convert", extra, "-o", tmp_path / OUTPUTS[format], "--format", format, needles=needles)
    assert cli.run(["convert", str(extra), "-o", str(tmp_path / "out"), "--format", "peft", "--drop-extras"]) == 0


# Real processes.


def run(*arguments: str | Path, **options: Any) -> subprocess.CompletedProcess[str]:
    """The installed command."""
    command = [*COMMAND, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, **options)


@pytest.fixture
def large(tmp_path: Path) -> Path:
    """A file of 64 KiB and more."""
    return write(tmp_path / "large.safetensors", lora(LAYER, 1024, 1024, 8))


def test_process_refuses(tmp_path: Path, good: Path) -> None:
    """The command itself: code 2, one line on standard error, nothing on standard output, nothing written."""
    bad = tmp_path / "bad.safetensors"
    bad.write_bytes(good.read_bytes()[:-1])
    before = content(tmp_path)
    done = run("merge", bad, good, "-o", tmp_path / "out.safetensors")
    assert (done.returncode, done.stdout) == (2, "")
    assert str(bad) in one_sentence(done.stderr)
    assert content(tmp_path) == before


@pytest.mark.parametrize("format", ["diffusers", "peft"])
def test_file_size_limit(format: str, tmp_path: Path, large: Path) -> None:
    """A write that fails midway, as on a full disk, leaves what was there."""
    resource = pytest.importorskip("resource")
    out = tmp_path / OUTPUTS[format]
    ml.load(lora()).save(out, format=format)
    before = content(tmp_path)
    done = run(
        *("convert", large, "-o", out, "--format", format, "--force"),
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000)),
    )
    assert done.returncode == 2
    assert "cannot be written" in one_sentence(done.stderr)
    assert content(tmp_path) == before


def in_own_mount(folder: Path, options: str, after: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run the command with a small file system of its own mounted at a folder, then list that folder.

    The mount lives in a namespace of its own, and ends with the process.
    """
    unshare = shutil.which("unshare")
    if unshare is None:
        pytest.skip("there is no unshare here")
    mount = f'mount -t tmpfs -o {options} none "$0" && cp "$1" "$0/out.safetensors"{after} || exit 77; shift'
    script = f'{mount}; "$@"; code=$?; ls -A "$0" >&2; cmp "$KEPT" "$0/out.safetensors" >&2; exit $code'
    small = write(folder.parent / "small.safetensors", lora())
    command = [unshare, "--mount", "--map-root-user", "sh", "-c", script, folder, small, *COMMAND, *arguments]
    done = subprocess.run(
        [str(part) for part in command],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**os.environ, "KEPT": str(small)},
    )
    if done.returncode in (1, 77):
        pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")
    return done


@pytest.mark.parametrize(
    ("options", "after", "reason"),
    [("size=32k", "", "No space left"), ("size=1m", ' && mount -o remount,ro "$0"', "Read-only")],
    ids=["full disk", "read-only folder"],
)
def test_file_system(options: str, after: str, reason: str, tmp_path: Path, large: Path) -> None:
    """A full disk and a read-only folder keep what they hold, and no temporary file."""
    folder = tmp_path / "mounted"
    folder.mkdir()
    out = folder / "out.safetensors"
    done = in_own_mount(folder, options, after, "merge", large, "-o", out, "--force")
    assert done.returncode == 2
    sentence, *listing = done.stderr.splitlines(keepends=True)
    assert reason in one_sentence(sentence)
    assert str(out) in sentence
    assert listing == ["out.safetensors\n"]


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")
def test_folder_without_permission(tmp_path: Path, good: Path, refused: Refused) -> None:
    """A folder that may not be written to."""
    folder = tmp_path / "closed"
    folder.mkdir(mode=0o500)
    refused("merge", good, "-o", folder / "out.safetensors", needles=["Permission denied"])


@pytest.mark.parametrize("buffered", [True, False])
def test_broken_pipe(buffered: bool, good: Path) -> None:
    """`mergelab methods | head -1`: no traceback where nobody reads on."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONUNBUFFERED"}
    if not buffered:
        environment["PYTHONUNBUFFERED"] = "1"
    read, write_end = os.pipe()
    os.close(read)
    try:
        done = subprocess.run(
            [*COMMAND, "methods"], stdout=write_end, stderr=subprocess.PIPE, text=True, timeout=120, env=environment
        )
    finally:
        os.close(write_end)
    assert (done.returncode, done.stderr) == (0, "")


def read_until(terminal: int, process: subprocess.Popen[bytes], pattern: str) -> str:
    """What a process writes to a terminal, until a pattern appears or it ends."""
    text, end = "", time.monotonic() + 100
    while time.monotonic() < end:
        ended = process.poll() is not None
        ready, _, _ = select.select([terminal], [], [], 0 if ended else 0.05)
        if ready:
            try:
                text += os.read(terminal, 65536).decode(errors="replace")
            except OSError:  # the other end is closed
                return text
        elif ended:
            return text
        if re.search(pattern, text):
            return text
    process.kill()
    raise AssertionError(f"no {pattern!r} in 100 s: {text!r}")


def test_progress_and_interruption(tmp_path: Path) -> None:
    """On a terminal there is a progress bar; Ctrl-C ends with code 130, no traceback and no file."""
    fcntl, pty, termios = (pytest.importorskip(name) for name in ("fcntl", "pty", "termios"))
    layers = [f"unet.down_blocks.0.attentions.{i}.proj_in" for i in range(80)]
    files = [
        write(tmp_path / f"{name}.safetensors", *(lora(layer, 1024, 1024, rank) for layer in layers))
        for name, rank in (("a", 4), ("b", 5))
    ]
    before = content(tmp_path)
    terminal, other_end = pty.openpty()
    fcntl.ioctl(other_end, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))
    arguments = [*map(str, files), "-o", str(tmp_path / "out.safetensors"), "--method", "ties", "--rank", "64"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        [*COMMAND, "merge", *arguments],
        stdout=subprocess.PIPE,
        stderr=other_end,
        env=environment,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a suite in the background ignores it
    ) as process:
        os.close(other_end)
        seen = read_until(terminal, process, r"[1-9]\d*/80")
        assert re.search(r"merging \(ties, delta\)", seen)
        assert process.poll() is None, "the merge was over before it could be interrupted"
        process.send_signal(signal.SIGINT)
        seen += read_until(terminal, process, r"\Z\A")
        stdout = process.communicate(timeout=100)[0]
    os.close(terminal)
    assert process.returncode == 130
    assert "Traceback" not in seen
    assert stdout == b""
    assert content(tmp_path) == before
    assert "interrupted" in seen.splitlines()[-1]


def test_no_progress_in_a_pipe(tmp_path: Path, good: Path) -> None:
    """In a pipe nothing is written to standard error, and the report to standard output."""
    done = run("merge", good, good, "-o", tmp_path / "out.safetensors")
    assert (done.returncode, done.stderr) == (0, "")
    assert "retained energy" in done.stdout


PLAIN = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON") or key == "PYTHONPATH"}


@pytest.mark.parametrize("unbuffered", [{}, {"PYTHONUNBUFFERED": "1"}], ids=["buffered", "unbuffered"])
@pytest.mark.parametrize("arguments", [["methods"], ["--help"], ["merge", "--help"], ["inspect", "FILE", "--json"]])
def test_standard_output_that_cannot_be_written(arguments: list[str], unbuffered: dict[str, str], good: Path) -> None:
    """A full disk behind standard output: exit code 2 and one sentence; so it is whatever the interpreter buffers."""
    if not Path("/dev/full").exists():
        pytest.skip("there is no /dev/full here")
    arguments = [str(good) if argument == "FILE" else argument for argument in arguments]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [*COMMAND, *arguments], stdout=full, stderr=subprocess.PIPE, text=True, timeout=120, env=PLAIN | unbuffered
        )
    assert done.returncode == 2
    assert "No space left" in one_sentence(done.stderr)


def test_a_merge_whose_report_cannot_be_shown(tmp_path: Path, good: Path) -> None:
    """The file is whole, and the sentence says so."""
    if not Path("/dev/full").exists():
        pytest.skip("there is no /dev/full here")
    out = tmp_path / "out.safetensors"
    command = [*COMMAND, "merge", str(good), str(good), "-o", str(out)]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, timeout=120, env=PLAIN)
    assert done.returncode == 2
    assert "standard output cannot be written: No space left on device" in one_sentence(done.stderr)
    assert "files it writes are written" in done.stderr
    assert list(ml.load(out).layers) == [LAYER, OTHER]


@pytest.mark.parametrize(
    ("redirect", "code"),
    [
        (">&-", 0),
        (">&- 2>&- <&-", 0),
        ("2>&-", 0),
        ("2>/dev/full", 0),
        ("bad 2>&-", 2),
        ("bad 2>/dev/full", 2),
        ("bad >/dev/full 2>/dev/full", 2),
    ],
)
def test_streams_that_are_closed_or_full(redirect: str, code: int, tmp_path: Path, good: Path) -> None:
    """Who closes a stream wants to hear nothing: the merge is done, and no file takes the stream's place."""
    if "/dev/full" in redirect and not Path("/dev/full").exists():
        pytest.skip("there is no /dev/full here")
    out = tmp_path / "out.safetensors"
    command = [*COMMAND, "merge", str(good), str(good), "-o", str(out)]
    done = subprocess.run(["sh", "-c", f'"$@" {redirect}', "sh", *command], capture_output=True, timeout=120, env=PLAIN)
    assert done.returncode == code
    assert done.stderr == b""
    assert out.exists() == (code == 0)
    if out.exists():
        assert list(ml.load(out).layers) == [LAYER, OTHER]


CONSOLES = [
    {"PYTHONIOENCODING": "cp1252"},
    {"PYTHONIOENCODING": "ascii:strict"},
    {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "LC_ALL": "C"},
    {"LC_ALL": "C"},
    {"PYTHONUTF8": "1"},
]


@pytest.mark.parametrize("console", CONSOLES, ids=lambda console: ",".join(f"{k}={v}" for k, v in console.items()))
def test_consoles_of_any_encoding(console: dict[str, str], tmp_path: Path) -> None:
    """What a console cannot show is replaced there, in results, in help and in errors; the files are written."""
    environment = PLAIN | {"LC_ALL": "C.UTF-8"} | console
    style = write(
        tmp_path / "\u30b9\u30bf\u30a4\u30eb \u2013 \u00fc.safetensors", lora(), metadata={"note": "\u65e5\u672c"}
    )
    out = tmp_path / "\u51fa\u529b.safetensors"

    def said(*arguments: str | Path, code: int = 0) -> tuple[bytes, bytes]:
        command = [os.fsencode(part) for part in (*COMMAND, *arguments)]
        done = subprocess.run(command, capture_output=True, timeout=120, env=environment)
        assert done.returncode == code, done.stderr
        return done.stdout, done.stderr

    assert said("merge", style, style, "-o", out)[1] == b""
    assert ml.load(out).metadata["mergelab"]
    assert b"note: " in said("inspect", style)[0]
    assert json.loads(said("inspect", style, "--json")[0])["metadata"]["note"] == "\u65e5\u672c"
    assert b"Usage" in said("merge", "--help")[0]
    missing = tmp_path / "\u65e5\u672c.safetensors"
    _, sentence = said("inspect", missing, code=2)
    one_sentence(sentence.decode(errors="replace"))


def test_messages_are_one_line(tmp_path: Path, refused: Refused) -> None:
    """A line break in a file's name or in a key does not break the sentence into lines."""
    bad = tmp_path / "two\nlines.safetensors"
    write(bad, {"a\nkey": numbers(2)})
    assert "a\\nkey" in refused("inspect", bad)
