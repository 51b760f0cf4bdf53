"""Shared fixtures: the shared folder of facts (skipped where absent) and synthetic adapters."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

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
