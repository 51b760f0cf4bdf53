"""Two kinds of parallelism, one kind of arithmetic: layers beside each other, or the blocks of one large layer.

While a merge runs, every torch kernel has one thread, and the threads of the machine take layers or blocks instead.
What is computed in which order then depends on the shapes alone: any number of threads gives the same bytes.
"""

from __future__ import annotations

import contextlib
import ctypes
import math
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TypeVar

import torch
from torch import Tensor

from mergelab.linalg.precision import full_precision

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True)
class Workspace:
    """What the computation of a layer may use: threads for its blocks, and memory that the next layer gets again.

    (New memory for every large matrix would cost more than what is computed in it.)

    Attributes:
        pool: threads for the blocks of a layer; None: it has one thread. Several may use it, each for its own layer.
    """

    pool: ThreadPoolExecutor | None = None
    _own: threading.local = field(default_factory=threading.local)

    @property
    def threads(self) -> int:
        """How many there are."""
        return 1 if self.pool is None else self.pool._max_workers

    def map(self, function: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
        """Results in the order of the items; all are computed when the iterator is exhausted."""
        if self.pool is None:
            return map(function, items)
        return self.pool.map(full_precision()(function), items)

    def each(self, function: Callable[[T], object], items: Iterable[T]) -> None:
        """Call the function for every item."""
        for _ in self.map(function, items):
            pass

    def dense(self, *shape: int, device: torch.device) -> Tensor:
        """Uninitialised memory for the changes of layers, the same for every batch of a thread."""
        return self._memory("change", math.prod(shape), device).view(shape)

    def scratch(self, *shape: int, device: torch.device) -> Tensor:
        """Uninitialised memory for a block, the same for every block of a thread."""
        return self._memory("block", math.prod(shape), device).view(shape)

    def _memory(self, use: str, size: int, device: torch.device) -> Tensor:
        found: Tensor | None = getattr(self._own, use, None)
        if found is None or found.numel() < size or found.device != device:
            found = None
            setattr(self._own, use, None)  # not two at a time
            found = torch.empty(size, dtype=torch.float32, device=device)
            setattr(self._own, use, found)
        return found[:size]


@full_precision()
def each_layer(function: Callable[[T], R], names: Iterable[T], device: torch.device | None = None) -> dict[T, R]:
    """What a function says of every layer, in the order of the names: the loop for arithmetic on all of them.

    The layers go to as many threads as torch was to use, and their kernels have one: two threads of a small product
    would wait for each other, on a busy machine longer than they compute. Within another such loop, in one of its
    threads, the layers follow each other.

    Args:
        function: of a name; it may run in several threads at once.
        names: of the layers; what is there twice is computed once.
        device: that computes; one that is no CPU gets the layers one after the other.

    Example:
        >>> each_layer(len, ["conv_in", "proj"])
        {'conv_in': 7, 'proj': 4}
    """
    known = list(dict.fromkeys(names))
    with threads() as pool:
        workspace = Workspace(pool if device is None or device.type == "cpu" else None)
        return dict(zip(known, workspace.map(function, known)))


def panels(length: int, step: int) -> Iterator[slice]:
    """Slices that cover a length.

    Example:
        >>> list(panels(5, 3))
        [slice(0, 3, None), slice(3, 5, None)]
    """
    for start in range(0, length, step):
        yield slice(start, min(start + step, length))


def trim_heap() -> None:
    """Hand the free memory between what is in use back to the system.

    What is kept of the layers of a merge lies scattered among what was freed, and glibc would keep all of that. Does
    nothing where there is another C library.
    """
    if sys.platform == "linux":
        with contextlib.suppress(AttributeError):
            ctypes.CDLL(None).malloc_trim(0)


@contextlib.contextmanager
def threads() -> Iterator[ThreadPoolExecutor | None]:
    """As many threads as torch was to use, each with single-threaded kernels; None for one.

    Example:
        >>> with threads() as pool:
        ...     sorted(Workspace(pool).map(abs, [-1, 2]))
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
