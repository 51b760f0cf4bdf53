"""This process as the one worker."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

from mergelab.evaluation.acting import Pool
from mergelab.evaluation.config import Config
from mergelab.evaluation.executors.desk import Desk
from mergelab.evaluation.executors.executor import Executor
from mergelab.evaluation.executors.task import Task
from mergelab.evaluation.executors.worker import Worker
from mergelab.pipelines.opening import Pipeline


class Local(Executor):
    """Tasks in the order in which they are given.

    Args:
        config: what is run.
        folder: the run folder.
        pipeline: one that is loaded, in place of the configuration's.
        pool: the adapters.
    """

    def __init__(self, config: Config, folder: Path, pipeline: Pipeline | None, pool: Pool) -> None:
        self._worker = Worker(config, Desk(folder), pipeline, pool)

    def __enter__(self) -> Local:
        self._worker.__enter__()
        self.facts = self._worker.facts
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._worker.__exit__(kind, error, trace)

    def run(self, tasks: Iterable[Task]) -> Iterator[tuple[Task, Any]]:
        """One after another; the next is asked for when the last is done."""
        for task in tasks:
            for part in self._worker.do(task):
                yield task, part
