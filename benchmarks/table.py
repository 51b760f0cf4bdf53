"""Every line of the table, measured one after the other: `python -m benchmarks.table`.

A line is one run of `benchmarks.full_size` in a process of its own; its JSON is kept in runs/benchmarks, and a line
that is there is not run again. Then the table between the markers of README.md is written, and the plots are drawn.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
KEPT = HERE.parent / "runs" / "benchmarks"
BEGIN, END = "<!-- table: python -m benchmarks.table -->", "<!-- end of the table -->"

COUNTS, RANKS, LAYERS = (1, 2, 4, 8), (8, 16, 32, 64), (16, 32, 64, 128)
GOALS = (
    "--arch flux --method svd --repeats 3",
    "--arch flux --method ties",
    "--arch flux --method dare --layers 40",
    "--arch flux --method magnitude_prune --layers 40",
    "--arch flux --method ties --space core",
    "--arch flux --method linear --repeats 3",
    "--arch flux --method cat --repeats 3",
    "--arch flux --method dare --space core",
    "--arch sdxl --method svd --repeats 3",
    "--arch sdxl --method ties",
    "--arch sdxl --method ties --space core",
    "--arch sd15 --method svd --repeats 3",
    "--arch sd15 --method ties",
)
# Without PEFT and the floor, which say nothing here.
_ALONE = "--no-floor --no-peft --checked 0"
PLOTS = {
    "adapters": [f"--arch sdxl --method {m} --adapters {n} {_ALONE}" for m in ("svd", "ties") for n in COUNTS],
    "rank": [f"--arch sdxl --method {m} --rank {r} {_ALONE}" for m in ("svd", "ties") for r in RANKS],
    "layers": [f"--arch flux --method {m} --layers {n} {_ALONE}" for m in ("svd", "ties") for n in LAYERS],
}


def kept(line: str) -> Path:
    """Where the result of a line lies."""
    return KEPT / f"{hashlib.sha256(line.encode()).hexdigest()[:12]}.json"


def measure(line: str, folder: Path | None) -> dict[str, Any]:
    """Run one line, unless its result is kept."""
    path = kept(line)
    if not path.exists():
        print(line, file=sys.stderr, flush=True)
        command = [sys.executable, "-m", "benchmarks.full_size", *line.split()]
        more = ["--folder", str(folder)] if folder else []
        done = subprocess.run([*command, *more], cwd=HERE.parent, stdout=subprocess.PIPE, text=True, check=True)
        result = json.loads(done.stdout)
        result["command"] = f"python -m benchmarks.full_size {line}"
        KEPT.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part")
        part.write_text(json.dumps(result, indent=2))
        part.replace(path)
    return json.loads(path.read_text())


def row(result: dict[str, Any]) -> dict[str, str]:
    """One line of the table, by the heads of its columns."""
    memory, peft, floor = result["memory"], result.get("peft"), result.get("floor", {})
    excess = max(result.get("excess_error", {}).values(), default=None)
    return {
        "command": f"`{result['command'].removeprefix('python -m benchmarks.full_size ')}`",
        "layers": f"{result['layers']} of {result['layers_of_the_model']}",
        "s": f"{result['wall_seconds']:.2f}",
        "floor, s": f"{floor['seconds']:.2f}" if floor else "",
        "ratio": f"{result['ratio']:.1f}" if floor else "",
        "of processor time": f"{result['processor_ratio']:.1f}" if floor else "",
        "PEFT, s": f"{peft['extrapolated_seconds']:,.0f}" if peft else "",
        "times as fast": f"{result['times_as_fast_as_peft']:,.0f}" if peft else "",
        "by processor time": f"{result.get('times_less_processor_time_than_peft', 0):,.0f}" if peft else "",
        "peak above start, GB": f"{memory['peak_above_start_bytes'] / 1e9:.2f}",
        "output, GB": f"{memory['output_bytes'] / 1e9:.2f}",
        "dense copies": f"{memory['dense_copies_beside_the_output']:.1f}",
        "excess error": "" if excess is None else f"{excess:.4%}",
        "load": f"{result['machine']['load_before']:.1f}",
    }


def table(results: list[dict[str, Any]]) -> str:
    """In Markdown."""
    rows = [row(result) for result in results]
    machine = results[0]["machine"]
    gpu = f", {machine['gpu']}" if machine["gpu"] else ""
    text = f"{machine['threads']} threads on {machine['processor']}{gpu}, torch {machine['torch']}."
    cells = [list(rows[0]), ["---"] * len(rows[0]), *[list(row.values()) for row in rows]]
    return "\n".join([text, "", *["| " + " | ".join(line) + " |" for line in cells]])


def plot(name: str, results: list[dict[str, Any]]) -> None:
    """Seconds against what is varied, one line for each method."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 3.5), layout="constrained")
    axes = figure.subplots()
    for method in dict.fromkeys(result["method"] for result in results):
        own = [result for result in results if result["method"] == method]
        axes.plot([r[name] for r in own], [r["wall_seconds"] for r in own], "o-", label=f"{own[0]['arch']} {method}")
    axes.set(xlabel=name, ylabel="seconds", ylim=(0, None), xlim=(0, None))
    axes.legend()
    figure.savefig(HERE / f"{name}.png", dpi=80)


def main() -> None:
    """Measure, write, draw."""
    parser = argparse.ArgumentParser("python -m benchmarks.table", description=__doc__)
    parser.add_argument("--folder", type=Path, help="where to keep the synthetic adapters between the lines")
    parser.add_argument("--layers", type=int, help="measure a sample of so many layers in the lines of the table")
    parser.add_argument("--only-kept", action="store_true", help="measure nothing: write what is kept")
    args = parser.parse_args()

    def found(lines: list[str]) -> list[dict[str, Any]]:
        return [measure(line, args.folder) for line in lines if not args.only_kept or kept(line).exists()]

    sample = f" --layers {args.layers}" if args.layers else ""
    goals = found([line + sample for line in GOALS])
    plots = {name: found(lines) for name, lines in PLOTS.items()}
    for name, results in plots.items():
        if results:
            plot(name, results)
    readme = HERE / "README.md"
    text = readme.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    if goals:
        drawn = [f"![seconds against {name}]({name}.png)" for name, results in plots.items() if results]
        body = "\n".join([table(goals), *([""] if drawn else []), *drawn])
        readme.write_text(f"{before}{BEGIN}\n{body}\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
