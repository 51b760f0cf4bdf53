"""What is drawn at random: the clusters of a run, the mean of a score over each, and what each counts."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

ENOUGH = 5
"""Clusters below which nothing is inferred; sets from which on the sets are the clusters."""


@dataclass(frozen=True)
class Units:
    """The images of a score, one row each: a unit is (set of LoRAs, prompt, seed).

    Seeds of a prompt are averaged first. With five sets or more, the set is what is drawn at random: the cluster is the
    set, and its value the mean over its prompts. With one set it is the prompt. Two to four sets are too few to infer
    anything about other sets: they are taken as they are, and the clusters are their prompts, each set counting alike.

    Args:
        prompts: the prompt of each image.
        sets: the set of LoRAs of each image; empty for one set.

    Example:
        >>> units = Units(["a", "a", "b"])
        >>> units.kind, units.count, units.means(np.array([1.0, 3.0, 10.0])).tolist()
        ('prompts', 2, [2.0, 10.0])
        >>> Units(["a", "b", "a"], ["x", "x", "y"]).weights.tolist()
        [0.25, 0.25, 0.5]
    """

    prompts: Sequence[Hashable]
    sets: Sequence[Hashable] = ()

    @cached_property
    def _cells(self) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        """The cell (set, prompt) of each image, and the set of each cell, both counted in order of appearance."""
        sets = _numbered(self.sets or [None] * len(self.prompts))
        cells = _numbered(list(zip(sets.tolist(), self.prompts)))
        return cells, sets[np.unique(cells, return_index=True)[1]]

    @cached_property
    def kind(self) -> Literal["sets", "prompts", "prompts of these sets"]:
        """What the clusters are, in words."""
        sets = len(set(self._cells[1].tolist()))
        return "sets" if sets >= ENOUGH else "prompts" if sets <= 1 else "prompts of these sets"

    @property
    def count(self) -> int:
        """How many clusters."""
        return len(self.weights)

    @cached_property
    def strata(self) -> NDArray[np.intp]:
        """For each cluster the set within which it varies; all zero unless the clusters are prompts of several sets."""
        sets = self._cells[1]
        return np.zeros(int(sets.max()) + 1, dtype=np.intp) if self.kind == "sets" else sets

    @cached_property
    def weights(self) -> Array:
        """What each cluster counts; they sum to one."""
        sizes = np.bincount(self.strata)
        return np.asarray(1 / (len(sizes) * sizes[self.strata]), dtype=float)

    def means(self, values: Array) -> Array:
        """One value for each cluster.

        Args:
            values: (n,), one for each image.
        """
        cells, sets = self._cells
        means = _mean_by(cells, values)
        return _mean_by(sets, means) if self.kind == "sets" else means


def _numbered(labels: Sequence[Hashable]) -> NDArray[np.intp]:
    """Labels as numbers, in order of appearance."""
    numbers = {label: number for number, label in enumerate(dict.fromkeys(labels))}
    return np.fromiter((numbers[label] for label in labels), dtype=np.intp, count=len(labels))


def _mean_by(groups: NDArray[np.intp], values: Array) -> Array:
    return np.asarray(np.bincount(groups, weights=values) / np.bincount(groups), dtype=float)
