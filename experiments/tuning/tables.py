"""Writes the tables of the README from the results, `python -m experiments.tuning.tables [FOLDER]`; prints them too."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from experiments.tuning.__main__ import RESULTS, RUNS
from experiments.tuning.pairs import METRICS, SCORES
from mergelab.evaluation.statistics import Range, Units, difference_interval
from mergelab.miniature import PIPELINES

README = Path(__file__).with_name("README.md")
START, END = "<!-- measured -->\n", "<!-- end -->"
PARTS = ("joint", "own", "plain")
Row = dict[str, Any]


def tables(rows: Sequence[Row]) -> str:
    """All that was measured, pipeline by pipeline, and over both."""
    named = [(name, [row for row in rows if row["pipeline"] == name]) for name in PIPELINES] + [("both", list(rows))]
    return "\n\n".join(part for name, own in named if own for part in _of(name, own)) + "\n"


def _of(name: str, rows: Sequence[Row]) -> list[str]:
    parts = [f"### {name}: {len(rows)} pairs", _means(rows)]
    for score in SCORES:
        strengths = [row["searched"][score]["strength"] for row in rows]
        bias = fmean(row["searched"][score]["blocks"]["total"] - row["held out"][f"blocks by {score}"][score]["total"]
                     for row in rows)  # fmt: skip
        seconds = fmean(row["searched"][score]["seconds"] for row in rows)
        uniform = sum(row["searched"][score]["number"] < 8 for row in rows)
        again = "" if score == SCORES[0] else " (what the first search has drawn is not drawn again)"
        parts += [
            f"Searched with {score}. Best strengths of the sum: {min(strengths):g} to {max(strengths):g}, "
            f"mean {fmean(strengths):.2f}. In {uniform} of {len(rows)} pairs one weight for each adapter won. "
            f"Selection bias of the score {bias:+.3f}. Seconds a pair: {seconds:.0f}{again}.",
            _differences(rows, score),
        ]
    return parts


def _means(rows: Sequence[Row]) -> str:
    roles = ["sum", *(f"{kind} by {score}" for score in SCORES for kind in ("sum", "blocks"))]
    head = ["means on held-out scenes", *(f"{metric} {part}" for metric in METRICS for part in PARTS)]
    body = [[role, *(f"{np.nanmean(_column(rows, role, m, p)):.3f}" for m in METRICS for p in PARTS)] for role in roles]
    return _table(head, body)


def _differences(rows: Sequence[Row], score: str) -> str:
    other = next(one for one in SCORES if one != score)
    against = [(f"blocks by {score}", "sum"), (f"blocks by {score}", f"sum by {score}")]
    head = ["difference", "by", *PARTS, "score"]
    body = [[f"{first} - {second}", metric, *(_interval(rows, first, second, metric, p) for p in (*PARTS, "total"))]
            for first, second in against for metric in (score, other, "nearness")]  # fmt: skip
    return _table(head, body)


def _interval(rows: Sequence[Row], first: str, second: str, metric: str, part: str) -> str:
    """The mean difference with its 95 % interval over pairs; bold where it does not hold zero."""
    left, right = (_column(rows, role, metric, part) for role in (first, second))
    there = np.isfinite(left + right)
    pairs = [f"{row['pipeline']} {row['subject']} {row['style']}" for row in rows]
    if there.sum() < 2:
        return "-"
    units = Units([pair for pair, known in zip(pairs, there) if known])
    ends = Range(0, 1) if metric == "judge" and part in ("joint", "own") else Range()
    found = difference_interval(left[there], right[there], units, ends)
    text = f"{found.estimate:+.3f} [{found.low:+.3f}, {found.high:+.3f}]"
    few = f" ({there.sum()} pairs)" if there.sum() < len(rows) else ""
    return f"**{text}**{few}" if math.isfinite(found.low) and found.low * found.high > 0 else text + few


def _column(rows: Sequence[Row], role: str, metric: str, part: str) -> Any:
    values = (row["held out"][role][metric][part] for row in rows)
    return np.array([math.nan if value is None else value for value in values], dtype=float)


def _table(head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [head, ["---"] * len(head), *body])


def write(folder: Path) -> str:
    """Puts the tables between the marks of the README."""
    lines = (folder / RESULTS).read_text(encoding="utf-8").splitlines()
    found = tables([json.loads(line) for line in lines if line])
    before, rest = README.read_text(encoding="utf-8").split(START)
    README.write_text(f"{before}{START}\n{found}\n{END}{rest.partition(END)[2]}", encoding="utf-8")
    return found


if __name__ == "__main__":
    print(write(Path(sys.argv[1]) if len(sys.argv) > 1 else RUNS / "reported"))
