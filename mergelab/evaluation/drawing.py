"""What is missing of the grid is drawn, variant by variant; every image is drawn once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import product
from statistics import median
from typing import Any

from mergelab.evaluation.acting import Acting
from mergelab.evaluation.config import Config
from mergelab.evaluation.executors.executor import Executor
from mergelab.evaluation.executors.task import Drawn, DrawTask, Shown, Unit
from mergelab.evaluation.executors.worker import Facts
from mergelab.evaluation.grid import Grid
from mergelab.evaluation.store import SECONDS, Store, hash_of
from mergelab.publishing.recipe import package_version

Failed = dict[tuple[str, str], dict[Unit | None, Exception]]
"""Set and variant -> what failed of it: an image, or, under None, all of it."""


def draw_missing(grid: Grid, executor: Executor) -> None:
    """Draws what is missing of all variants, whose requests get their names first."""
    _name_requests(grid, executor.facts)
    keys = {key for variant in grid.variants for key in variant.requests.values()}
    missing = sum(not grid.store.image_path(key).exists() for key in keys)
    if executor.facts.note:
        grid.notes.append(executor.facts.note)
    failed: Failed = {}
    with grid.bar(missing, "images") as bar:
        try:
            draw(_tasks(grid, executor, bar), grid.store, executor, failed, bar, grid.seconds)
        finally:
            _record(grid, failed)
    for variant in grid.variants:
        grid.notes += grid.store.recall(f"notes of {variant.acting.fingerprint}") or []
        seconds = [grid.store.recall(f"{SECONDS}{key}") for key in variant.requests.values()]
        if known := [value for value in seconds if value is not None]:
            variant.cost["seconds per image"] = median(known)


def draw(
    tasks: Iterable[DrawTask], store: Store, executor: Executor, failed: Failed, bar: Any, seconds: dict[str, float]
) -> None:
    """Draws images, and keeps them with what they took.

    Args:
        tasks: what is to be drawn.
        store: where it is kept.
        executor: who draws.
        failed: grows, as it comes.
        bar: of the images.
        seconds: grows: "pipeline", "adapters".
    """
    for task, part in executor.run(tasks):
        assert isinstance(task, DrawTask)
        told = failed.setdefault((task.set, str(task.variant)), {})
        if isinstance(part, list):
            for image in part:
                _keep(store, image)
                seconds["pipeline"] += (image.seconds or 0.0) / executor.workers
                if image.error is not None:
                    told[image.unit] = image.error
            bar.update(len(part))
        elif isinstance(part, Shown):
            seconds["adapters"] += part.seconds / executor.workers
            if part.error is None:
                store.keep(f"notes of {task.acting.fingerprint}", part.notes)
            else:  # it cannot be shown at all
                told[None] = part.error
                bar.update(len(task.units))
        else:  # workers died of it
            told |= {unit: part for unit, _ in task.units}
            bar.update(len(task.units))


def _name_requests(grid: Grid, facts: Facts) -> None:
    """The key of every image; where sets share an image, it is one."""
    prompts = {one.name: [prompt.text for prompt in one.prompts] for one in grid.sets}
    for variant in grid.variants:
        for unit in product(prompts[variant.set], grid.config.seeds):
            variant.requests[unit] = image_key(grid.config, facts, variant.acting, unit)


def image_key(config: Config, facts: Facts, acting: Acting, unit: Unit) -> str:
    """A hash of all that an image depends on."""
    prompt, seed = unit
    request = {"model": facts.model, "adapters": acting.fingerprint, "prompt": prompt, "seed": seed}
    request |= {"keywords": facts.keywords, "vae_tiling": config.memory.vae_tiling, "compile": config.memory.compile}
    if acting.combination:
        request["version"] = package_version()
    elif acting.anything:
        request["fused"] = facts.fused
    return hash_of(request)


def _tasks(grid: Grid, executor: Executor, bar: Any) -> Iterator[DrawTask]:
    """What is missing of each variant when its turn comes: two may have images in common."""
    for variant in grid.variants:
        todo = [(unit, key) for unit, key in variant.requests.items() if not grid.store.image_path(key).exists()]
        if todo:
            several = f"{variant.set}: " if len(grid.sets) > 1 else ""
            bar.set_postfix_str(f"{several}{variant.name}")
            yield from executor.divided(DrawTask(variant.set, variant.name, variant.acting, tuple(todo)))


def _keep(store: Store, image: Drawn) -> None:
    """An image, and what it took."""
    if image.file is not None:
        store.save_file(image.key, image.file)
    if image.seconds is not None:
        store.keep(f"{SECONDS}{image.key}", image.seconds)


def _record(grid: Grid, failed: Failed) -> None:
    """What failed, in the order of the grid, however it came; without a prompt where nothing of a variant was drawn."""
    for variant in grid.variants:
        told = failed.get((variant.set, str(variant.name)), {})
        for unit in (None, *variant.requests):
            if unit in told:
                grid.failures.add(told[unit], variant.name, *(unit or ()), set=variant.set)
    grid.failures.tell()
