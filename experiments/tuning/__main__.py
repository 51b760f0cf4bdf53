"""Runs the searches of a budget, `python -m experiments.tuning [BUDGET] [FOLDER]`: "usual" or "small".

One line is added to `BUDGET.jsonl` in the folder for each search that is done; a killed run goes on where it was, and
what it drew is not drawn again. The pipelines take turns, so that partial results are of both; the searches with the
judge come before those with CLIP.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from experiments.tuning.pairs import BUDGETS, SCORES, pairs
from experiments.tuning.searching import measured
from mergelab.miniature import PIPELINES

RUNS = Path(os.environ.get("MERGELAB_RUNS", "runs")) / "tuning"


def run(budget: str, folder: Path) -> None:
    """All searches that are not there yet."""
    folder.mkdir(parents=True, exist_ok=True)
    results = folder / f"{budget}.jsonl"
    lines = results.read_text(encoding="utf-8").splitlines() if results.exists() else []
    rows = map(json.loads, filter(None, lines))
    done = {(row["score"], row["pipeline"], row["subject"], row["style"]) for row in rows}
    turns = [(pipeline, *pair) for several in zip(*(pairs(name, BUDGETS[budget].offsets) for name in PIPELINES))
             for pipeline, pair in zip(PIPELINES, several)]  # fmt: skip
    for score in SCORES:
        for pipeline, subject, style in turns:
            if (score, pipeline, subject.name, style.name) not in done:
                of_pair = folder / budget / pipeline / f"{subject.name}-{style.name}"
                of_pair.mkdir(parents=True, exist_ok=True)
                row = measured(pipeline, subject, style, score, budget, of_pair)
                with results.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(row) + "\n")
                print(f"{score} {pipeline} {subject.name} {style.name}: {row['seconds']:.0f} s", flush=True)


if __name__ == "__main__":
    run(sys.argv[1] if len(sys.argv) > 1 else "usual", Path(sys.argv[2]) if len(sys.argv) > 2 else RUNS)
