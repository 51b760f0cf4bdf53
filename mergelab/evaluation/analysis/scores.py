"""The table of scores as columns that line up, under the roles of the adapters."""

from __future__ import annotations

from collections.abc import Callable, Sequence, Set

import pandas as pd

from mergelab.evaluation.metrics.metric import Description
from mergelab.evaluation.names import Photographs, VariantName, renamed
from mergelab.evaluation.sets import AdapterSet, calling
from mergelab.evaluation.statistics import Range

Column = tuple[str, str, str]
"""Variant, metric, reference."""
Key = tuple[str, str]
"""A set of adapters and a prompt."""
INDEX = ["set", "prompt", "seed"]
"""What a row of aligned columns is: one image of each variant."""


class Scores:
    """One value for each variant, metric, reference, set, prompt and seed.

    Args:
        frame: as in `scores.parquet`.
        sets: the sets of adapters, whose roles stand for the names of the adapters.

    Attributes:
        variants: in the order of the frame.
        calling: set and prompt -> the roles that are called.
    """

    def __init__(self, frame: pd.DataFrame, sets: Sequence[AdapterSet]) -> None:
        frame = in_roles(frame, sets)
        same_seed = frame["reference_seed"] == frame["seed"]
        self._columns = {
            (str(variant), str(metric), str(reference)): part.set_index(INDEX)["value"]
            for (variant, metric, reference), part in frame[same_seed].groupby(["variant", "metric", "reference"])
        }
        self.variants: list[str] = list(dict.fromkeys(frame["variant"]))
        self._added = set[Column]()
        self._ends = dict[tuple[str, str], tuple[float, float]]()
        self._other_seeds = frame[~same_seed]
        self.calling = calling(sets)

    def keys(self, counts: Callable[[frozenset[str]], bool]) -> set[Key]:
        """The sets and prompts whose called roles count."""
        return {key for key, called in self.calling.items() if counts(called)}

    def references(self, metric: str) -> set[str]:
        """What a metric's scores are about."""
        return {reference for _, name, reference in self._columns if name == metric}

    def labels(self, metric: str) -> list[str]:
        """What a user's metric calls its numbers, "" for a bare one: no variant, no photographs, nothing computed."""
        others = self.references(metric) - {reference for _, name, reference in self._added if name == metric}
        return sorted(one for one in others if not (VariantName.parse(one) or Photographs.parse(one)))

    def range(self, metric: Description, reference: str) -> Range:
        """What scores of a metric about something can be, and what those of the run are."""
        if (metric.name, reference) not in self._ends:
            parts = [part for (_, *about), part in self._columns.items() if about == [metric.name, reference]]
            ends = min(float(part.min()) for part in parts), max(float(part.max()) for part in parts)
            self._ends[metric.name, reference] = ends
        least, most = self._ends[metric.name, reference]
        return Range(*metric.range, least=least, most=most)

    def column(self, column: Column) -> pd.Series:
        """One column, over set, prompt and seed; empty where it is not there."""
        return self._columns.get(column, pd.Series(dtype=float))

    def other_seeds(self, variant: str, metric: str, keys: Set[Key]) -> pd.Series:
        """Values between images of the same variant and prompt with other seeds."""
        rows = self._other_seeds
        chosen = rows[(rows["variant"] == variant) & (rows["metric"] == metric)]
        values = chosen.set_index(INDEX)["value"]
        return values[_within(values, keys)]

    def add(self, column: Column, values: pd.Series) -> None:
        """One more column, which was computed from others."""
        if len(values):
            self._columns[column] = values
            self._added.add(column)
            self._ends.pop(column[1:], None)

    def aligned(self, columns: Sequence[Column], keys: Set[Key]) -> pd.DataFrame:
        """These columns side by side, one row for each image that all of them have; empty if one is missing."""
        parts = [self.column(column) for column in columns]
        table = pd.concat(parts, axis=1, join="inner") if all(len(p) for p in parts) else pd.DataFrame()
        return table[_within(table, keys)] if len(table) else table

    def beside(self, columns: Sequence[Column], keys: Set[Key]) -> pd.DataFrame:
        """These columns side by side, with NaN where one has no value; columns that are missing are left out."""
        parts = {column[0]: part for column in columns if len(part := self.column(column))}
        table = pd.concat(parts, axis=1) if parts else pd.DataFrame()
        return table[_within(table, keys)] if len(table) else table


def _within(table: pd.DataFrame | pd.Series, keys: Set[Key]) -> list[bool]:
    return [(one, prompt) in keys for one, prompt, _ in table.index] if len(table) else []


def in_roles(frame: pd.DataFrame, sets: Sequence[AdapterSet]) -> pd.DataFrame:
    """With the roles of each set in place of the names of its adapters."""
    if all(role == name for one in sets for name, role in one.names.items()):
        return frame
    parts = []
    for one in sets:
        part = frame[frame["set"] == one.name].copy()
        for key in ("variant", "reference"):
            known = {text: renamed(text, one.names) for text in part[key].unique()}
            part[key] = part[key].map(known)
        parts.append(part)
    return pd.concat(parts, ignore_index=True)
