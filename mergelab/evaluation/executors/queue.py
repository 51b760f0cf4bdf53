"""Tasks that wait for a worker, and how often workers died of each."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable

from mergelab.evaluation.executors.task import Task

TRIES = 3
"""Workers that may die of one cell, before that is what comes of it."""


class Queue:
    """First come, first served, but that a worker goes on with what it has at hand.

    A task that a worker died of is divided into its cells, which wait before all others: one of them may be the reason,
    and none of the others is to be lost with it.

    Example:
        >>> from mergelab.evaluation.executors.task import ScoreTask
        >>> waiting = Queue([ScoreTask(()), ScoreTask(())])
        >>> task = waiting.take("")
        >>> len(waiting), waiting.again(task), len(waiting)
        (1, True, 2)
    """

    def __init__(self, tasks: Iterable[Task]) -> None:
        self._again = deque[Task]()
        self._groups: dict[str, deque[Task]] = {}
        self._deaths = Counter[int]()
        self._held = dict[int, Task]()  # keeps what is counted alive, so that no other has its number
        for task in tasks:
            self._groups.setdefault(task.affinity, deque()).append(task)

    def __len__(self) -> int:
        return len(self._again) + sum(map(len, self._groups.values()))

    def __bool__(self) -> bool:
        return bool(self._again or self._groups)

    def take(self, at_hand: str, others: Iterable[str] = ()) -> Task:
        """The next task for a worker.

        Args:
            at_hand: the affinity of what it did last.
            others: those of what other workers do now, with which it does not begin while there is anything else.
        """
        if self._again:
            return self._again.popleft()
        busy = set(others)
        free = next((name for name in self._groups if name not in busy), None)
        name = at_hand if at_hand in self._groups else free if free is not None else next(iter(self._groups))
        group = self._groups[name]
        task = group.popleft()
        if not group:
            del self._groups[name]
        return task

    def again(self, task: Task) -> bool:
        """Takes back what a worker died of; whether it is to be tried again."""
        cells = task.smaller()
        if len(cells) > 1:
            self._again.extendleft(reversed(cells))
            return True
        self._held[id(task)] = task
        self._deaths[id(task)] += 1
        if self._deaths[id(task)] >= TRIES:
            return False
        self._again.appendleft(task)
        return True
