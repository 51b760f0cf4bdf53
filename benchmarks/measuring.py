"""Seconds and bytes of this process."""

from __future__ import annotations

import contextlib
import re
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import torch

from mergelab.linalg.workspace import trim_heap

Result = TypeVar("Result")
_STATUS = Path("/proc/self/status")


def anonymous_bytes() -> int:
    """Memory that belongs to this process alone; pages of memory-mapped files do not count. 0 where Linux is not."""
    if not _STATUS.exists():
        return 0
    found = re.search(r"RssAnon:\s+(\d+) kB", _STATUS.read_text())
    return int(found[1]) * 1024 if found else 0


def wait() -> None:
    """Until a GPU that this process uses has done what it was asked to do."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.synchronize()


def timed(call: Callable[[], Result]) -> tuple[Result, float]:
    """What it returns, and its seconds; what it asked of a GPU is waited for."""
    wait()
    start = time.perf_counter()
    result = call()
    wait()
    return result, time.perf_counter() - start


class Measured:
    """What a block of code took: seconds, processor seconds, and the peak of memory above the start."""

    seconds: float = 0.0
    processor_seconds: float = 0.0
    peak: int = 0


@contextlib.contextmanager
def measured(interval: float = 0.005) -> Iterator[Measured]:
    """Measure a block of code, and what it asked of a GPU; memory is looked at every `interval` seconds."""
    found, stop = Measured(), threading.Event()
    trim_heap()  # what is free already is not what the block frees
    before = anonymous_bytes()

    def watch() -> None:
        while not stop.wait(interval):
            found.peak = max(found.peak, anonymous_bytes() - before)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    wait()
    start, processor = time.perf_counter(), time.process_time()
    try:
        yield found
    finally:
        wait()
        found.seconds, found.processor_seconds = time.perf_counter() - start, time.process_time() - processor
        stop.set()
        watcher.join()
        found.peak = max(found.peak, anonymous_bytes() - before)
