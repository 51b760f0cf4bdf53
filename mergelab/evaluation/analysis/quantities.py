"""What is computed from the scores: one row of a table for each quantity."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import pandas as pd

from mergelab.evaluation.analysis.scores import Column, Key, Scores
from mergelab.evaluation.metrics.metric import ComparesWith, Description
from mergelab.evaluation.names import BASE, STACK, photos, single
from mergelab.evaluation.sets import Prompts, counts
from mergelab.evaluation.statistics import (
    Interval,
    Range,
    Units,
    difference_interval,
    mean_interval,
    recovery_interval,
)

JOINT, HARMONIC = "joint", "harmonic mean"
"""References of scores that are computed from those of several concepts."""

Statistic = Callable[[pd.DataFrame, Units, Range], Interval]
"""Of columns that line up, to an estimate with its interval."""


def units_of(table: pd.DataFrame | pd.Series) -> Units:
    """The images that the rows of aligned columns are."""
    return Units(list(table.index.get_level_values("prompt")), list(table.index.get_level_values("set")))


def _column(table: pd.DataFrame, place: int) -> np.ndarray:
    return table.iloc[:, place].to_numpy(float)


def _recovered(table: pd.DataFrame, units: Units, range: Range) -> Interval:
    return recovery_interval(_column(table, 0), _column(table, 1), _column(table, 2), units, range)


def _change(table: pd.DataFrame, units: Units, range: Range) -> Interval:
    return difference_interval(_column(table, 0), _column(table, 1), units, range)


def _mean(table: pd.DataFrame, units: Units, range: Range) -> Interval:
    return mean_interval(_column(table, 0), units, range)


@dataclass(frozen=True)
class Quantity:
    """One thing that is said of a variant.

    Attributes:
        name: in findings.
        asks: metrics that compare with one of these answer it.
        about: the reference of the scores: what an adapter's concept is seen by, the image of each adapter alone, the
            joint or the harmonic score, the prompt, a variant, or what the metric itself says.
        prompts: on which it is computed.
        columns: which variants' scores line up; "variant" is the one that it is said of, "single" the adapter alone.
        statistic: of these columns.
        shown: in the tables as a share, a change or a value; None leaves it to the list of all findings.
        contrast: what the comparison of two variants is called; empty where there is none.
        head, help: what the tables call it, in terms of {metric}, {adapter}, {way} ("likeness to", "distance from") and
            {direction} (empty, "; lower is better").
    """

    name: str
    asks: tuple[ComparesWith, ...]
    about: Literal["concepts", "singles", "joint", "harmonic", "prompt", "base", "stack", "labels"]
    prompts: Prompts
    columns: tuple[Literal["variant", "base", "single", "stack"], ...]
    statistic: Statistic
    shown: Literal["share", "change", "value"] | None = None
    contrast: str = ""
    head: str = ""
    help: str = ""

    @property
    def of_adapters(self) -> bool:
        """Whether it is said of each adapter."""
        return self.about in ("concepts", "singles")

    @property
    def is_effect(self) -> bool:
        """Whether it says what is there of an adapter, or, of one with a weight below zero, what is not."""
        return self.name in ("recovery", "suppression")

    def references(self, role: str | None, metric: Description, scores: Scores) -> list[str]:
        """The references of the scores it is computed from, for one role or, where it is None, for none."""
        if metric.compares_with not in self.asks or (role is None) == self.of_adapters:
            return []
        if role is not None:
            return [concept_reference(metric, role) if self.about == "concepts" else single(role)]
        if self.about == "labels":
            return scores.labels(metric.name)
        return [{"prompt": "", "joint": JOINT, "harmonic": HARMONIC}.get(self.about, self.about)]

    def keys(self, scores: Scores, role: str | None) -> set[Key]:
        """Its sets and prompts."""
        return scores.keys(counts(self.prompts, role))

    def of(self, variant: str, metric: str, reference: str, role: str | None) -> list[Column]:
        """The columns it is computed from."""
        alone = single(role) if role is not None else ""
        roles = {"variant": variant, "base": str(BASE), "stack": str(STACK), "single": alone}
        return [(roles[name], metric, reference) for name in self.columns]


def concept_reference(metric: Description, role: str) -> str:
    """What an adapter's concept is seen by: its words, or photographs of it."""
    return photos(role) if metric.compares_with == "images" else single(role)


RECOVERY = Quantity(
    "recovery", ("words", "images"), "concepts", "together", ("variant", "base", "single"), _recovered,
    shown="share", contrast="concept", head="recovery of {adapter}",
    help="{metric}, where it is called with another: 0 % as the base model, 100 % as {adapter} alone",
)  # fmt: skip
RECOVERY_ALONE = replace(
    RECOVERY, prompts="alone", head="{adapter} by itself",
    help="recovery of {adapter} ({metric}) where it alone is called: 0 % as the base model, 100 % as {adapter} alone",
)  # fmt: skip
JOINT_SCORE = Quantity(
    "joint", ("words", "images"), "joint", "together", ("variant",), _mean,
    shown="value", contrast="joint", head="all at once",
    help="{metric}: in each image the score of the concept that is seen least, of those that are called",
)  # fmt: skip
SUPPRESSION = Quantity(
    "suppression", ("words", "images"), "concepts", "together", ("base", "variant"), _change,
    shown="change", head="suppression of {adapter}",
    help="{metric}: how far below the base model, for an adapter whose weight is not above zero",
)  # fmt: skip
PRESERVATION = Quantity(
    "preservation", ("words",), "prompt", "none", ("variant", "base"), _change,
    shown="change", contrast="preservation", head="without a trigger",
    help="change of the prompt's score where no adapter is called",
)  # fmt: skip
IMAGE_RECOVERY = "image recovery"
"""(variant - base) / (the adapter alone at other seeds - base), of the likeness to the image of the adapter alone."""

QUANTITIES = (
    JOINT_SCORE,
    RECOVERY,
    RECOVERY_ALONE,
    SUPPRESSION,
    replace(SUPPRESSION, prompts="alone"),
    Quantity("harmonic mean", ("words", "images"), "harmonic", "together", ("variant",), _mean),
    Quantity(
        "similarity", ("images",), "singles", "alone", ("variant",), _mean,
        shown="value", contrast="likeness", head="{metric} to {adapter}",
        help="{way} the image of {adapter} alone, same prompt and seed, where it alone is called",
    ),
    Quantity("leakage", ("words",), "concepts", "not calling", ("variant", "base"), _change),
    PRESERVATION,
    Quantity(PRESERVATION.name, ("images",), "base", "none", ("variant",), _mean, contrast="preservation"),
    Quantity("similarity", ("images",), "stack", "every", ("variant",), _mean),
    Quantity(
        "score", ("images", "nothing"), "labels", "every", ("variant",), _mean,
        shown="value", contrast="score", head="{metric}", help="mean over all prompts{direction}",
    ),
)  # fmt: skip
"""In the order of the findings of one metric."""


def described(quantity: Quantity, metric: Description) -> Description:
    """What the scores of a quantity are: those of a metric, unless they are on the adapters' own scale."""
    if quantity.about == "joint" and not metric.is_share:
        return replace(metric, higher_is_better=True, range=(-math.inf, math.inf))
    return metric
