"""What an evaluation found."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import pandas as pd

from mergelab.evaluation.analysis import Finding, MetricRange
from mergelab.evaluation.config import Config
from mergelab.evaluation.failures import Failure, summed_up
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
        failures: cells that failed: variant, metric (if it is one that failed), prompt, seed, error.
        verdict: the findings in words.
        table: the findings as a plain table.
    """

    folder: Path
    config: Config
    metrics: list[Description]
    scores: pd.DataFrame
    findings: list[Finding]
    anchors: list[MetricRange]
    failures: list[Failure]
    verdict: list[str] = field(default_factory=list)
    table: str = ""

    @cached_property
    def silent(self) -> dict[str, str]:
        """Metrics that were asked for and gave no score at all -> why, in words."""
        scored = set(self.scores["metric"])
        names = [metric.name for metric in self.metrics if metric.name not in scored]
        failed = {name: [row for row in self.failures if row["metric"] == name] for name in names}
        return {name: "; ".join(summed_up(failed[name])) or f"metric {name}: has nothing to say here" for name in names}

    def to_frame(self) -> pd.DataFrame:
        """The findings as a table of pandas."""
        rows = [{**{k: v for k, v in vars(f).items() if k != "interval"}, **vars(f.interval)} for f in self.findings]
        return pd.DataFrame(rows)

    def __repr__(self) -> str:
        places = [f"merged adapters: {self.folder / 'adapters'}", f"report: {self.folder / 'report.html'}"]
        return "\n".join([*self.verdict, "", self.table, "", *places])
