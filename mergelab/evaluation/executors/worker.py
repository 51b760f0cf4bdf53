"""A pipeline with the adapters and the metrics of a run: it merges, draws and scores what it is asked for."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from types import TracebackType
from typing import Any

import torch

from mergelab.adapter import load
from mergelab.evaluation.acting import Pool, open_pool
from mergelab.evaluation.config import Config
from mergelab.evaluation.executors.desk import Desk
from mergelab.evaluation.executors.task import (
    Answer,
    Drawn,
    DrawTask,
    Merged,
    MergeTask,
    Question,
    ScoreTask,
    Shown,
    Task,
    Unit,
)
from mergelab.evaluation.merging import made_together, record_of
from mergelab.evaluation.metrics.metric import Asked, Picture
from mergelab.evaluation.metrics.registry import Profile, open_metrics, profile_of
from mergelab.evaluation.opening import opened, pipeline_keywords, threads_for
from mergelab.evaluation.photographs import all_photographs
from mergelab.pipelines.adapters import check_adapters
from mergelab.pipelines.images import generate_images
from mergelab.pipelines.opening import Pipeline
from mergelab.pipelines.staging import Stage
from mergelab.publishing.recipe import package_version


@dataclass(frozen=True)
class Facts:
    """What a worker says of itself; all of a run say the same.

    Attributes:
        model: the fingerprint of the pipeline.
        fused: whether adapters are fused to be drawn.
        note: why they are not, where that was not asked for.
        keywords: of every call of the pipeline.
        metrics: what is known of them.
        version: of mergelab.
    """

    model: str
    fused: bool
    note: str | None
    keywords: Mapping[str, Any]
    metrics: tuple[Profile, ...]
    version: str


class Worker:
    """Does tasks, one after another, in a `with` statement; the pipeline is left as it was.

    Args:
        config: what is run.
        desk: where files are.
        pipeline: one that is loaded, in place of the configuration's.
        pool: the adapters, where they are here already.

    Raises:
        MergelabError: as `mergelab.evaluate` does, for a pipeline, an adapter or a metric that cannot be opened.
    """

    def __init__(self, config: Config, desk: Desk, pipeline: Pipeline | None = None, pool: Pool | None = None) -> None:
        self._config, self._desk, self._given, self._known_pool = config, desk, pipeline, pool
        self._batch = config.generation.batch
        self._opened = ExitStack()

    def __enter__(self) -> Worker:
        with ExitStack() as opening:
            self._pool = self._known_pool or open_pool(self._config, self._given, False, self._desk.given)
            pipeline, self._model = opening.enter_context(opened(self._config, self._given))
            check_adapters(pipeline, self._pool.loras)
            asked = self._config.generation.adapters
            layers = dict.fromkeys(layer for adapter in self._pool.loras.values() for layer in adapter.layers)
            self._stage = Stage(pipeline, layers, fused=None if asked is None else asked == "fused")
            self._keywords = pipeline_keywords(self._config, pipeline)
            self._metrics = {one.description.name: one for one in open_metrics(self._config)}
            opening.enter_context(self._stage)
            self._opened = opening.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._opened.__exit__(kind, error, trace)

    @cached_property
    def facts(self) -> Facts:
        """What it says of itself."""
        stage, profiles = self._stage, tuple(map(profile_of, self._metrics.values()))
        return Facts(self._model, stage.fused, stage.note, self._keywords, profiles, package_version())

    @cached_property
    def _photographs(self) -> Mapping[str, tuple[Picture, ...]]:
        given = [
            lora.model_copy(update={"references": self._desk.given(lora.references)})
            for lora in self._config.loras
            if lora.references
        ]
        return all_photographs(given)

    def do(self, task: Task) -> Iterator[Any]:
        """The parts of what comes of a task."""
        return task.done_by(self)

    # Merging.

    def merge(self, task: MergeTask) -> Iterator[Merged]:
        """Merges, several at a time."""
        adapters = [self._pool.loras[name] for name in task.names]
        asked = [planned.keywords for planned in task.planned.values()]
        made = made_together(asked, adapters, self._pool.device, self._pool.progress)
        for (label, planned), one in zip(task.planned.items(), made):
            if isinstance(one, Exception):
                yield Merged(label, one)
                continue
            try:
                path, sent = self._desk.leave_merged(planned.path, one[0])
                part = Merged(label, record_of(planned, one[0], one[1], load(path)), sent)
            except Exception as error:  # a full disk
                part = Merged(label, error)
            del one  # not held any longer than it must be
            yield part

    # Drawing.

    def draw(self, task: DrawTask) -> Iterator[Shown | list[Drawn]]:
        """Images of one variant, batch by batch; a batch that is too large for the memory is halved."""
        start, was_unmerged = time.perf_counter(), self._stage.unmerged
        acting = task.acting
        try:
            adapters = acting.loaded(self._pool, self._desk.merged)
            notes = self._stage.show(adapters, acting.fingerprint, acting.combination)
        except Exception as error:  # whatever is wrong with an adapter concerns this variant alone
            yield Shown([], time.perf_counter() - start, error)
            return
        if self._config.memory.compile and (was_unmerged or self._stage.unmerged):
            torch.compiler.reset()  # other layers are another graph, and dynamo gives up after eight
        yield Shown(notes, time.perf_counter() - start)
        there = [(unit, key) for unit, key in task.units if self._desk.has_image(key)]
        if there:
            yield [Drawn(unit, key) for unit, key in there]
        rest, size = [one for one in task.units if one not in there], self._batch
        while units := rest[:size]:
            drawn = self._drawn(units)
            if isinstance(drawn, Exception) and len(units) > 1:  # no memory, or one that must not take others with it
                size = len(units) // 2
                self._batch = size if isinstance(drawn, torch.cuda.OutOfMemoryError) else self._batch
                continue
            yield drawn if isinstance(drawn, list) else [Drawn(*units[0], error=drawn)]
            rest, size = rest[size:], self._batch

    def _drawn(self, units: Sequence[tuple[Unit, str]]) -> list[Drawn] | Exception:
        """One batch; or what it failed with, without the stack that would keep its tensors in memory."""
        start = time.perf_counter()
        try:
            with threads_for(self._config):
                images = generate_images(self._stage.pipeline, [unit for unit, _ in units], self._keywords)
        except Exception as error:
            failed = error.with_traceback(None)
            failed.__context__ = failed.__cause__ = None
            return failed
        each = (time.perf_counter() - start) / len(units)
        return [Drawn(unit, key, each, self._desk.leave_image(key, pixels))
                for (unit, key), pixels in zip(units, images)]  # fmt: skip

    # Scoring.

    def score(self, task: ScoreTask) -> Iterator[list[Answer]]:
        """What the metrics say; the pipeline is the base model's meanwhile."""
        self._stage.clear()
        with threads_for(self._config):
            yield [self._answered(question) for question in task.questions]

    def _answered(self, question: Question) -> Answer:
        start = time.perf_counter()
        values: Mapping[str, float] | Exception
        try:
            images = {name: Picture(key, self._desk.image(key)) for name, key in question.images.items()}
            photos = {name: self._photographs[name] for name in question.photos}
            picture = Picture(question.image, self._desk.image(question.image))
            start = time.perf_counter()
            asked = Asked(question.prompt, images, question.concepts, photos)
            values = dict(self._metrics[question.metric].score(picture, asked))
        except Exception as error:  # a metric, perhaps the user's own, that fails on one image
            values = error
        return Answer(question.key, values, time.perf_counter() - start)
