"""How long a whole `mergelab tune` takes, from start to report, on one pair of a miniature pipeline.

`python -m benchmarks.tuning [--pipeline sdxl] [--search blocks]` prints seconds, those of the processors, and trials.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml

from experiments.tuning.pairs import DESIGN, config, pairs
from mergelab.miniature import PIPELINES

SPACE = {
    "weights": [0.5, 1.3],
    "method": ["svd", "ties", "dare", "magnitude_prune"],
    "density": {"low": 0.2, "high": 0.9},
    "rank": [8, 16, "sum"],
}
"""What Optuna may choose: a weight for each adapter, a method, its density, the rank."""


def searching(pipeline: str, search: str) -> dict[str, Any]:
    """The first pair that the search was written with, at the library's budget or with 60 trials of Optuna."""
    subject, style = pairs(pipeline, DESIGN)[0]
    given = config(pipeline, subject, style, "judge", "usual")
    return given if search == "blocks" else given | {"search": "optuna", "space": SPACE, "trials": 60}


def main() -> None:
    """Prints a line of a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pipeline", choices=PIPELINES, default="sdxl")
    parser.add_argument("--search", choices=("blocks", "optuna"), default="blocks")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        path, out = Path(name) / "tune.yaml", Path(name) / "tuned"
        path.write_text(yaml.safe_dump(searching(given.pipeline, given.search)))
        start = time.perf_counter()
        subprocess.run([sys.executable, "-m", "mergelab", "tune", str(path), "-o", str(out)], check=True)
        seconds, of_children = time.perf_counter() - start, os.times()
        trials = json.loads((out / "trials.json").read_text(encoding="utf-8"))["trials"]
        images = sum(file.suffix == ".png" for file in out.rglob("*"))
    states = [trial["state"] for trial in trials]
    counted = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
    used = of_children.children_user + of_children.children_system
    print("| pipeline, search | seconds | of the processors | images | trials |\n|---|---|---|---|---|")
    print(f"| {given.pipeline}, {given.search} | {seconds:.0f} | {used:.0f} | {images} | {counted} |")


if __name__ == "__main__":
    main()
