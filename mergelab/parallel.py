"""Two kinds of parallelism, one kind of arithmetic: layers beside each other, or the blocks of one large layer.

While a merge runs, every torch kernel has one thread, and the threads of the machine take layers or blocks instead.
What is computed in which order then depends on the shapes alone: any number of threads gives the same bytes.
"""

from __future__ import annotations

import contextlib
import math
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TypeVar

import torch
from torch import Tensor

from mergelab.lowrank import exact_arithmetic

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True)
class Lane:
    """What the computation of one layer may use.

    Attributes:
        pool: threads for its blocks; None: it has one thread.
        buffer: memory for its dense change, so that not every large layer asks the system for new pages.
    """

    pool: ThreadPoolExecutor | None = None
    buffer: Tensor | None = None
    _own: threading.local = field(default_factory=threading.local)

    def map(self, function: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
        """Results in the order of the items; all are computed when the iterator is exhausted."""
        if self.pool is None:
            return map(function, items)
        return self.pool.map(exact_arithmetic()(function), items)

    def each(self, function: Callable[[T], object], items: Iterable[T]) -> None:
        """Call the function for every item."""
        for _ in self.map(function, items):
            pass

    def dense(self, rows: int, columns: int, device: torch.device) -> Tensor:
        """An uninitialised matrix; the buffer, where it is large enough."""
        size = rows * columns
        if self.buffer is not None and self.buffer.numel() >= size:
            return self.buffer[:size].view(rows, columns)
        return torch.empty(rows, columns, device=device)

    def scratch(self, *shape: int, device: torch.device) -> Tensor:
        """Uninitialised memory for a block, the same for every block of a thread."""
        size = math.prod(shape)
        found: Tensor | None = getattr(self._own, "memory", None)
        if found is None or found.numel() < size or found.device != device:
            self._own.memory = found = torch.empty(size, device=device)
        return found[:size].view(shape)


@contextlib.contextmanager
def threads() -> Iterator[ThreadPoolExecutor | None]:
    """As many threads as torch was to use, each with single-threaded kernels; None for one.

    Example:
        >>> with threads() as pool:
        ...     sorted(Lane(pool).map(abs, [-1, 2]))
        [1, 2]
    """
    count = torch.get_num_threads()
    if count == 1:
        yield None
        return
    torch.set_num_threads(1)
    try:
        # A new thread has its own idea of how many threads its kernels take.
        with ThreadPoolExecutor(count, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            try:
                yield pool
            except BaseException:
                pool.shutdown(wait=True, cancel_futures=True)
                raise
    finally:
        torch.set_num_threads(count)
