"""The notebooks run from top to bottom, and what is committed is what they show."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient.exceptions import CellExecutionError
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_notebook, new_output

from experiments.notebooks import NOTEBOOKS, code_cells, executed, main

_PATH = r"(?<![\w.:/-])/(tmp|home|root|work|Users|usr|opt|var|mnt)\b|[A-Z]:\\"
_OF_A_MACHINE = re.compile(rf"{_PATH}|\bat 0x[0-9a-f]+|\d(it/s|s/it)")
each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def kinds(notebook: NotebookNode) -> list[tuple[str, int, list[tuple[str, list[str]]]]]:
    """Of each code cell its id, its place in the run, and the kinds of what it shows."""
    cells = code_cells(notebook)
    shown = [[(output.output_type, sorted(output.get("data", ()))) for output in cell.outputs] for cell in cells]
    return [(cell.id, cell.execution_count, outputs) for cell, outputs in zip(cells, shown)]


def written(notebook: NotebookNode) -> str:
    """All that the cells print: their outputs but for the pictures."""
    outputs = [output for cell in code_cells(notebook) for output in cell.outputs]
    data = [text for output in outputs for kind, text in output.get("data", {}).items() if kind != "image/png"]
    return "\n".join([*data, *(output.get("text", "") for output in outputs)])


@each_notebook
def test_it_runs_and_shows_what_is_committed(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a folder of its own; no cell fails; the outputs beside these sources are theirs, cell by cell."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "compiled"))  # not what another environment has left
    committed = nbformat.read(path, as_version=4)
    made = executed(committed, tmp_path)
    assert made.metadata == committed.metadata, f"python -m experiments.notebooks notebooks/{path.name}"
    assert kinds(made) == kinds(committed)


@each_notebook
def test_what_is_committed_can_be_read_anywhere(path: Path) -> None:
    """Run once in order, without an error; pictures are there; nothing of the machine; as the command writes it."""
    committed = nbformat.read(path, as_version=4)
    assert [place for _, place, _ in kinds(committed)] == [*range(1, len(code_cells(committed)) + 1)]
    shown = [output for cell in code_cells(committed) for output in cell.outputs]
    assert any("image/png" in output.get("data", {}) for output in shown)
    assert not [output for output in shown if output.output_type == "error" or output.get("name") == "stderr"]
    assert not [match[0] for match in _OF_A_MACHINE.finditer(written(committed))]
    assert all(not cell.metadata for cell in committed.cells)
    assert path.read_text(encoding="utf-8") == nbformat.writes(committed) + "\n"
    assert "FLUX.1-dev" in "".join(cell.source for cell in committed.cells if cell.cell_type == "markdown")


@pytest.mark.parametrize(
    "text", ["a\n/tmp/b", "in /root", "'/home/x'", "C:\\x", "<Legend at 0x7f1c>", "3 [00:01, 9.5it/s]"]
)
def test_it_would_be_seen(text: str) -> None:
    """What the test above looks for: absolute paths, addresses in memory, progress bars."""
    cell = new_code_cell("x", outputs=[new_output("stream", text=text)])
    assert _OF_A_MACHINE.search(written(new_notebook(cells=[cell])))


def test_there_are_four_and_they_are_small() -> None:
    """Merge and look; compare methods; rank and truncation; in a live pipeline."""
    assert len(NOTEBOOKS) == 4
    assert sum(path.stat().st_size for path in NOTEBOOKS) < 1_500_000


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It writes what `executed` gives, the same a second time; a notebook that fails stays as it was."""
    path, failing = tmp_path / "small.ipynb", tmp_path / "failing.ipynb"
    cell = new_code_cell("import sys\nprint(1)\nprint('chatter', file=sys.stderr)\nprint(2)\n3", id="only")
    nbformat.write(new_notebook(cells=[cell]), path)
    nbformat.write(new_notebook(cells=[new_code_cell("1 / 0", id="only")]), failing)
    before = failing.read_text()

    monkeypatch.setattr(sys, "argv", ["notebooks", str(path)])
    main()
    first = path.read_text()
    (made,) = code_cells(nbformat.read(path, as_version=4))
    assert made.outputs[0] == {"output_type": "stream", "name": "stdout", "text": "1\n2\n"}
    assert (made.outputs[1].data, len(made.outputs)) == ({"text/plain": "3"}, 2)

    monkeypatch.setattr(sys, "argv", ["notebooks", str(path), str(failing)])
    with pytest.raises(CellExecutionError, match="ZeroDivisionError"):
        main()
    assert (path.read_text(), failing.read_text()) == (first, before)
