"""What `executor: ray` costs: one run with two workers against two processes that share the same images by hand.

`python -m benchmarks.executors [--images 200]` prints seconds from start to end of each, on this machine, in turn.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml

PROMPTS = ["a sks in szn style", "a sks on a white background", "a red square in szn style", "a blue circle"]
VARIANTS = 5
"""The base model, each adapter alone, both, one merge."""


def config(seeds: list[int], executor: Any) -> dict[str, Any]:
    """So many seeds of four prompts and five variants, on the miniature SDXL."""
    return {
        "pipeline": "miniature/sdxl",
        "loras": ["miniature/sdxl/ghost", "miniature/sdxl/day"],
        "merges": [{"method": "svd", "rank": 8}],
        "prompts": PROMPTS,
        "seeds": seeds,
        "metrics": ["judge", "clip_text", "lpips"],
        "executor": executor,
    }


def started(folder: Path, name: str, content: dict[str, Any]) -> subprocess.Popen[bytes]:
    """One run of the command line."""
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(content))
    command = [sys.executable, "-m", "mergelab", "evaluate", str(path), "-o", str(folder / name)]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def timed(folder: Path, runs: dict[str, dict[str, Any]]) -> tuple[float, list[dict[str, float]]]:
    """Seconds until the last of several runs is done, and what each says of them."""
    start = time.perf_counter()
    processes = [started(folder, name, content) for name, content in runs.items()]
    codes = [process.wait() for process in processes]
    seconds = time.perf_counter() - start
    if any(codes):
        raise SystemExit(f"{list(runs)}: exit codes {codes}")
    return seconds, [json.loads((folder / name / "summary.json").read_text())["seconds"] for name in runs]


def main() -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--address", default="", help="of a cluster that is there; default: each run starts its own")
    given = parser.parse_args()
    seeds = list(range(given.images // (len(PROMPTS) * VARIANTS)))
    ray = {"name": "ray", "workers": 2} | ({"address": given.address} if given.address else {})
    half = len(seeds) // 2
    print("| what | seconds | of them before the first merge | drawing and scoring |\n|---|---|---|---|")
    for repeat in range(given.repeats):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            cases = {
                "two local processes": {"a": config(seeds[:half], "local"), "b": config(seeds[half:], "local")},
                "executor: ray, two workers": {"ray": config(seeds, ray)},
            }
            for label, runs in cases.items():
                seconds, parts = timed(folder, runs)
                loading = max(part["loading"] for part in parts)
                work = max(part["pipeline"] + part["adapters"] + part["metrics"] for part in parts)
                print(f"| {label}, run {repeat + 1} | {seconds:.1f} | {loading:.1f} | {work:.1f} |", flush=True)


if __name__ == "__main__":
    main()
