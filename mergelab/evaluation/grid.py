"""The cells of the grid: every image is drawn once, and scored once with every metric."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import product
from statistics import median
from typing import Any

import pandas as pd
import torch
from tqdm import tqdm

from mergelab.evaluation.analysis import COLUMNS
from mergelab.evaluation.config import Config
from mergelab.evaluation.generation import Pipeline, draw, swap
from mergelab.evaluation.scorers import Metric, Picture
from mergelab.evaluation.store import Store, hash_of
from mergelab.evaluation.variants import Variant, failure
from mergelab.provenance import package_version

OTHER_SEED = " at seed "
"""In a reference: the same variant and prompt with another seed, which is what noise looks like."""


@dataclass
class Job:
    """What drawing and scoring share.

    Attributes:
        config, store, variants: what is run, where, and its columns.
        progress: a progress bar; None shows one on a terminal.
        failures: cells that failed, as they come.
        notes: what a pipeline did not load.
        spent: seconds in the pipeline and in the metrics.
    """

    config: Config
    store: Store
    variants: list[Variant]
    progress: bool | None
    failures: list[dict[str, Any]]
    notes: list[str] = field(default_factory=list)
    spent: dict[str, float] = field(default_factory=lambda: {"pipeline": 0.0, "metrics": 0.0})

    def bar(self, total: int, label: str) -> Any:
        """A progress bar."""
        return tqdm(total=total, desc=label, disable=None if self.progress is None else not self.progress)


def generate(job: Job, pipeline: Pipeline, identity: str, keywords: dict[str, Any]) -> None:
    """Draws what is missing, variant by variant, from the model with this fingerprint, called with these keywords."""
    config, store = job.config, job.store
    for variant in job.variants:
        for prompt, seed in product(config.prompts, config.seeds):
            request = {"model": identity, "adapters": variant.identity, "prompt": prompt, "seed": seed}
            request |= {"keywords": keywords, "vae_tiling": config.memory.vae_tiling, "compile": config.memory.compile}
            variant.requests[prompt, seed] = hash_of(request)
    missing = sum(not store.image_path(key).exists() for v in job.variants for key in v.requests.values())
    with job.bar(missing, "images") as bar:
        try:
            for variant in job.variants:
                todo = {unit: key for unit, key in variant.requests.items() if not store.image_path(key).exists()}
                if todo:
                    bar.set_postfix_str(variant.name)
                    _draw_all(job, variant, todo, pipeline, keywords, bar)
        finally:
            swap(pipeline, {})
    for variant in job.variants:
        job.notes += store.recall(f"notes of {variant.identity}") or []
        seconds = [store.recall(f"seconds of {key}") for key in variant.requests.values()]
        if known := [value for value in seconds if value is not None]:
            variant.cost["seconds per image"] = median(known)


def _draw_all(
    job: Job,
    variant: Variant,
    todo: Mapping[tuple[str, int], str],
    pipeline: Pipeline,
    keywords: Mapping[str, Any],
    bar: Any,
) -> None:
    try:
        job.store.keep(f"notes of {variant.identity}", swap(pipeline, variant.adapters))
    except Exception as error:  # whatever diffusers or PEFT find wrong with a file concerns this variant alone
        job.failures.append(failure(variant.name, error))
        bar.update(len(todo))
        return
    if job.config.memory.compile:
        torch.compiler.reset()  # other adapters are another graph, and dynamo gives up after eight
    for (prompt, seed), key in todo.items():
        start = time.perf_counter()
        try:
            pixels = draw(pipeline, prompt, seed, keywords)
        except Exception as error:  # out of memory, a NaN: this cell alone
            job.failures.append(failure(variant.name, error, prompt, seed))
        else:
            seconds = time.perf_counter() - start
            job.spent["pipeline"] += seconds
            job.store.save_image(key, pixels)
            job.store.keep(f"seconds of {key}", seconds)
        bar.update()


def score(job: Job, scorers: list[Metric]) -> pd.DataFrame:
    """Scores every image that is there with every metric, in a fixed order."""
    rows: list[dict[str, Any]] = []
    names = "+".join(lora.name for lora in job.config.loras)
    units = list(product(job.config.prompts, job.config.seeds))
    with job.bar(len(units) * len(job.variants), "scores") as bar:
        for prompt, seed in units:
            for variant in job.variants:
                bar.update()
                key = variant.requests[prompt, seed]
                if not job.store.image_path(key).exists():
                    continue
                comparisons = _comparisons(job, variant, prompt, seed)
                cell = {"set": names, "variant": variant.name, "prompt_id": job.config.prompts.index(prompt)}
                cell |= {"prompt": prompt, "seed": seed, "image": f"{key}.png"}
                for metric in scorers:
                    try:
                        values = _scored(job, metric, key, prompt, comparisons)
                    except Exception as error:  # a metric, perhaps the user's own, that fails on one image
                        job.failures.append(failure(f"{metric.name} of {variant.name}", error, prompt, seed))
                        continue
                    for reference, value in values.items():
                        name, _, other = reference.partition(OTHER_SEED)
                        row = {"metric": metric.name, "reference": name, "value": value}
                        rows.append(cell | row | {"reference_seed": int(other) if other else seed})
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _comparisons(job: Job, variant: Variant, prompt: str, seed: int) -> dict[str, str]:
    """Reference -> key of the image it is compared with; "single:x at seed 1" has another seed."""
    found = {
        other.name: other.requests[prompt, seed]
        for other in job.variants
        if other.name != variant.name and not other.name.startswith("merge:")
    }
    seeds = job.config.seeds
    if len(seeds) > 1 and not variant.name.startswith("merge:"):
        after = seeds[(seeds.index(seed) + 1) % len(seeds)]
        found[f"{variant.name}{OTHER_SEED}{after}"] = variant.requests[prompt, after]
    return {reference: key for reference, key in found.items() if job.store.image_path(key).exists()}


def _scored(job: Job, metric: Metric, key: str, prompt: str, comparisons: Mapping[str, str]) -> Mapping[str, float]:
    """The values of one metric for one image, from an earlier run where it has them."""
    comparisons = comparisons if metric.compares else {}
    request = {"metric": metric.name, "settings": dict(metric.settings), "image": key, "prompt": prompt}
    request_key = hash_of(request | {"references": dict(comparisons), "version": package_version()})
    values = job.store.recall(request_key)
    if values is None:
        references = {name: Picture(other, job.store.load_image(other)) for name, other in comparisons.items()}
        picture = Picture(key, job.store.load_image(key))
        start = time.perf_counter()
        values = dict(metric.score(picture, prompt, references))
        job.spent["metrics"] += time.perf_counter() - start
        if bad := [reference for reference, value in values.items() if not math.isfinite(value)]:
            raise ValueError("the score is not finite" + (f" (against {bad[0]})" if bad[0] else ""))
        job.store.keep(request_key, values)
    return dict(values)
