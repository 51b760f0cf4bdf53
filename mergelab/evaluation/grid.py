"""The grid of variants, prompts and seeds, whose images are scored once with every metric."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import product
from typing import Any

import pandas as pd

from mergelab.evaluation.config import Config
from mergelab.evaluation.failures import Failures
from mergelab.evaluation.metrics.metric import Asked, Description, Metric, Picture
from mergelab.evaluation.names import at_seed, single, split_seed
from mergelab.evaluation.progress import bar
from mergelab.evaluation.sets import AdapterSet, Called
from mergelab.evaluation.store import Store, hash_of
from mergelab.evaluation.variants import Variant
from mergelab.publishing.recipe import package_version

COLUMNS = (
    "set", "variant", "prompt_id", "prompt", "calls", "seed", "metric", "reference", "reference_seed", "value", "image",
)  # fmt: skip
"""Of `scores.parquet`."""


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
    seconds: dict[str, float] = field(default_factory=lambda: {"pipeline": 0.0, "adapters": 0.0, "metrics": 0.0})

    def of(self, one: AdapterSet) -> list[Variant]:
        """The columns of a set."""
        return [variant for variant in self.variants if variant.set == one.name]

    def bar(self, total: int, label: str) -> Any:
        """A progress bar."""
        return bar(total, label, self.progress)


def score_all(grid: Grid, metrics: list[Metric]) -> pd.DataFrame:
    """Scores every image that is there with every metric, in a fixed order."""
    rows: list[dict[str, Any]] = []
    total = sum(len(one.prompts) * len(grid.config.seeds) * len(grid.of(one)) for one in grid.sets)
    with grid.bar(total, "scores") as bar:
        for one in grid.sets:
            own = grid.of(one)
            known = _Known(
                {lora.name: lora.concepts for lora in one.adapters.values() if lora.concepts},
                {name: pictures for name, pictures in grid.photos.items() if name in one.names},
            )
            for prompt, seed in product(one.prompts, grid.config.seeds):
                for variant in own:
                    bar.update()
                    rows += _rows(grid, one, own, variant, prompt, seed, metrics, known)
    grid.failures.tell()
    return pd.DataFrame(rows, columns=list(COLUMNS))


@dataclass(frozen=True)
class _Known:
    """What is known of the adapters of a set: their concepts, and photographs."""

    concepts: Mapping[str, tuple[str, ...]]
    photos: Mapping[str, tuple[Picture, ...]]


def _rows(
    grid: Grid,
    of: AdapterSet,
    own: list[Variant],
    variant: Variant,
    prompt: Called,
    seed: int,
    metrics: list[Metric],
    known: _Known,
) -> list[dict[str, Any]]:
    """The scores of one image by all metrics."""
    key = variant.requests[prompt.text, seed]
    if not grid.store.image_path(key).exists():
        return []
    comparisons = _comparisons(grid, own, variant, prompt.text, seed)
    calls = "+".join(lora.name for role, lora in of.adapters.items() if role in prompt.calls)
    cell = {"set": of.name, "variant": str(variant.name), "prompt_id": prompt.index, "prompt": prompt.text}
    cell |= {"calls": calls, "seed": seed, "image": f"{key}.png"}
    others = {single(lora.name) for lora in grid.config.loras} - {single(name) for name in of.names}
    rows = []
    for metric in metrics:
        name = metric.description.name
        try:
            values = _scored(grid, metric, key, prompt.text, comparisons, known)
        except Exception as error:  # a metric, perhaps the user's own, that fails on one image
            grid.failures.add(error, variant.name, prompt.text, seed, metric=name, set=of.name)
            continue
        for reference, value in values.items():
            about, reference_seed = split_seed(reference, seed)
            if about not in others:  # a metric of the user's own may speak of all adapters of the run
                row = {"metric": name, "reference": about, "reference_seed": reference_seed, "value": value}
                rows.append(cell | row)
    return rows


def _comparisons(grid: Grid, own: list[Variant], variant: Variant, prompt: str, seed: int) -> dict[str, str]:
    """Reference -> key of the image it is compared with; "single:x at seed 1" has another seed."""
    others = {
        str(other.name): other.requests[prompt, seed]
        for other in own
        if other.name != variant.name and other.name.kind != "merge"
    }
    seeds = grid.config.seeds
    if len(seeds) > 1 and variant.name.kind != "merge":
        after = seeds[(seeds.index(seed) + 1) % len(seeds)]
        others[at_seed(str(variant.name), after)] = variant.requests[prompt, after]
    return {reference: key for reference, key in others.items() if grid.store.image_path(key).exists()}


def _scored(
    grid: Grid, metric: Metric, key: str, prompt: str, comparisons: Mapping[str, str], known: _Known
) -> Mapping[str, float]:
    """The values of one metric for one image, from an earlier run where it has them."""
    description = metric.description
    about = description.compares_with
    comparisons = comparisons if about == "images" else {}
    concepts = known.concepts if about == "words" else {}
    photos = known.photos if description.photographs else {}
    request = {"metric": description.name, "settings": dict(metric.settings), "image": key, "prompt": prompt}
    request |= {"references": dict(comparisons), "version": package_version()}
    if about == "words":
        request["concepts"] = concepts
    if photos:
        request["photos"] = {name: sorted(picture.key for picture in pictures) for name, pictures in photos.items()}
    request_key = hash_of(request)
    kept = grid.store.recall(request_key)
    if kept is not None:
        checked(kept, description)
        return dict(kept)
    images = {name: Picture(other, grid.store.load_image(other)) for name, other in comparisons.items()}
    picture = Picture(key, grid.store.load_image(key))
    start = time.perf_counter()
    values = metric.score(picture, Asked(prompt, images, concepts, photos))
    grid.seconds["metrics"] += time.perf_counter() - start
    checked(values, description)
    grid.store.keep(request_key, dict(values))
    return values


def checked(values: Mapping[str, float], description: Description) -> None:
    """Raises where a score is none, or lies outside of what the metric says it can be (by more than rounding)."""
    low, high = description.range
    for reference, value in values.items():
        against = f" (against {reference})" if reference else ""
        if not math.isfinite(value):
            raise ValueError(f"the score is not finite{against}")
        if not low - 1e-6 <= value <= high + 1e-6:
            raise ValueError(f"the score {value:.6g} is outside of the metric's range, {low:g} to {high:g}{against}")
