"""The grid of variants, prompts and seeds, whose images are scored once with every metric."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import product
from typing import Any

import pandas as pd

from mergelab.engine.provenance import package_version
from mergelab.evaluation.config import Config
from mergelab.evaluation.failures import Failures
from mergelab.evaluation.metrics.metric import Asked, Description, Metric, Picture
from mergelab.evaluation.names import at_seed, split_seed
from mergelab.evaluation.progress import bar
from mergelab.evaluation.store import Store, hash_of
from mergelab.evaluation.variants import Variant

COLUMNS = ("set", "variant", "prompt_id", "prompt", "seed", "metric", "reference", "reference_seed", "value", "image")
"""Of `scores.parquet`."""


@dataclass
class Grid:
    """What drawing and scoring share.

    Attributes:
        config, store, variants: what is run, where, and its columns.
        progress: a progress bar; None shows one on a terminal.
        failures: cells that failed, as they come.
        photos: adapter -> its reference photographs.
        notes: what a pipeline did not load.
        seconds: spent in the pipeline, on adapters that come and go in it, and in the metrics.
    """

    config: Config
    store: Store
    variants: list[Variant]
    progress: bool | None
    failures: Failures
    photos: Mapping[str, tuple[Picture, ...]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=lambda: {"pipeline": 0.0, "adapters": 0.0, "metrics": 0.0})

    @property
    def concepts(self) -> dict[str, tuple[str, ...]]:
        """Adapter -> the prompts of its concept."""
        return {lora.name: lora.concepts for lora in self.config.loras}

    def bar(self, total: int, label: str) -> Any:
        """A progress bar."""
        return bar(total, label, self.progress)


def score_all(grid: Grid, metrics: list[Metric]) -> pd.DataFrame:
    """Scores every image that is there with every metric, in a fixed order."""
    rows: list[dict[str, Any]] = []
    names = "+".join(lora.name for lora in grid.config.loras)
    units = list(product(grid.config.prompts, grid.config.seeds))
    with grid.bar(len(units) * len(grid.variants), "scores") as bar:
        for prompt, seed in units:
            for variant in grid.variants:
                bar.update()
                key = variant.requests[prompt, seed]
                if not grid.store.image_path(key).exists():
                    continue
                comparisons = _comparisons(grid, variant, prompt, seed)
                cell = {"set": names, "variant": str(variant.name), "prompt_id": grid.config.prompts.index(prompt)}
                cell |= {"prompt": prompt, "seed": seed, "image": f"{key}.png"}
                for metric in metrics:
                    try:
                        values = _scored(grid, metric, key, prompt, comparisons)
                    except Exception as error:  # a metric, perhaps the user's own, that fails on one image
                        grid.failures.add(error, variant.name, prompt, seed, metric=metric.description.name)
                        continue
                    for reference, value in values.items():
                        name, reference_seed = split_seed(reference, seed)
                        row = {"metric": metric.description.name, "reference": name, "value": value}
                        rows.append(cell | row | {"reference_seed": reference_seed})
    grid.failures.tell()
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _comparisons(grid: Grid, variant: Variant, prompt: str, seed: int) -> dict[str, str]:
    """Reference -> key of the image it is compared with; "single:x at seed 1" has another seed."""
    others = {
        str(other.name): other.requests[prompt, seed]
        for other in grid.variants
        if other.name != variant.name and other.name.kind != "merge"
    }
    seeds = grid.config.seeds
    if len(seeds) > 1 and variant.name.kind != "merge":
        after = seeds[(seeds.index(seed) + 1) % len(seeds)]
        others[at_seed(str(variant.name), after)] = variant.requests[prompt, after]
    return {reference: key for reference, key in others.items() if grid.store.image_path(key).exists()}


def _scored(grid: Grid, metric: Metric, key: str, prompt: str, comparisons: Mapping[str, str]) -> Mapping[str, float]:
    """The values of one metric for one image, from an earlier run where it has them."""
    description = metric.description
    comparisons = comparisons if description.compares_with == "images" else {}
    request = {"metric": description.name, "settings": dict(metric.settings), "image": key, "prompt": prompt}
    request |= {"references": dict(comparisons), "version": package_version()}
    if description.compares_with == "words":
        request["concepts"] = grid.concepts
    if description.photographs and grid.photos:
        request["photos"] = {name: sorted(photo.key for photo in photos) for name, photos in grid.photos.items()}
    request_key = hash_of(request)
    known = grid.store.recall(request_key)
    values = dict(_measured(grid, metric, key, prompt, comparisons) if known is None else known)
    _check(values, description)
    if known is None:
        grid.store.keep(request_key, values)
    return values


def _measured(grid: Grid, metric: Metric, key: str, prompt: str, comparisons: Mapping[str, str]) -> Mapping[str, float]:
    references = {name: Picture(other, grid.store.load_image(other)) for name, other in comparisons.items()}
    picture = Picture(key, grid.store.load_image(key))
    asked = Asked(prompt, references, grid.concepts, grid.photos if metric.description.photographs else {})
    start = time.perf_counter()
    values = metric.score(picture, asked)
    grid.seconds["metrics"] += time.perf_counter() - start
    return values


def _check(values: Mapping[str, float], description: Description) -> None:
    """Raises where a score is none, or lies outside of what the metric says it can be (by more than rounding)."""
    low, high = description.range
    for reference, value in values.items():
        against = f" (against {reference})" if reference else ""
        if not math.isfinite(value):
            raise ValueError(f"the score is not finite{against}")
        if not low - 1e-6 <= value <= high + 1e-6:
            raise ValueError(f"the score {value:.6g} is outside of the metric's range, {low:g} to {high:g}{against}")
