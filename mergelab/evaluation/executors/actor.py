"""What runs in a process of Ray: a worker, and what it takes to set one up there."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from mergelab.errors import MergelabError, OptionError
from mergelab.evaluation.config import Config
from mergelab.evaluation.executors.desk import Desk
from mergelab.evaluation.executors.sending import Parcel, SentDesk
from mergelab.evaluation.executors.task import Task
from mergelab.evaluation.executors.worker import Facts, Worker
from mergelab.evaluation.metrics.registry import take_metrics
from mergelab.methods.registry import take_methods


@dataclass(frozen=True)
class Order:
    """What a worker is set up with.

    Attributes:
        config: what is run.
        folder: the run folder, its path whole.
        probe: a file of it, by which a worker tells that it sees the same folder.
        paths: of the configuration, that are on the machine of the writer.
        methods, metrics: of the user's own.
    """

    config: Config
    folder: Path
    probe: str
    paths: tuple[str, ...]
    methods: Mapping[str, Callable[..., Any]]
    metrics: Mapping[str, Any]


@dataclass(frozen=True)
class Opened:
    """A worker that is ready.

    Attributes:
        facts: what it says of itself.
        shared: whether it reaches the files of the run; if not, they are sent both ways.
        where: its machine and process, in words.
        process: its number on its machine.
    """

    facts: Facts
    shared: bool
    where: str
    process: int


class Actor:
    """A worker in a process of its own; errors come back as values, so that Ray takes none for its own."""

    def __init__(self, order: Order) -> None:
        self._order, self._where = order, f"{socket.gethostname()} (process {os.getpid()})"

    def open(self, sent: Mapping[str, Parcel] | None) -> Opened | Exception | None:
        """Set up the worker; None where it asks for what is on the writer's machine: the files at `paths`."""
        order, storage = self._order, self._order.config.executor.storage
        paths = (str(order.folder / order.probe), *order.paths)
        missing = [one for one in paths if not Path(one).exists()]
        if storage == "shared" and missing:
            return OptionError(f"executor.storage: shared: the worker on {self._where} does not see {missing[0]}")
        # A cluster may be another user's: what its processes cannot write comes back to the writer.
        shared = storage != "objects" and not missing and os.access(order.folder / "images", os.W_OK)
        if not shared and sent is None:
            return None
        try:
            take_methods(order.methods)
            take_metrics(order.metrics)
            self._desk = Desk(order.folder) if shared else SentDesk(sent or {})
            self._worker = Worker(order.config, self._desk).__enter__()
            return Opened(self._worker.facts, shared, self._where, os.getpid())
        except Exception as error:
            return portable(error)

    def do(self, task: Task, files: Mapping[Path, Sequence[Any]], images: Mapping[str, bytes]) -> list[Any] | Exception:
        """All parts of what comes of a task; or why the run cannot go on.

        Args:
            task: what is to be done.
            files: merged adapters, each a reference to what was sent of it, in a list: Ray fetches none by itself.
            images: files of images.
        """
        if isinstance(self._desk, SentDesk):
            self._desk.receive({path: _fetching(*one) for path, one in files.items()}, images)
        try:
            return [_portable_part(part) for part in self._worker.do(task)]
        except MergelabError as error:  # a full disk
            return portable(error)


def _fetching(reference: Any) -> Callable[[], Parcel]:
    """What gets a file from Ray's object store, when it is needed."""
    import ray

    return lambda: ray.get(reference)


def portable(error: Exception) -> Exception:
    """An error as it can be sent: one that cannot keeps its name and its words."""
    from ray import cloudpickle

    pickler: Any = cloudpickle
    try:
        pickler.loads(pickler.dumps(error))
    except Exception:  # whatever a class of somebody's own raises
        kind: type[Exception] = type(type(error).__name__, (Exception,), {})
        return kind(str(error))
    return error


def _portable_part(part: Any) -> Any:
    if isinstance(part, list):
        return [_portable_part(one) for one in part]
    values = {one.name: getattr(part, one.name) for one in fields(part)}
    return replace(part, **{name: portable(v) for name, v in values.items() if isinstance(v, Exception)})
