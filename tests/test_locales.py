"""What is written does not depend on the locale, nor on names that no locale can read."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import mergelab as ml
from tests.files import lora, write

LOCALES = {
    "UTF-8": {"LC_ALL": "C.UTF-8"},
    "ASCII": {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
}
MERGE = "from mergelab.cli import main; main()"


@pytest.mark.parametrize("name", [b"st\xc3\xbcl.safetensors", b"st\xfcl.safetensors"], ids=["UTF-8", "Latin-1"])
def test_the_header_of_a_merge(name: bytes, tmp_path: Path) -> None:
    """The same bytes under any locale, with the name as UTF-8 reads it."""
    source = tmp_path / os.fsdecode(name)
    try:
        write(tmp_path / "plain.safetensors", lora()).rename(source)
    except OSError:
        pytest.skip("this file system knows no such name")
    plain = {key: value for key, value in os.environ.items() if not key.startswith(("LC_", "LANG"))}
    files = []
    for label, locale in LOCALES.items():
        out = tmp_path / f"{label}.safetensors"
        command = [sys.executable, "-c", MERGE, "merge", source, source, "-o", out]
        done = subprocess.run(command, env=plain | locale, capture_output=True, check=False, timeout=120)
        assert done.returncode == 0, done.stderr
        files.append(out.read_bytes())
    assert files[0] == files[1]
    expected = name.decode("utf-8", "replace").removesuffix(".safetensors")
    metadata = ml.load(tmp_path / "UTF-8.safetensors").metadata
    assert json.loads(metadata["mergelab"])["inputs"][0]["name"] == expected
    assert metadata["modelspec.merged_from"].startswith(expected)


def test_half_a_character_in_a_header(tmp_path: Path) -> None:
    """No crash, and a mark where it was."""
    adapter = ml.Adapter(ml.load(lora()).layers, metadata={"note": "a\ud800b"}, source="x\udcff")
    assert ml.load(adapter.save(tmp_path / "x.safetensors")).metadata["note"] == "a?b"
    assert ml.load(ml.merge([adapter]).save(tmp_path / "y.safetensors")).metadata["modelspec.title"] == "x\ufffd"
