"""What is computed from the scores: one row of a table for each quantity."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd

from mergelab.evaluation.metrics.metric import ComparesWith, Description
from mergelab.evaluation.names import BASE, STACK, single
from mergelab.evaluation.scores import Column, Scores, clusters
from mergelab.evaluation.statistics import Array, Interval, interval, win_rate

Statistic = Callable[[pd.DataFrame, Description], Interval]
"""Of columns that line up, to an estimate with its interval."""


def ratio(means: Array) -> Array:
    """(variant - base) / (single - base)."""
    span = means[..., 2] - means[..., 1]
    return np.divide(means[..., 0] - means[..., 1], span, out=np.full_like(span, np.nan), where=np.abs(span) > 1e-12)


def _recovered(table: pd.DataFrame, metric: Description) -> Interval:
    return interval(clusters(table), ratio)


def _change(table: pd.DataFrame, metric: Description) -> Interval:
    return interval(clusters(table), lambda means: means[..., 0] - means[..., 1])


def _mean(table: pd.DataFrame, metric: Description) -> Interval:
    """What no value can be is no part of the interval."""
    found = interval(clusters(table), lambda means: means[..., 0])
    low, high = np.clip([found.low, found.high], *metric.range).tolist()
    return Interval(found.estimate, low, high)


def _wins(table: pd.DataFrame, metric: Description) -> Interval:
    first, second = (table.iloc[:, i].to_numpy(float) for i in (0, 1))
    share = win_rate(first, second, higher_is_better=metric.higher_is_better)
    return Interval(share, float("nan"), float("nan"))


_ON: dict[str, Callable[[set[str], str | None], bool]] = {
    "calling": lambda called, adapter: adapter in called,
    "not calling": lambda called, adapter: adapter not in called,
    "free": lambda called, adapter: not called,
    "all": lambda called, adapter: True,
}
"""Whether a prompt that calls some adapters counts for one of them."""


@dataclass(frozen=True)
class Quantity:
    """One thing that is said of a variant.

    Attributes:
        name: in findings.
        asks: metrics that compare with one of these answer it.
        about: the reference of the scores: each adapter in turn, the prompt, a variant, or what the metric itself says.
        prompts: those that call the adapter, those that do not, those free of any trigger, or all.
        columns: which variants' scores line up; "variant" is the one that it is said of, "single" the adapter alone.
        statistic: of these columns.
        tested: merges are tested against the stack, by the first column.
        merges_only: nothing is said of other variants.
        shown: in the tables as a share, a change or a value; None leaves it to the list of all findings.
        head, help: what the tables call it, in terms of {metric}, {adapter}, {way} ("likeness to", "distance from") and
            {direction} (empty, "; lower is better").
    """

    name: str
    asks: tuple[ComparesWith, ...]
    about: Literal["adapters", "prompt", "base", "stack", "labels"]
    prompts: Literal["calling", "not calling", "free", "all"]
    columns: tuple[Literal["variant", "base", "single", "stack"], ...]
    statistic: Statistic
    tested: bool = False
    merges_only: bool = False
    shown: Literal["share", "change", "value"] | None = None
    head: str = ""
    help: str = ""

    def references(self, adapter: str | None, metric: Description, scores: Scores) -> list[str]:
        """The references of the scores it is computed from, for one adapter or, where it is None, for none."""
        if metric.compares_with not in self.asks or (adapter is None) == (self.about == "adapters"):
            return []
        if adapter is not None:
            return [single(adapter)]
        if self.about == "labels":
            return scores.labels(metric.name)
        return ["" if self.about == "prompt" else self.about]

    def on(self, calling: Mapping[str, set[str]], adapter: str | None) -> set[str]:
        """Its prompts."""
        return {prompt for prompt, called in calling.items() if _ON[self.prompts](called, adapter)}

    def of(self, variant: str, metric: str, reference: str) -> list[Column]:
        """The columns it is computed from."""
        roles = {"variant": variant, "base": str(BASE), "stack": str(STACK), "single": reference}
        return [(roles[role], metric, reference) for role in self.columns]


RECOVERY = Quantity(
    "recovery", ("words",), "adapters", "calling", ("variant", "base", "single"), _recovered, tested=True,
    shown="share", head="recovery of {adapter}",
    help="{metric}: 0 % as the base model, 100 % as {adapter} alone",
)  # fmt: skip
PRESERVATION = Quantity(
    "preservation", ("words",), "prompt", "free", ("variant", "base"), _change, tested=True,
    shown="change", head="without a trigger", help="change of the prompt's score where no adapter is called",
)  # fmt: skip

QUANTITIES = (
    RECOVERY,
    Quantity(
        "similarity", ("images",), "adapters", "calling", ("variant",), _mean, tested=True,
        shown="value", head="{metric} to {adapter}",
        help="{way} the image of {adapter} alone, same prompt and seed",
    ),
    Quantity(
        "wins over the stack", ("words", "images"), "adapters", "calling", ("variant", "stack"), _wins,
        merges_only=True,
    ),
    Quantity("leakage", ("words",), "adapters", "not calling", ("variant", "base"), _change, tested=True),
    PRESERVATION,
    Quantity(PRESERVATION.name, ("images",), "base", "free", ("variant",), _mean, tested=True),
    Quantity("similarity", ("images",), "stack", "all", ("variant",), _mean),
    Quantity(
        "score", ("images", "nothing"), "labels", "all", ("variant",), _mean,
        shown="value", head="{metric}", help="mean over all prompts{direction}",
    ),
)  # fmt: skip
"""In the order of the findings of one metric. Those about adapters come before the others."""
