"""Workers of a Ray cluster: each is an actor with a pipeline and the metrics, on a GPU or a share of the processors."""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any

from mergelab.errors import OptionError, OutputError
from mergelab.evaluation.acting import Pool
from mergelab.evaluation.config import Config, Workers
from mergelab.evaluation.executors.actor import Actor, Opened, Order
from mergelab.evaluation.executors.clusters import Cluster, connected, imported
from mergelab.evaluation.executors.executor import Executor, pieces
from mergelab.evaluation.executors.queue import TRIES, Queue
from mergelab.evaluation.executors.sending import files_of, images_of, local_paths, packed
from mergelab.evaluation.executors.task import DrawTask, Task
from mergelab.evaluation.metrics.registry import registered_metrics
from mergelab.evaluation.store import Store
from mergelab.methods.registry import registered_methods

log = logging.getLogger(__name__)

POLL = 2.0
"""Seconds after which it is asked again whether the cluster is there still."""
TELL = 60.0
"""Seconds without any worker after which it is said what is waited for."""
SENT_FILES = 8
"""Merged adapters that are kept in Ray's object store for workers that have no other way to them."""


@dataclass
class _Hand:
    """A worker as its writer knows it.

    Attributes:
        actor: of Ray.
        opened: what it said when it was ready; None before.
        deaths: since it last did anything.
        at_hand: affinity of what it did last.
    """

    actor: Any
    opened: Opened | None = None
    deaths: int = 0
    at_hand: str = ""


class OnRay(Executor):
    """Deals tasks to actors, one at a time to each; Ray places them, and others where one has died.

    Args:
        config: what is run.
        folder: the run folder.
        pool: the adapters.

    Raises:
        OptionError: the package is not there, or the address; the cluster has no GPU, and one is asked for.
        OutputError: the cluster goes away, or no worker can be set up.
        MergelabError: what a worker raises when it is set up.
    """

    def __init__(self, config: Config, folder: Path, pool: Pool) -> None:
        self._ray, self._config, self._folder = imported(config.executor.address), config, folder.resolve()
        self._hands = list[_Hand]()
        self._busy: dict[Any, tuple[_Hand, Task | None]] = {}
        self._parcels: Any = None
        self._files = dict[Path, Any]()
        self._left = ExitStack()
        self._heard = self._looked = time.monotonic()

    def __enter__(self) -> OnRay:
        asked, ray = self._config.executor, self._ray
        with ExitStack() as entered:
            self._cluster: Cluster = entered.enter_context(connected(ray, asked))
            self._gpus, self.workers = _share(asked, self._cluster)
            probe = self._folder / f".{uuid.uuid4().hex}.tmp"
            probe.touch()
            entered.callback(probe.unlink, missing_ok=True)
            loras = [_whole(lora) for lora in self._config.loras]
            self._order = Order(
                self._config.model_copy(update={"loras": loras}), self._folder, probe.name,
                tuple(local_paths(path for lora in loras for path in (lora.path, lora.references))),
                registered_methods(), registered_metrics(),
            )  # fmt: skip
            self._remote = ray.remote(Actor).options(num_cpus=asked.cpus, num_gpus=self._gpus)
            entered.callback(self._dismiss)
            for _ in range(self.workers):
                self._hands.append(_Hand(self._remote.remote(self._order)))
                self._open(self._hands[-1])
            self._first()
            self._left = entered.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._left.__exit__(kind, error, trace)

    @property
    def processes(self) -> list[int]:
        """Of the workers that are ready, on their machines."""
        return [hand.opened.process for hand in self._hands if hand.opened]

    def divided(self, task: DrawTask) -> Sequence[DrawTask]:
        """In groups, whole batches each: those that draw the same images side by side stay the same."""
        batch = self._config.generation.batch
        size = max(1, self._config.executor.group // batch) * batch
        return [replace(task, units=units) for units in pieces(task.units, size)]

    def run(self, tasks: Iterable[Task]) -> Iterator[tuple[Task, Any]]:
        """As they are finished."""
        waiting, mine = Queue(tasks), set[Any]()
        while waiting or mine & self._busy.keys():
            for hand in self._idle():
                if waiting:
                    dealt = waiting.take(hand.at_hand, (other.at_hand for other in self._hands))
                    mine.add(self._dealt(hand, dealt))
            for hand, task, parts in self._news():
                if task is None:
                    self._set_up(hand, parts)
                elif isinstance(parts, self._ray.exceptions.RayError):
                    self._died(hand)
                    if not waiting.again(task):
                        yield task, RuntimeError(f"{TRIES} workers died of it, the last with: {_words(parts)}")
                elif isinstance(parts, Exception):
                    raise parts
                else:
                    hand.deaths = 0
                    yield from ((task, part) for part in parts)

    # Workers.

    def _idle(self) -> list[_Hand]:
        busy = {id(hand) for hand, _ in self._busy.values()}
        return [hand for hand in self._hands if hand.opened and id(hand) not in busy]

    def _open(self, hand: _Hand) -> None:
        """Asks a worker to be set up, which waits until Ray has found a place for it."""
        hand.opened, hand.at_hand = None, ""
        future = hand.actor.open.options(name="open").remote(self._parcels)
        self._busy[future] = hand, None

    def _set_up(self, hand: _Hand, answer: Any) -> None:
        """What a worker says when it is asked to be set up."""
        if answer is None:  # it does not see the files
            if self._parcels is None:
                self._parcels = self._ray.put({path: packed(Path(path)) for path in self._order.paths})
            self._open(hand)
        elif isinstance(answer, Opened):
            hand.opened = answer
            if not hasattr(self, "facts"):
                self.facts = answer.facts
            if answer.facts != self.facts:
                raise OutputError(f"the worker on {answer.where} has another model, or other packages, than the first")
        elif isinstance(answer, self._ray.exceptions.RayError):
            self._died(hand)
        else:
            raise answer

    def _died(self, hand: _Hand) -> None:
        """Another takes its place, wherever Ray has room; one that never does anything is given up.

        One that cannot be set up soon, one that dies of its tasks late: they may be bad, and the next may be good.
        """
        hand.deaths += 1
        self._stop(hand)
        if hand.deaths < (10 * TRIES if hand.opened else 2 * TRIES):
            hand.actor = self._remote.remote(self._order)
            self._open(hand)
            return
        self._hands.remove(hand)
        log.warning("a worker died %d times without having done anything, and is given up", hand.deaths)
        if not self._hands:
            raise OutputError(f"no worker is left: each died {hand.deaths} times; {self._kept}")

    def _first(self) -> None:
        """Waits for the first worker that is ready."""
        while not hasattr(self, "facts"):
            for hand, _, answer in self._news():
                self._set_up(hand, answer)

    def _dismiss(self) -> None:
        for hand in self._hands:
            self._stop(hand)

    def _stop(self, hand: _Hand) -> None:
        try:
            self._ray.kill(hand.actor)
        except Exception:  # it is gone, or the cluster is
            log.debug("a worker could not be stopped", exc_info=True)

    # Tasks.

    def _dealt(self, hand: _Hand, task: Task) -> Any:
        """A task that is on its way."""
        assert hand.opened is not None
        files, images = dict[Path, Any](), dict[str, bytes]()
        if not hand.opened.shared:
            files = {path: [self._sent(path)] for path in files_of(task)}
            store = Store(self._folder)
            images = {key: store.image_path(key).read_bytes() for key in images_of(task)}
        hand.at_hand = task.affinity
        future = hand.actor.do.options(name=task.title).remote(task, files, images)
        self._busy[future] = hand, task
        return future

    def _sent(self, path: Path) -> Any:
        """A reference to a merged adapter in Ray's object store."""
        if path not in self._files:
            while len(self._files) >= SENT_FILES:
                del self._files[next(iter(self._files))]
            self._files[path] = self._ray.put(packed(path))
        return self._files[path]

    def _news(self) -> Iterator[tuple[_Hand, Task | None, Any]]:
        """What has come: of whom, of which task, and what; an error of Ray where the worker died."""
        errors = self._ray.exceptions
        try:
            done, _ = self._ray.wait(list(self._busy), num_returns=1, timeout=POLL)
        except (errors.RaySystemError, ConnectionError) as error:
            raise OutputError(self._gone()) from error
        if time.monotonic() - self._looked > POLL:  # workers go on for a while without their cluster, and then end us
            self._looked = time.monotonic()
            if not self._cluster.answers():
                raise OutputError(self._gone())
        if not done:
            self._waited()
            return
        self._heard = time.monotonic()
        for future in done:
            hand, task = self._busy.pop(future)
            try:
                answer = self._ray.get(future)
            except errors.RayTaskError as error:
                raise error.as_instanceof_cause() from None
            except errors.RayError as error:
                if not self._cluster.answers():
                    raise OutputError(self._gone()) from None
                answer = error
            yield hand, task, answer

    def _waited(self) -> None:
        """Whether the cluster has a machine left, and, once a minute, what is waited for."""
        if not self._cluster.has_machines():
            raise OutputError(self._gone())
        if not any(hand.opened for hand in self._hands) and time.monotonic() - self._heard > TELL:
            self._heard = time.monotonic()
            log.warning("no worker is ready yet: %s; the cluster has %s", self._asked, self._cluster.resources())

    @property
    def _asked(self) -> str:
        cpus = self._config.executor.cpus
        return f"{self.workers} are asked for, each with {cpus:g} CPU and {self._gpus:g} GPU"

    @property
    def _kept(self) -> str:
        return f"what is finished is kept in {self._folder}; run it again to go on"

    def _gone(self) -> str:
        return f"the Ray cluster ({self._cluster.name}) is gone; {self._kept}"


def _share(asked: Workers, cluster: Cluster) -> tuple[float, int]:
    """GPUs of each worker, and how many workers there are to be.

    Raises:
        OptionError: more GPUs are asked for than the cluster has.
    """
    known = cluster.resources()
    there = known.get("GPU", 0.0)
    gpus = asked.gpus if asked.gpus is not None else float(there >= 1)
    if gpus > there:
        raise OptionError(f"executor.gpus: {gpus:g} for each worker, and the cluster ({cluster.name}) has {there:g}")
    room = int(there // gpus) if gpus else int(known.get("CPU", 1.0) // asked.cpus)
    return gpus, asked.workers or max(1, room)


def _whole(lora: Any) -> Any:
    """An adapter of the configuration with paths that hold for every process."""
    given = {key: getattr(lora, key) for key in ("path", "references")}
    there = local_paths(given.values())
    return lora.model_copy(update={key: str(Path(path).resolve()) for key, path in given.items() if path in there})


def _words(error: Exception) -> str:
    """The first line of an error of Ray that says something."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
