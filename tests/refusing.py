"""Command lines that have to be refused: one clear sentence, exit code 2, and nothing left behind."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from mergelab import cli
from tests.files import content

_SCRIPT = shutil.which("mergelab", path=str(Path(sys.executable).parent))
COMMAND = [_SCRIPT] if _SCRIPT else [sys.executable, "-c", "from mergelab.cli import main; main()"]


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


def run(*arguments: str | Path, **options: Any) -> subprocess.CompletedProcess[str]:
    """The installed command."""
    command = [*COMMAND, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, **options)
