"""The grid of variants, prompts and seeds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mergelab.evaluation.config import Config
from mergelab.evaluation.failures import Failures
from mergelab.evaluation.metrics.metric import Picture
from mergelab.evaluation.progress import bar
from mergelab.evaluation.sets import AdapterSet
from mergelab.evaluation.store import Store
from mergelab.evaluation.variants import Variant

SPENT = {"pipeline": 0.0, "adapters": 0.0, "metrics": 0.0}
"""Seconds in the pipeline, on adapters that come and go in it, and in the metrics, before anything is done."""


@dataclass
class Grid:
    """What drawing and scoring share.

    Attributes:
        config, store: what is run, and where.
        sets: the sets of adapters, with their prompts.
        variants: the columns of every set.
        photos: adapter -> reference photographs.
        progress: a progress bar; None shows one on a terminal.
        failures: cells that failed, as they come.
        notes: what a pipeline did not load.
        seconds: spent in the pipeline, on adapters that come and go in it, and in the metrics.
    """

    config: Config
    store: Store
    sets: list[AdapterSet]
    variants: list[Variant]
    photos: Mapping[str, tuple[Picture, ...]]
    progress: bool | None
    failures: Failures
    notes: list[str] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=lambda: dict(SPENT))

    def of(self, one: AdapterSet) -> list[Variant]:
        """The columns of a set."""
        return [variant for variant in self.variants if variant.set == one.name]

    def bar(self, total: int, label: str) -> Any:
        """A progress bar."""
        return bar(total, label, self.progress)
