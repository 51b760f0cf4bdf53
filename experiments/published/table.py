"""The table of a preservation run as Markdown: `python -m experiments.published.table RUN_FOLDER`.

For each variant the likeness to the target's photographs, as published tables have it, the recovery of the target, and
the paired difference of its score from the unmerged stack's, with a 95 % interval and the p-value that is corrected
for all merges of the run.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pandas as pd

from mergelab.evaluation.names import display_name


def likeness(scores: pd.DataFrame, metric: str) -> pd.Series:
    """Mean similarity of each variant to the photographs of the target, the first of every set."""
    target = scores["set"].str.split("+").str[0]
    own = scores[(scores["metric"] == metric) & (scores["reference"] == "photos:" + target)]
    of = own["variant"].where(own["variant"] != "single:" + own["set"].str.split("+").str[0], "single:target")
    return own.groupby(of)["value"].mean()


def table(folder: Path, metric: str = "clip_image") -> list[str]:
    """The lines of the table, the merges in the order of the configuration."""
    summary = json.loads((folder / "summary.json").read_text())
    main = summary["primary"]["metric"]
    like = likeness(pd.read_parquet(folder / "scores.parquet"), metric)
    recovered = {
        finding["variant"]: finding["interval"]
        for finding in summary["findings"]
        if (finding["quantity"], finding["metric"], finding["reference"]) == ("recovery", main, "single:target")
    }
    paired = {
        contrast["first"]: contrast
        for contrast in summary["contrasts"]
        if contrast["second"] == "stack" and contrast["corrected"] is not None
    }
    lines = [
        f"| | {metric} to photographs | recovery ({main}) | {main}, difference from the stack | p, Holm |",
        "|---|---|---|---|---|",
    ]
    for variant in ["base", "single:target", "stack", *(name for name in recovered if name.startswith("merge:"))]:
        share = _interval(recovered[variant], 100, "{:.0f}") if variant not in ("base", "single:target") else "–"
        found = paired.get(variant)
        rest = f"{_interval(found['interval'], 1, '{:+.2f}')} | {found['corrected']:.3f}" if found else "– | –"
        name = "the target alone" if variant == "single:target" else display_name(variant)
        lines.append(f"| {name} | {like[variant]:.3f} | {share} | {rest} |")
    return lines


def _interval(interval: dict[str, Any], factor: float, form: str) -> str:
    middle, low, high = (form.format(factor * interval[key]) for key in ("estimate", "low", "high"))
    return f"{middle} [{low}, {high}]"


if __name__ == "__main__":
    print("\n".join(table(Path(sys.argv[1]))))
