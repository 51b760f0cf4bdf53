"""Runs the notebooks and writes them back with what they show: `python -m experiments.notebooks [NOTEBOOK ...]`.

All of `notebooks/` unless some are named; a notebook that fails stays as it was. What would say more of the machine or
the moment than of mergelab is not kept (times, versions, what libraries write to stderr): a second run changes nothing.
"""

from __future__ import annotations

import argparse
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory

import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode

NOTEBOOKS = sorted((Path(__file__).parent.parent / "notebooks").glob("*.ipynb"))
TIMEOUT = 600
"""Seconds that a cell may take."""


def executed(notebook: NotebookNode, folder: Path) -> NotebookNode:
    """The notebook with what its cells print and draw, and the digest of the sources that have done so.

    Args:
        notebook: as it was read; left as it is.
        folder: where it runs and writes its files.

    Raises:
        CellExecutionError: a cell failed.
    """
    made = nbformat.from_dict(notebook)
    resources = {"metadata": {"path": str(folder)}}
    NotebookClient(made, timeout=TIMEOUT, coalesce_streams=True, record_timing=False, resources=resources).execute()
    for cell in code_cells(made):
        cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
    made.metadata = nbformat.from_dict(
        {
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"name": "python"},
            "mergelab": {"executed": digest(made)},
        }
    )
    return made


def code_cells(notebook: NotebookNode) -> list[NotebookNode]:
    """The cells that can run."""
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def digest(notebook: NotebookNode) -> str:
    """Of the sources of the code cells: tells outputs of other sources from these sources' own."""
    return sha256("\0".join(cell.source for cell in code_cells(notebook)).encode()).hexdigest()


def main() -> None:
    """Runs the named notebooks, each in an empty folder of its own."""
    parser = argparse.ArgumentParser(prog="python -m experiments.notebooks", description=__doc__)
    parser.add_argument("notebooks", nargs="*", type=Path, default=NOTEBOOKS, help="all of notebooks/ if left out")
    for path in parser.parse_args().notebooks:
        print(path.name)
        with TemporaryDirectory() as folder:
            made = executed(nbformat.read(path, as_version=4), Path(folder))
        nbformat.write(made, path)


if __name__ == "__main__":
    main()
