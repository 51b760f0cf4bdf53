"""What is written does not depend on the locale, nor on names that no locale can read."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import mergelab as ml
from tests.files import lora, write
from tests.refusing import one_sentence

LOCALES = ({"LC_ALL": "C.UTF-8"}, {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"})
MERGE = "from mergelab.cli import main; main()"


def merged(source: Path, out: Path) -> Iterator[subprocess.CompletedProcess[bytes]]:
    """The same command under each locale."""
    plain = {key: value for key, value in os.environ.items() if not key.startswith(("LC_", "LANG"))}
    command = [sys.executable, "-c", MERGE, "merge", source, source, "--force", "-o", out]
    for locale in LOCALES:
        yield subprocess.run(command, env=plain | locale, capture_output=True, check=False, timeout=120)


def named(folder: Path, name: bytes) -> Path:
    """A good file of this name."""
    try:
        return write(folder / "plain.safetensors", lora()).rename(folder / os.fsdecode(name))
    except OSError:
        pytest.skip("this file system knows no such name")


def test_the_header_of_a_merge(tmp_path: Path) -> None:
    """The same bytes under any locale, with the name as UTF-8 reads it."""
    source, out, files = named(tmp_path, "st\u00fcl.safetensors".encode()), tmp_path / "out.safetensors", set()
    for done in merged(source, out):
        assert done.returncode == 0, done.stderr
        files.add(out.read_bytes())
    assert len(files) == 1
    metadata = ml.load(out).metadata
    assert json.loads(metadata["mergelab"])["inputs"][0]["name"] == "st\u00fcl"
    assert metadata["modelspec.merged_from"] == "st\u00fcl, st\u00fcl"


def test_a_name_that_is_no_utf8(tmp_path: Path) -> None:
    """One sentence, under any locale."""
    for done in merged(named(tmp_path, b"st\xfcl.safetensors"), tmp_path / "out.safetensors"):
        assert done.returncode == 2 and "its name is no UTF-8; rename it" in one_sentence(done.stderr.decode())


def test_half_a_character_in_a_header(tmp_path: Path) -> None:
    """No crash, and a mark where it was."""
    adapter = ml.Adapter(ml.load(lora()).layers, metadata={"note": "a\ud800b"}, source="x\udcff")
    assert ml.load(adapter.save(tmp_path / "x.safetensors")).metadata["note"] == "a?b"
    assert ml.load(ml.merge([adapter]).save(tmp_path / "y.safetensors")).metadata["modelspec.title"] == "x\ufffd"
