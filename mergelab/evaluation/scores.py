"""The table of scores as columns that line up."""

from __future__ import annotations

from collections.abc import Sequence, Set

import pandas as pd

from mergelab.evaluation.names import VariantName
from mergelab.evaluation.statistics import Array, cluster_means

Column = tuple[str, str, str]
"""Variant, metric, reference."""


class Scores:
    """One value for each variant, metric, reference, prompt and seed.

    Args:
        frame: as in `scores.parquet`.
    """

    def __init__(self, frame: pd.DataFrame) -> None:
        same_seed = frame["reference_seed"] == frame["seed"]
        self._columns = {
            key: part.set_index(["set", "prompt", "seed"])["value"]
            for key, part in frame[same_seed].groupby(["variant", "metric", "reference"])
        }
        self._other_seeds = frame[~same_seed]

    def labels(self, metric: str) -> list[str]:
        """The references of a metric that are no variants: "" for a bare number, or what a user's function calls it."""
        references = {str(reference) for _, name, reference in self._columns if name == metric}
        return sorted(reference for reference in references if VariantName.parse(reference) is None)

    def noise(self, variant: str, metric: str, prompts: Set[str]) -> float:
        """Mean value between images of the same variant and prompt with other seeds; NaN with one seed."""
        rows = self._other_seeds
        chosen = (rows["variant"] == variant) & (rows["metric"] == metric) & rows["prompt"].isin(list(prompts))
        return float(rows["value"][chosen].mean())

    def aligned(self, columns: Sequence[Column], prompts: Set[str]) -> pd.DataFrame:
        """These columns side by side, one row for each unit that all of them have; empty if one is missing."""
        parts = [self._columns.get(column, pd.Series(dtype=float)) for column in columns]
        table = pd.concat(parts, axis=1, join="inner") if all(len(p) for p in parts) else pd.DataFrame()
        if not len(table):
            return table
        return table[[prompt in prompts for prompt in table.index.get_level_values("prompt")]]


def clusters(table: pd.DataFrame) -> Array:
    """Means of aligned columns over the seeds of a prompt, or over the prompts of a set where there are several."""
    prompts = table.index.get_level_values("prompt")
    return cluster_means(table.to_numpy(float), list(prompts), list(table.index.get_level_values("set")))
