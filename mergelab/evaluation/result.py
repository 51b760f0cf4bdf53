"""What an evaluation found."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import pandas as pd

from mergelab.errors import MergelabError
from mergelab.evaluation.analysis.contrasts import Contrast, Primary
from mergelab.evaluation.analysis.findings import Finding
from mergelab.evaluation.analysis.ranges import MetricRange
from mergelab.evaluation.config import Config
from mergelab.evaluation.dataset.pushing import push_run
from mergelab.evaluation.design import Design
from mergelab.evaluation.failures import Failure, summed_up
from mergelab.evaluation.metrics.metric import Description
from mergelab.evaluation.names import VariantName
from mergelab.evaluation.recipes import recipes
from mergelab.evaluation.selection import Choice
from mergelab.evaluation.sets import AdapterSet, calling, roles_of
from mergelab.publishing import Pushed


@dataclass(frozen=True, repr=False)
class Result:
    """What an evaluation found; everything in it is also in the run folder.

    Attributes:
        folder: the run folder.
        config: as it was resolved.
        sets: the sets of adapters, with the role of each.
        metrics: what each metric says of itself, in the order in which they are shown.
        scores: one row for each image and metric, as in `scores.parquet`.
        findings: the estimates with their intervals.
        contrasts: each two of the stack and the merges, by every score; of very many, those that `EACH_TWO` says.
        primary: the score whose tests against the stack are corrected; None where no metric sees an adapter.
        design: how much the images can tell.
        choices: merges that were chosen by score, on other images.
        anchors: floor, ceiling and noise of every metric.
        failures: cells that failed: set, variant, metric (if it is one that failed), prompt, seed, error.
        verdict: the findings in words.
        table: the findings as a plain table.
    """

    folder: Path
    config: Config
    sets: Sequence[AdapterSet]
    metrics: list[Description]
    scores: pd.DataFrame
    findings: list[Finding]
    contrasts: list[Contrast]
    primary: Primary | None
    design: Design
    choices: list[Choice]
    anchors: list[MetricRange]
    failures: list[Failure]
    verdict: list[str] = field(default_factory=list)
    table: str = ""

    @property
    def roles(self) -> list[str]:
        """What the adapters are called in findings: their names, or, where there are several sets, their roles."""
        return roles_of(self.sets)

    @cached_property
    def variants(self) -> list[VariantName]:
        """Stack and merges of which something is said, in order."""
        names = (VariantName.parse(name) for name in dict.fromkeys(finding.variant for finding in self.findings))
        return [name for name in names if name and name.kind in ("stack", "merge")]

    @cached_property
    def merge_labels(self) -> list[str]:
        """Of every merge that the configuration asks for, also where another was chosen."""
        try:
            return list(dict.fromkeys(one.label for of in self.sets for one in recipes(self.config, of)))
        except MergelabError:  # a method of the user's own that is registered no more
            return []

    @property
    def calling(self) -> Mapping[tuple[str, str], frozenset[str]]:
        """Set and prompt -> the roles that are called."""
        return calling(self.sets)

    @cached_property
    def silent(self) -> dict[str, str]:
        """Metrics that were asked for and gave no score at all -> why, in words."""
        scored = set(self.scores["metric"])
        names = [metric.name for metric in self.metrics if metric.name not in scored]
        failed = {name: [row for row in self.failures if row["metric"] == name] for name in names}
        return {name: "; ".join(summed_up(failed[name])) or f"metric {name}: has nothing to say here" for name in names}

    def contrast(self, first: str, second: str, score: Primary | None = None) -> Contrast | None:
        """The first variant against the second, by the primary score unless another is asked for."""
        score = score or self.primary
        one = self._contrast_of.get((score, frozenset((first, second)))) if score else None
        return one if one is None or one.first == first else one.turned()

    @cached_property
    def _contrast_of(self) -> dict[tuple[Primary, frozenset[str]], Contrast]:
        return {(one.score, frozenset((one.first, one.second))): one for one in reversed(self.contrasts)}

    def to_frame(self) -> pd.DataFrame:
        """The findings as a table of pandas."""
        rows = [{**{k: v for k, v in vars(f).items() if k != "interval"}, **vars(f.interval)} for f in self.findings]
        return pd.DataFrame(rows)

    def contrasts_frame(self) -> pd.DataFrame:
        """The contrasts as a table of pandas."""
        left_out = ("interval", "by_set")
        return pd.DataFrame(
            [{**{k: v for k, v in vars(c).items() if k not in left_out}, **vars(c.interval)} for c in self.contrasts]
        )

    def push_to_hub(
        self,
        repo: str,
        *,
        private: bool | None = None,
        token: str | None = None,
        commit_message: str | None = None,
        revision: str | None = None,
        create_pr: bool = False,
        overwrite: bool = False,
        folder: str | os.PathLike[str] | None = None,
    ) -> Pushed:
        """Push the run to the Hugging Face Hub as a dataset; arguments and errors are those of `push_run`."""
        return push_run(
            self.folder, repo, private=private, token=token, commit_message=commit_message, revision=revision,
            create_pr=create_pr, overwrite=overwrite, folder=folder,
        )  # fmt: skip

    def __repr__(self) -> str:
        adapters = self.folder / "adapters"
        merged = adapters.is_dir() and any(path.is_file() for path in adapters.rglob("*"))
        places = [*([f"merged adapters: {adapters}"] if merged else []), f"report: {self.folder / 'report.html'}"]
        return "\n".join([*self.verdict, "", self.table, "", *places])
