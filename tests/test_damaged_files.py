"""Files that are damaged, or something else: refused by every command, and named."""

from __future__ import annotations

import json
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import mergelab as ml
from mergelab import cli
from tests.files import LAYER, A, lora, write
from tests.refusing import Refused, commands


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


def test_archives(tmp_path: Path) -> None:
    """One that torch wrote is told from any other."""
    for name, sentence in (
        ("torch.save", "is a PyTorch pickle.*allow_pickle=True"),
        ("zip", "is a ZIP archive.*unpack"),
    ):
        DAMAGED[name](tmp_path / "a.safetensors")
        with pytest.raises(ml.FormatError, match=sentence):
            ml.load(tmp_path / "a.safetensors")


@pytest.mark.parametrize("length", [0x0280, 0x0380, 0x0480, 0x0580])
def test_length_that_looks_like_a_pickle(length: int, tmp_path: Path) -> None:
    """A header of 640 bytes is no pickle, although its length begins with the bytes of one."""
    path = write(tmp_path / "a.safetensors", lora())
    raw = path.read_bytes()
    (found,) = struct.unpack("<Q", raw[:8])
    path.write_bytes(struct.pack("<Q", length) + raw[8 : 8 + found].ljust(length) + raw[8 + found :])
    assert list(ml.load(path).layers) == [LAYER]


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
