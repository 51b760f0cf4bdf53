"""What an executor is: it deals tasks to workers, and gives back what they found."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TypeVar

from mergelab.evaluation.executors.task import DrawTask, Task
from mergelab.evaluation.executors.worker import Facts


class Executor(ABC):
    """Workers of a run, in a `with` statement.

    Attributes:
        workers: how many there are; seconds that they spend are shared by them.
        facts: what they say of themselves.
    """

    workers: int = 1
    facts: Facts

    @abstractmethod
    def run(self, tasks: Iterable[Task]) -> Iterator[tuple[Task, Any]]:
        """Each part of what comes of the tasks, with its task, in whatever order they come.

        A task may come back in smaller ones. Where workers died of one, its part is the exception that says so.
        """

    def divided(self, task: DrawTask) -> Sequence[DrawTask]:
        """A task in pieces of the size that is dealt at a time."""
        return [task]


Item = TypeVar("Item")


def pieces(items: Sequence[Item], size: int) -> list[tuple[Item, ...]]:
    """Consecutive ones, so many in each.

    Example:
        >>> pieces("abc", 2)
        [('a', 'b'), ('c',)]
    """
    return [tuple(items[first : first + size]) for first in range(0, len(items), size)]
