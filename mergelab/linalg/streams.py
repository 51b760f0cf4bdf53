"""Reading and writing beside the computing: in threads of their own, on a GPU in streams of their own."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

import torch
from torch import Tensor

from mergelab.linalg.precision import full_precision

T = TypeVar("T")
R = TypeVar("R")


class Beside:
    """One thread, and on a GPU one stream, for transfers.

    Args:
        device: to or from which.

    Example:
        >>> with Beside(torch.device("cpu")) as beside:
        ...     list(beside.ahead(lambda x: [torch.full((1,), float(x))], [1, 2]))
        [(1, [tensor([1.])]), (2, [tensor([2.])])]
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._thread = ThreadPoolExecutor(1, initializer=torch.set_num_threads, initargs=(1,))

    def __enter__(self) -> Beside:
        return self

    def __exit__(self, *error: object) -> None:
        self._thread.shutdown(wait=True, cancel_futures=error[0] is not None)

    def ahead(self, read: Callable[[T], Any], items: Iterable[T]) -> Iterator[tuple[T, Any]]:
        """Each item with what is read of it, a nest of tensors, while the one before is computed."""
        waiting: tuple[T, Future[Any]] | None = None
        for item in items:
            following = item, self._thread.submit(self._read, read, item)
            if waiting is not None:
                yield waiting[0], self._arrived(waiting[1])
            waiting = following
        if waiting is not None:
            yield waiting[0], self._arrived(waiting[1])

    def behind(self, finish: Callable[[], R]) -> Future[R]:
        """Called when all is computed that has been asked for so far, while the next is computed."""
        if self._stream is None:
            return self._thread.submit(full_precision()(finish))
        done = torch.cuda.Event()
        done.record(torch.cuda.current_stream(self._device))
        return self._thread.submit(self._finish, finish, done)

    def _read(self, read: Callable[[T], Any], item: T) -> tuple[Any, Any]:
        with full_precision():
            if self._stream is None:
                return read(item), None
            with torch.cuda.stream(self._stream):
                found = read(item)
                there = torch.cuda.Event()
                there.record()
            return found, there

    def _arrived(self, future: Future[Any]) -> Any:
        found, there = future.result()
        if there is not None:
            current = torch.cuda.current_stream(self._device)
            current.wait_event(there)
            for tensor in _tensors(found):
                tensor.record_stream(current)
        return found

    def _finish(self, finish: Callable[[], R], done: Any) -> R:
        with full_precision(), torch.cuda.stream(self._stream):
            self._stream.wait_event(done)  # type: ignore[union-attr]
            return finish()


def _tensors(nest: Any) -> Iterator[Tensor]:
    if isinstance(nest, Tensor):
        yield nest
    elif isinstance(nest, (list, tuple)):
        for item in nest:
            yield from _tensors(item)
