"""One run of many units: each is timed, printed and kept as it ends, fails alone, is skipped where time is short."""

from __future__ import annotations

import gc
import json
import os
import platform
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from benchmarks.measuring import wait

Found = Mapping[str, Any]
PACKAGES = ("torch", "peft", "diffusers", "transformers", "safetensors", "open_clip_torch", "lpips")


class Overdue(BaseException):
    """What takes too long; no `Exception`, since what takes long may go on after those."""


@dataclass
class Session:
    """What the units share, and what they found.

    Attributes:
        device: that is measured.
        small: small layers and pipelines, to try the script where there is no GPU.
        folder: for files of any size; in memory, if it can be.
        budget: seconds for all units; one that is not expected to end within them is skipped.
        output: the JSON file, written anew after every unit.
        files: architecture -> its synthetic adapters.
        layers: architecture -> canonical name -> shape of the layers that they have.
        units: what was found, in order.
    """

    device: str
    small: bool
    folder: Path
    budget: float
    output: Path | None = None
    files: dict[str, list[Path]] = field(default_factory=dict)
    layers: dict[str, dict[str, tuple[int, ...]]] = field(default_factory=dict)
    units: list[dict[str, Any]] = field(default_factory=list)
    start: float = field(default_factory=time.perf_counter)

    @property
    def rank(self) -> int:
        """Of every adapter and of what is merged to one rank."""
        return 4 if self.small else 32

    @property
    def left(self) -> float:
        """Seconds of the budget."""
        return self.budget - (time.perf_counter() - self.start)

    def unit(self, name: str, expected: float, call: Callable[[], Found]) -> Found | None:
        """Runs one unit; what it raises is reported, and the rest goes on.

        Args:
            name: what is measured.
            expected: seconds on an H100, for the budget; one that takes four times as long is given up.
            call: returns what was found, or raises NotImplementedError where it cannot be asked for.

        Returns:
            What was found; None if it failed or was skipped.
        """
        expected, limit = (1.0, 120.0) if self.small else (expected, 4 * expected + 20)
        if self.left < expected:
            self._keep({"unit": name, "skipped": f"{self.left:.0f} s are left, and it takes about {expected:.0f}"})
            return None
        start, found = time.perf_counter(), None
        try:
            with _at_most(min(limit, self.left + 20)):
                found = call()
                wait()
            outcome: dict[str, Any] = {"found": found}
        except NotImplementedError as missing:
            outcome = {"skipped": str(missing)}
        except (Exception, Overdue):  # also what another unit has left behind: each is told on its own
            outcome = {"failed": traceback.format_exc()}
        self._keep({"unit": name, "seconds": round(time.perf_counter() - start, 2)} | outcome)
        gc.collect()
        if self.is_cuda:
            torch.cuda.empty_cache()
        return found

    @property
    def is_cuda(self) -> bool:
        """Whether there are numbers of a GPU."""
        return self.device.startswith("cuda")

    def _keep(self, outcome: dict[str, Any]) -> None:
        self.units.append(outcome)
        if self.output:
            text = json.dumps({"machine": machine(), "budget": self.budget, "units": self.units}, indent=1)
            self.output.write_text(text, encoding="utf-8")
        told = outcome.get("failed") or outcome.get("skipped") or in_words(outcome["found"])
        state = next(key for key in ("failed", "skipped", "found") if key in outcome)
        mark = "" if state == "found" else f" {state.upper()}"
        passed = time.perf_counter() - self.start
        print(f"[{passed:6.1f} s] {outcome['unit']} ({outcome.get('seconds', 0):.1f} s){mark}: {told}", flush=True)


def in_words(found: Any) -> str:
    """One line.

    Example:
        >>> in_words({"seconds": {"load": 0.123456, "merge": 2}, "layers": 3})
        'seconds (load 0.123, merge 2), layers 3'
    """
    if isinstance(found, Mapping):
        return ", ".join(f"{k} ({in_words(v)})" if isinstance(v, Mapping) else f"{k} {in_words(v)}"
                         for k, v in found.items())  # fmt: skip
    return f"{found:.3g}" if isinstance(found, float) and abs(found) < 100 else str(found)


def machine() -> dict[str, Any]:
    """Of every number."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {"gpu": gpu, "cores": os.cpu_count(), "processor": platform.machine(), "threads": torch.get_num_threads(),
            "python": platform.python_version()} | {name: _version(name) for name in PACKAGES}  # fmt: skip


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


@contextmanager
def _at_most(seconds: float) -> Iterator[None]:
    """Raises Overdue in what takes longer, where a signal can: in the first thread of a program on Unix."""
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "setitimer"):
        yield
        return

    def give_up(*_: Any) -> None:
        raise Overdue(f"given up after {seconds:.0f} s")

    before = signal.signal(signal.SIGALRM, give_up)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
