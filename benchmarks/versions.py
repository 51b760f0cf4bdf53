"""This checkout against another, line by line, on one machine: `python -m benchmarks.versions OTHER_CHECKOUT`.

Every line of the table is run in turn with the code of each, in a process of its own, on the same files; the shortest
run of each counts. Prints a table in Markdown.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent.parent
# Whole models where that takes seconds, a sample of the layers where it takes minutes.
LINES = (
    "--arch flux --method svd",
    "--arch flux --method linear",
    "--arch flux --method cat",
    "--arch flux --method ties --layers 40",
    "--arch flux --method dare --layers 40",
    "--arch flux --method magnitude_prune --layers 40",
    "--arch flux --method ties --space core",
    "--arch flux --method dare --space core",
    "--arch sdxl --method svd",
    "--arch sdxl --method svd --adapters 8",
    "--arch sdxl --method ties --layers 120",
    "--arch sdxl --method ties --layers 120 --adapters 8",
    "--arch sdxl --method ties --space core",
    "--arch sd15 --method svd",
    "--arch sd15 --method ties",
)


def measured(checkout: Path, line: str, folder: Path, more: str) -> dict[str, Any]:
    """One line with the code of a checkout."""
    words = [*line.split(), "--no-peft", "--checked", "0", "--folder", str(folder), *more.split()]
    command = [sys.executable, "-m", "benchmarks.full_size", *words]
    environment = {**os.environ, "PYTHONPATH": str(checkout)}
    done = subprocess.run(command, cwd=checkout, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout)


def row(line: str, other: list[dict[str, Any]], here: list[dict[str, Any]]) -> str:
    """One line of the table."""
    cells = [f"`{line}`"]
    best = [
        {key: min(run[key] for run in runs) for key in ("wall_seconds", "processor_seconds")} for runs in (other, here)
    ]
    for key in ("wall_seconds", "processor_seconds"):
        cells += [f"{best[0][key]:.2f}", f"{best[1][key]:.2f}"]
    copies = [min(run["memory"]["dense_copies_beside_the_output"] for run in runs) for runs in (other, here)]
    floor = min(run["floor"]["seconds"] for run in here if "floor" in run)
    cells += [f"{copies[0]:.1f}", f"{copies[1]:.1f}", f"{floor:.2f}", f"{best[1]['wall_seconds'] / floor:.1f}"]
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser("python -m benchmarks.versions", description=__doc__)
    parser.add_argument("other", type=Path, help="a checkout of another version")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--folder", type=Path, help="where to keep the synthetic adapters")
    parser.add_argument("--only", default="", help="lines that have this in them")
    args = parser.parse_args()
    heads = [
        "command",
        "s, other",
        "s, here",
        "processor s, other",
        "here",
        "copies, other",
        "here",
        "floor, s",
        "ratio",
    ]
    print("| " + " | ".join(heads) + " |\n|" + " --- |" * len(heads), flush=True)
    with tempfile.TemporaryDirectory() as temporary:
        folder = (args.folder or Path(temporary)).resolve()
        for line in (line for line in LINES if args.only in line):
            other, here = [], []
            for number in range(args.rounds):
                other.append(measured(args.other.resolve(), line, folder, "--no-floor"))
                here.append(measured(HERE, line, folder, "--no-floor" if number else ""))
            print(row(line, other, here), flush=True)


if __name__ == "__main__":
    main()
