"""Runs the pairs, `python -m experiments.tuning [FOLDER]`, or writes the tables, `python -m experiments.tuning.tables`.

One line is added to `results.jsonl` in the folder for each pair that is done; a killed run goes on where it was. The
pipelines take turns, so that partial results are of both.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from experiments.tuning.pairs import DESIGN, REPORTED, pairs
from experiments.tuning.searching import measured
from mergelab.miniature import PIPELINES

RUNS = Path(os.environ.get("MERGELAB_RUNS", "runs")) / "tuning"
RESULTS = "results.jsonl"


def run(folder: Path, offsets: tuple[int, ...]) -> None:
    """All pairs that are not there yet."""
    folder.mkdir(parents=True, exist_ok=True)
    results = folder / RESULTS
    lines = results.read_text(encoding="utf-8").splitlines() if results.exists() else []
    done = {(row["pipeline"], row["subject"], row["style"]) for row in map(json.loads, filter(None, lines))}
    turns = [(pipeline, *pair) for several in zip(*(pairs(name, offsets) for name in PIPELINES))
             for pipeline, pair in zip(PIPELINES, several)]  # fmt: skip
    for pipeline, subject, style in turns:
        if (pipeline, subject.name, style.name) not in done:
            row = measured(pipeline, subject, style, folder / pipeline / f"{subject.name}-{style.name}")
            with results.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
            print(f"{pipeline} {subject.name} {style.name}: {row['seconds']:.0f} s", flush=True)


if __name__ == "__main__":
    design = "--design" in sys.argv
    given = [Path(argument) for argument in sys.argv[1:] if not argument.startswith("--")]
    run(given[0] if given else RUNS / ("design" if design else "reported"), DESIGN if design else REPORTED)
