"""What an evaluation found."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from mergelab.evaluation.analysis import Finding, MetricRange
from mergelab.evaluation.config import Config
from mergelab.evaluation.metrics.metric import Description


@dataclass(frozen=True, repr=False)
class Result:
    """What an evaluation found; everything in it is also in the run folder.

    Attributes:
        folder: the run folder.
        config: as it was resolved.
        metrics: what each metric says of itself, in the order in which they are shown.
        scores: one row for each image and metric, as in `scores.parquet`.
        findings: the estimates with their intervals.
        anchors: floor, ceiling and noise of every metric.
        failures: cells that failed: variant, prompt, seed, error.
        verdict: the findings in words.
        table: the findings as a plain table.
    """

    folder: Path
    config: Config
    metrics: list[Description]
    scores: pd.DataFrame
    findings: list[Finding]
    anchors: list[MetricRange]
    failures: list[dict[str, Any]]
    verdict: list[str] = field(default_factory=list)
    table: str = ""

    def to_frame(self) -> pd.DataFrame:
        """The findings as a table of pandas."""
        rows = [{**{k: v for k, v in vars(f).items() if k != "interval"}, **vars(f.interval)} for f in self.findings]
        return pd.DataFrame(rows)

    def __repr__(self) -> str:
        places = [f"merged adapters: {self.folder / 'adapters'}", f"report: {self.folder / 'report.html'}"]
        return "\n".join([*self.verdict, "", self.table, "", *places])
