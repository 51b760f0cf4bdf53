"""Shared fixtures: the shared folder of facts (skipped where absent), a good file, command lines that are refused.

What needs mergelab is imported within the fixtures: pytest reads this file first, and checks the shapes of arrays only
in what is imported later.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.refusing import Refused

ROOT = Path(__file__).parent.parent
SHARED = Path(os.environ.get("MERGELAB_SHARED", ROOT.parent / "shared")) / "data"


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real adapters, key lists and golden cases; a test that asks for it is skipped without it."""
    if not SHARED.is_dir():
        pytest.skip("the shared data folder is not here")
    return SHARED


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """The suite runs in one process per core; more threads would only be in each other's way."""
    import torch

    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"  # of the commands and notebooks that tests start


@pytest.fixture(autouse=True)
def no_debugging(monkeypatch: pytest.MonkeyPatch) -> None:
    """Errors are sentences, whatever the environment of the suite."""
    monkeypatch.delenv("MERGELAB_DEBUG", raising=False)


@pytest.fixture(autouse=True)
def same_compiler() -> Iterator[None]:
    """PEFT's BOFT leaves CC and CXX as "gcc" where it cannot build its kernel; what torch compiles later needs g++."""
    before = {name: os.environ.get(name) for name in ("CC", "CXX")}
    yield
    for name, value in before.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


@pytest.fixture(scope="session")
def pipeline() -> Any:
    """One loaded pipeline for all tests that draw with it."""
    from mergelab import miniature

    pipe = miniature.pipeline("sdxl")
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture
def good(tmp_path: Path) -> Path:
    """A good file of two layers, in the folder whose content is watched."""
    from tests.files import OTHER, lora, write

    return write(tmp_path / "good.safetensors", lora(), lora(OTHER))


@pytest.fixture
def refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Refused:
    """Runs command lines that have to be refused, and gives back their sentence."""
    from tests.refusing import Refused

    return Refused(tmp_path, capsys)
