"""What is missing of the grid is drawn, variant by variant, in batches; every image is drawn once."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from statistics import median
from typing import Any

import torch

from mergelab.evaluation.grid import Grid
from mergelab.evaluation.store import SECONDS, hash_of
from mergelab.evaluation.variants import Variant
from mergelab.pipelines.images import generate_images
from mergelab.pipelines.staging import Stage
from mergelab.publishing.recipe import package_version

Unit = tuple[str, int]
"""Prompt and seed."""


def generate_missing(grid: Grid, stage: Stage, fingerprint: str, keywords: dict[str, Any]) -> None:
    """Draws what is missing with a pipeline whose model has this fingerprint, called with these keywords."""
    _name_requests(grid, stage.fused, fingerprint, keywords)
    keys = {key for variant in grid.variants for key in variant.requests.values()}
    missing = sum(not grid.store.image_path(key).exists() for key in keys)
    if stage.note:
        grid.notes.append(stage.note)
    with stage, grid.bar(missing, "images") as bar:
        drawing = _Drawing(grid, stage, keywords, bar, grid.config.generation.batch)
        try:
            for variant in grid.variants:
                todo = [unit for unit, key in variant.requests.items() if not grid.store.image_path(key).exists()]
                if todo:
                    several = f"{variant.set}: " if len(grid.sets) > 1 else ""
                    bar.set_postfix_str(f"{several}{variant.name}")
                    drawing.draw_all(variant, todo)
        finally:
            grid.failures.tell()
    for variant in grid.variants:
        grid.notes += grid.store.recall(f"notes of {variant.fingerprint}") or []
        seconds = [grid.store.recall(f"{SECONDS}{key}") for key in variant.requests.values()]
        if known := [value for value in seconds if value is not None]:
            variant.cost["seconds per image"] = median(known)


def _name_requests(grid: Grid, fused: bool, fingerprint: str, keywords: Mapping[str, Any]) -> None:
    """The key of every image: a hash of all that it depends on. Where sets share an image, it is one."""
    config = grid.config
    prompts = {one.name: [prompt.text for prompt in one.prompts] for one in grid.sets}
    for variant in grid.variants:
        for prompt, seed in product(prompts[variant.set], config.seeds):
            request = {"model": fingerprint, "adapters": variant.fingerprint, "prompt": prompt, "seed": seed}
            request |= {"keywords": keywords, "vae_tiling": config.memory.vae_tiling, "compile": config.memory.compile}
            if variant.combination:
                request["version"] = package_version()
            elif variant.adapters:
                request["fused"] = fused
            variant.requests[prompt, seed] = hash_of(request)


@dataclass
class _Drawing:
    """What the drawing of all variants shares; `batch` shrinks where the memory is too small for it."""

    grid: Grid
    stage: Stage
    keywords: Mapping[str, Any]
    bar: Any
    batch: int

    def draw_all(self, variant: Variant, todo: Sequence[Unit]) -> None:
        """All that is missing of one variant."""
        was_unmerged, start = self.stage.unmerged, time.perf_counter()
        try:
            notes = self.stage.show(variant.loaded(), variant.fingerprint, variant.combination)
        except Exception as error:  # whatever is wrong with an adapter concerns this variant alone
            self.grid.failures.add(error, variant.name, set=variant.set)
            self.bar.update(len(todo))
            return
        finally:
            self.grid.seconds["adapters"] += time.perf_counter() - start
        self.grid.store.keep(f"notes of {variant.fingerprint}", notes)
        if self.grid.config.memory.compile and (was_unmerged or self.stage.unmerged):
            torch.compiler.reset()  # other layers are another graph, and dynamo gives up after eight
        rest, size = list(todo), self.batch
        while units := rest[:size]:
            failed = self._draw(variant, units)
            if failed is not None and len(units) > 1:  # no memory, or an image that must not take others with it
                size = len(units) // 2
                self.batch = size if isinstance(failed, torch.cuda.OutOfMemoryError) else self.batch
                continue
            if failed is not None:
                self.grid.failures.add(failed, variant.name, *units[0], set=variant.set)
                self.bar.update()
            rest, size = rest[size:], self.batch

    def _draw(self, variant: Variant, units: Sequence[Unit]) -> Exception | None:
        """One batch; what it failed with, without the stack that would keep its tensors in memory."""
        start = time.perf_counter()
        try:
            images = generate_images(self.stage.pipeline, units, self.keywords)
        except Exception as error:
            failed = error.with_traceback(None)
            failed.__context__ = failed.__cause__ = None
            return failed
        seconds = time.perf_counter() - start
        self.grid.seconds["pipeline"] += seconds
        for unit, pixels in zip(units, images):
            key = variant.requests[unit]
            self.grid.store.save_image(key, pixels)
            self.grid.store.keep(f"{SECONDS}{key}", seconds / len(units))
            self.bar.update()
        return None
