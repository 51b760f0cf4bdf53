"""Writes the tables of the README from the results, `python -m experiments.tuning.tables [FOLDER]`; prints them too."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from experiments.tuning.__main__ import RUNS
from experiments.tuning.pairs import BUDGETS, METRICS, SCORES
from mergelab.evaluation.statistics import Range, Units, difference_interval
from mergelab.miniature import PIPELINES

README = Path(__file__).with_name("README.md")
START, END = "<!-- measured -->\n", "<!-- end -->"
PARTS, ROLES = ("joint", "own", "plain"), ("sum", "best sum", "blocks")
Row = dict[str, Any]


def tables(rows: Sequence[Row], budget: str) -> str:
    """All that was measured with a budget, score by score, pipeline by pipeline and over both."""
    parts = []
    for score in SCORES:
        for name in (*PIPELINES, "both"):
            own = [row for row in rows if row["score"] == score and name in (row["pipeline"], "both")]
            if own:
                parts += [
                    f"### {budget.capitalize()} budget, score {score}, {name}: {len(own)} pairs",
                    *_of(own, score),
                ]
    return "\n\n".join(parts) + "\n"


def _of(rows: Sequence[Row], score: str) -> list[str]:
    def mean(value: Callable[[Row], float]) -> float:
        return fmean(map(value, rows))

    bias = mean(lambda row: row["searched"]["blocks"]["total"] - row["held out"]["blocks"][score]["total"])
    gain = mean(lambda row: row["searched"]["blocks"]["total"] - row["searched"]["best sum"]["total"])
    kept = mean(lambda row: row["held out"]["blocks"][score]["total"] - row["held out"]["best sum"][score]["total"])
    uniform = sum(row["setting"] < 8 for row in rows)
    seconds = mean(lambda row: row["seconds of the search"])
    told = (
        f"Mean of the best strengths of the sum {mean(lambda row: row['strength']):.2f}; in {uniform} of {len(rows)} "
        "pairs one weight for each adapter won. Score of the winner against the sum at its best strength: "
        f"{gain:+.3f} while searching, {kept:+.3f} held out; against itself {bias:+.3f} while searching. "
        f"{seconds:.0f} s a search."
    )
    head = ["means on held-out scenes", *(f"{metric} {part}" for metric in METRICS for part in PARTS)]
    body = [[role, *(f"{np.nanmean(_column(rows, role, m, p)):.3f}" for m in METRICS for p in PARTS)] for role in ROLES]
    lead = ["difference", "by", *PARTS, "score"]
    gains = [[f"blocks - {other}", metric, *(_interval(rows, "blocks", other, metric, p) for p in (*PARTS, "total"))]
             for other in ROLES[:2] for metric in (score, *(one for one in METRICS if one != score))]  # fmt: skip
    return [told, _table(head, body), _table(lead, gains)]


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
    found = []
    for budget in BUDGETS:
        if (results := folder / f"{budget}.jsonl").exists():
            rows = [json.loads(line) for line in results.read_text(encoding="utf-8").splitlines() if line]
            found.append(tables(rows, budget))
    before, rest = README.read_text(encoding="utf-8").split(START)
    text = "\n".join(found)
    README.write_text(f"{before}{START}\n{text}\n{END}{rest.partition(END)[2]}", encoding="utf-8")
    return text


if __name__ == "__main__":
    print(write(Path(sys.argv[1]) if len(sys.argv) > 1 else RUNS))
