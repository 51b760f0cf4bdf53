"""What is missing of the grid is drawn, variant by variant, in batches; every image is drawn once."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice, product
from statistics import median
from typing import Any

import torch

from mergelab.evaluation.grid import Grid
from mergelab.evaluation.store import hash_of
from mergelab.evaluation.variants import Variant
from mergelab.pipelines.images import generate_images
from mergelab.pipelines.staging import Stage

Unit = tuple[str, int]
"""Prompt and seed."""


def generate_missing(grid: Grid, stage: Stage, fingerprint: str, keywords: dict[str, Any]) -> None:
    """Draws what is missing with a pipeline whose model has this fingerprint, called with these keywords."""
    _name_requests(grid, stage, fingerprint, keywords)
    missing = sum(not grid.store.image_path(key).exists() for v in grid.variants for key in v.requests.values())
    if stage.note:
        grid.notes.append(stage.note)
    with stage, grid.bar(missing, "images") as bar:
        drawing = _Drawing(grid, stage, keywords, bar, grid.config.generation.batch)
        try:
            for variant in grid.variants:
                todo = [unit for unit, key in variant.requests.items() if not grid.store.image_path(key).exists()]
                if todo:
                    bar.set_postfix_str(str(variant.name))
                    drawing.draw_all(variant, todo)
        finally:
            grid.failures.tell()
    for variant in grid.variants:
        grid.notes += grid.store.recall(f"notes of {variant.fingerprint}") or []
        seconds = [grid.store.recall(f"seconds of {key}") for key in variant.requests.values()]
        if known := [value for value in seconds if value is not None]:
            variant.cost["seconds per image"] = median(known)


def _name_requests(grid: Grid, stage: Stage, fingerprint: str, keywords: Mapping[str, Any]) -> None:
    """The key of every image: a hash of all that it depends on."""
    config = grid.config
    for variant in grid.variants:
        for prompt, seed in product(config.prompts, config.seeds):
            request = {"model": fingerprint, "adapters": variant.fingerprint, "prompt": prompt, "seed": seed}
            request |= {"keywords": keywords, "vae_tiling": config.memory.vae_tiling, "compile": config.memory.compile}
            if variant.adapters:
                request["fused"] = stage.fused and variant.combination is None
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
        was_unmerged = self.stage.unmerged
        try:
            notes = self.stage.show(variant.adapters, variant.fingerprint, variant.combination)
        except Exception as error:  # whatever is wrong with an adapter concerns this variant alone
            self.grid.failures.add(error, variant.name)
            self.bar.update(len(todo))
            return
        self.grid.store.keep(f"notes of {variant.fingerprint}", notes)
        if self.grid.config.memory.compile and (was_unmerged or self.stage.unmerged):
            torch.compiler.reset()  # other layers are another graph, and dynamo gives up after eight
        rest = iter(todo)
        while units := list(islice(rest, self.batch)):
            self._draw(variant, units)

    def _draw(self, variant: Variant, units: Sequence[Unit]) -> None:
        """One batch; where it fails, its halves, down to the images that fail."""
        start = time.perf_counter()
        try:
            images = generate_images(self.stage.pipeline, units, self.keywords)
        except Exception as error:  # out of memory, a NaN
            if len(units) > 1:
                half = len(units) // 2
                if isinstance(error, torch.OutOfMemoryError):
                    self.batch = half
                self._draw(variant, units[:half])
                self._draw(variant, units[half:])
            else:
                self.grid.failures.add(error, variant.name, *units[0])
                self.bar.update()
            return
        seconds = time.perf_counter() - start
        self.grid.seconds["pipeline"] += seconds
        for unit, pixels in zip(units, images):
            key = variant.requests[unit]
            self.grid.store.save_image(key, pixels)
            self.grid.store.keep(f"seconds of {key}", seconds / len(units))
            self.bar.update()
