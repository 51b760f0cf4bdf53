"""The notebooks run from top to bottom, and say what to change for the real models."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOKS = sorted((Path(__file__).parent.parent / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_runs(path: Path, tmp_path: Path) -> None:
    """In a folder of its own; no cell fails; the pictures are there."""
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert "FLUX.1-dev" in "".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")


def test_there_are_four() -> None:
    """Merge and look; compare methods; rank and truncation; in a live pipeline."""
    assert len(NOTEBOOKS) == 4
