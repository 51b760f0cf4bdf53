"""A run on many GPUs, event by event: `python -m experiments.scale.simulate` prints the tables of the README.

One writer deals tasks and records what comes back, one task at a time. Each worker has one task: merge (four of a set),
draw (a group of images of one variant, whose file is read and fused where another is there), score. Storage gives each
read and write its whole bandwidth, one after another. A worker that fails loses its task, which is done again, and
opens the pipeline anew. Merges are done before images are drawn, images before they are scored.
"""

from __future__ import annotations

import heapq
import random
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import count
from typing import Literal

from experiments.scale.parts import Parts

Kind = Literal["merge", "draw", "score"]


@dataclass(frozen=True)
class Plan:
    """What is run, and on what.

    Attributes:
        workers: GPUs.
        merges, images: how many, and images of each.
        group, scored: images of a task of drawing, and of scoring (None: all variants of a prompt and seed).
        bandwidth: of the storage, bytes a second.
        failures: mean seconds between failures of one worker.
        kept: a worker goes on with the variant that it shows, where images of it are left.
        seed: of the failures.
    """

    workers: int
    merges: int = 10_000
    images: int = 200
    group: int = 16
    scored: int | None = None
    bandwidth: float = 2e9
    failures: float = float("inf")
    kept: bool = False
    seed: int = 0


@dataclass(frozen=True)
class Task:
    """One piece of work: of which variant, and how many images (or merges)."""

    kind: Kind
    variant: int
    size: int


@dataclass
class Outcome:
    """Seconds of the run, and of each part: over all workers ("draw", "swap", ...), of "writer" and "storage"."""

    plan: Plan
    seconds: float = 0.0
    spent: Counter[str] = field(default_factory=Counter)
    failed: int = 0
    swaps: int = 0
    phases: dict[str, float] = field(default_factory=dict)

    def share(self, part: str) -> float:
        """Of the workers' time; of the run's for the writer and the storage."""
        return self.spent[part] / self.seconds / (1 if part in ("writer", "storage") else self.plan.workers)

    @property
    def gpu_hours(self) -> float:
        """Held, busy or not."""
        return self.seconds * self.plan.workers / 3600


class _Server:
    """What does one thing at a time, in the order in which it is asked."""

    def __init__(self) -> None:
        self.free = self.busy = 0.0

    def serve(self, now: float, seconds: float) -> float:
        """When it has done what it is asked now."""
        self.free, self.busy = max(now, self.free) + seconds, self.busy + seconds
        return self.free


class _Run:
    """The state of a simulation."""

    def __init__(self, parts: Parts, plan: Plan) -> None:
        self.parts, self.plan, self.outcome = parts, plan, Outcome(plan)
        self.writer, self.storage, self.random = _Server(), _Server(), random.Random(plan.seed)
        self.shown: list[int | None] = [None] * plan.workers
        self.fails = [self._life() for _ in range(plan.workers)]
        self.part = [""] * plan.workers
        self.ready = [self._opened(0.0) for _ in range(plan.workers)]

    def _life(self) -> float:
        return self.random.expovariate(1.0) * self.plan.failures

    def _opened(self, now: float) -> float:
        return self.storage.serve(now, self.parts.start_bytes / self.plan.bandwidth) + self.parts.start

    def phase(self, tasks: Iterable[Task]) -> float:
        """Does all tasks; when the last is recorded."""
        left, order, last = deque(tasks), count(), max(min(self.ready), 0.0)
        waiting: list[int] = []
        own: dict[int, deque[Task]] = {}
        events: list[tuple[float, int, int, Iterator[tuple[float, str]] | None, Task | None]] = []
        for worker, ready in enumerate(self.ready):
            heapq.heappush(events, (ready, next(order), worker, None, None))
        while events:
            now, _, worker, steps, task = heapq.heappop(events)
            if now >= self.fails[worker]:  # it failed before it came to this
                back = self._fail(now, worker)
                heapq.heappush(events, (back, next(order), worker, None, None))
                if task is not None:
                    left.appendleft(task)
                    for other in waiting:
                        heapq.heappush(events, (now, next(order), other, None, None))
                    waiting.clear()
                continue
            step = next(steps, None) if steps is not None else None
            if step is not None:
                heapq.heappush(events, (self._step(now, worker, *step), next(order), worker, steps, task))
                continue
            if task is not None:
                last = max(last, now)
            self.ready[worker] = now
            self.part[worker] = ""
            taken = self._take(left, own, worker)
            if taken is None:
                waiting.append(worker)  # until a task is lost
                continue
            heapq.heappush(events, (now, next(order), worker, self._steps(worker, taken), taken))
        self.ready = [max(ready, last) for ready in self.ready]
        return last

    def _take(self, left: deque[Task], own: dict[int, deque[Task]], worker: int) -> Task | None:
        """The next task; with `kept`, a worker takes a variant whole, and tasks of it one by one."""
        mine = own.get(worker)
        if mine:
            return mine.popleft()
        if not left:
            return None
        first = left.popleft()
        if self.plan.kept and first.kind == "draw":
            mine = own.setdefault(worker, deque())
            while left and left[0].variant == first.variant and left[0].kind == "draw":
                mine.append(left.popleft())
        return first

    def _fail(self, now: float, worker: int) -> float:
        """When it is back: it failed in the midst of a step, which would have ended now."""
        failed = self.fails[worker]
        self.outcome.failed += 1
        if self.part[worker]:
            self.outcome.spent[self.part[worker]] -= now - failed
        back = self._opened(now)
        self.outcome.spent["down"] += back - failed
        self.shown[worker], self.fails[worker], self.part[worker] = None, back + self._life(), ""
        return back

    def _step(self, now: float, worker: int, seconds: float, part: str) -> float:
        """When a step is done: of the worker itself, or of the server that it waits for."""
        done, self.part[worker] = now + seconds, part
        if part in ("writer", "storage"):
            done = (self.writer if part == "writer" else self.storage).serve(now, seconds)
            self.part[worker] = f"{part} waited for"
        self.outcome.spent[self.part[worker]] += done - now
        return done

    def _steps(self, worker: int, task: Task) -> Iterator[tuple[float, str]]:
        parts, size, band = self.parts, task.size, self.plan.bandwidth
        yield parts.deal + parts.ask * size, "writer"
        if task.kind == "merge":
            yield parts.merge * size / 4 + parts.keep * size, "merge"
            yield parts.adapter_bytes * size / band, "storage"
            yield parts.record, "writer"
        elif task.kind == "draw":
            if self.shown[worker] != task.variant:
                yield parts.adapter_bytes / band, "storage"
                yield parts.swap, "swap"
                self.shown[worker] = task.variant
                self.outcome.swaps += 1
            yield parts.draw * size, "draw"
            yield parts.encode * size, "encode"
            yield parts.image_bytes * size / band, "storage"
            yield parts.record + parts.drawn * size, "writer"
        else:
            yield parts.image_bytes * size / band, "storage"
            yield parts.score * size, "score"
            yield parts.record + parts.scored * size, "writer"


def simulate(parts: Parts, plan: Plan) -> Outcome:
    """One run of a plan with these service times, from the start of the workers to the last score.

    Args:
        parts: seconds and bytes of each part.
        plan: what is run on how many GPUs; the same seed fails the same way.

    Example:
        >>> one = Parts(10, 0, 1, 0, 5, 0, 0, 4, 1, 0.1, 0, 0, 0, 0, 0)
        >>> round(simulate(one, Plan(workers=1, merges=4, images=16)).seconds, 3)  # 10 + 8 + 4 (1 + 80) + 64 * 0.1
        348.4
    """
    run, begun = _Run(parts, plan), 0.0
    for kind, tasks in (("merge", _merges(plan)), ("draw", _draws(plan)), ("score", _scores(plan))):
        ended = run.phase(tasks)
        run.outcome.phases[kind], begun = ended - begun, ended
    spent = run.outcome.spent
    spent["useful"] = plan.merges * plan.images * parts.draw
    spent["writer"], spent["storage"] = run.writer.busy, run.storage.busy
    return replace(run.outcome, seconds=begun)


def _cut(total: int, size: int) -> Iterator[int]:
    yield from (min(size, total - first) for first in range(0, total, size))


def _merges(plan: Plan) -> Iterator[Task]:
    yield from (Task("merge", -1, size) for size in _cut(plan.merges, 4))


def _draws(plan: Plan) -> Iterator[Task]:
    yield from (Task("draw", variant, s) for variant in range(plan.merges) for s in _cut(plan.images, plan.group))


def _scores(plan: Plan) -> Iterator[Task]:
    sizes = list(_cut(plan.merges, plan.scored or plan.merges))
    yield from (Task("score", -1, size) for _ in range(plan.images) for size in sizes)


if __name__ == "__main__":
    from experiments.scale.tables import main

    main()
