"""Merges at real size from files to a file: seconds by part, memory of the device, floors, waits of the host."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from time import perf_counter
from typing import Any

import torch

import mergelab as ml
from benchmarks.architectures import sampled, usual_layers
from benchmarks.floors import forming, reading_and_writing
from benchmarks.gpu.session import Found, Session
from benchmarks.measuring import wait
from benchmarks.synthetic import write_adapter

ADAPTERS = 4
SMALLER = 16
"""Divides every size of a layer where the script is only tried."""


@dataclass(frozen=True)
class Line:
    """One line of the table.

    Attributes:
        arch, method, options: what is merged and how.
        goal: seconds of a warm run on an H100, reading and writing included.
        memory: what `merge` is told that it may use of the device.
        card: what the allocator is allowed, in GB: a merge that takes more fails, as on a smaller card.
    """

    arch: str
    method: str
    goal: float
    options: Mapping[str, Any] = field(default_factory=dict)
    memory: str | None = None
    card: float | None = None

    @property
    def title(self) -> str:
        """What the line is called."""
        limits = [f"memory={self.memory}"] if self.memory else []
        limits += [f"on a card of {self.card:g} GB"] if self.card else []
        return " ".join([self.arch, self.method, *(str(value) for value in self.options.values()), *limits])


FLUX = (
    Line("flux", "svd", 2),
    Line("flux", "ties", 6),
    Line("flux", "dare", 6),
    Line("flux", "magnitude_prune", 6),
    Line("flux", "ties", 3, {"space": "core"}),
    Line("flux", "ties", 3, {"space": "knots"}),
)
SDXL = (Line("sdxl", "svd", 2), Line("sdxl", "ties", 4), Line("sdxl", "dare", 4))
LIMITED = (
    Line("flux", "ties", 6, memory="8GB"),
    Line("flux", "svd", 2, memory="8GB"),
    Line("flux", "ties", 6, memory="12GB", card=12),
)
LATER = (Line("flux", "cat", 4),)
PEAKS = {None: 12.0, "8GB": 8.0, "12GB": 12.0}
"""What `merge` may be told of memory -> the most that it may take, in GB."""


def write_files(session: Session, arch: str) -> Found:
    """Four synthetic adapters, drawn on the device."""
    layers = usual_layers(arch)
    if session.small:
        layers = {
            name: tuple(max(1, size // SMALLER) if size > SMALLER else size for size in shape)
            for name, shape in sampled(layers, 8).items()
        }
    paths = [session.folder / f"{arch}-{index}.safetensors" for index in range(ADAPTERS)]
    for index, path in enumerate(paths):
        write_adapter(path, layers, session.rank, index, session.device)
    session.layers[arch], session.files[arch] = layers, paths
    return {"layers": len(layers), "bytes": sum(path.stat().st_size for path in paths)}


def keywords_of(session: Session, line: Line, device: str) -> dict[str, Any]:
    """As `merge` takes them."""
    rank = {} if line.method == "cat" else {"rank": session.rank}
    given = {"method": line.method, "device": device, **rank, **line.options}
    if line.memory:
        given["memory"] = line.memory
    return given


def file_to_file(session: Session, line: Line, device: str, output: Path) -> dict[str, float]:
    """Seconds of load, merge and save, and of all."""
    given = keywords_of(session, line, device)
    wait()
    times = [perf_counter()]
    adapters = [ml.load(path) for path in session.files[line.arch]]
    times.append(perf_counter())
    merged = ml.merge(adapters, progress=False, **given)
    wait()
    times.append(perf_counter())
    merged.save(output)
    times.append(perf_counter())
    parts = dict(zip(("load", "merge", "save"), (after - before for before, after in pairwise(times))))
    return {"all": times[-1] - times[0], **parts}


def measure(session: Session, line: Line) -> Found:
    """The first run, the better of two warm ones, and the peak of all.

    One warm run where it takes four seconds; of a line with a limit, whose likes have run before, one run at all.
    """
    output = session.folder / f"{line.arch}-{line.method}.merged.safetensors"
    with _card_of(session, line.card), _peaks(session) as peaks:
        first = file_to_file(session, line, session.device, output)
        more = 0 if line.memory else 2 if first["all"] < 4 else 1
        warm = [file_to_file(session, line, session.device, output) for _ in range(more)]
    if line.method != "svd":  # what the floor reads
        output.unlink()
    best = min(warm or [first], key=lambda run: run["all"])
    missed = [f"{best['all']:.2f} s, not {line.goal:g}"] if best["all"] > line.goal else []
    if (peak := peaks.get("peak_gb", 0.0)) > PEAKS[line.memory]:
        missed.append(f"{peak:.1f} GB, not {PEAKS[line.memory]:g}")
    return {"warm": best, "first": first, "goal": line.goal} | peaks | ({"missed": missed} if missed else {})


@contextmanager
def _peaks(session: Session) -> Iterator[dict[str, float]]:
    """Peaks of the device's memory in GB, known at the end."""
    found: dict[str, float] = {}
    if session.is_cuda:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    yield found
    if session.is_cuda:
        found["peak_gb"] = torch.cuda.max_memory_allocated() / 1e9
        found["reserved_gb"] = torch.cuda.max_memory_reserved() / 1e9


@contextmanager
def _card_of(session: Session, gigabytes: float | None) -> Iterator[None]:
    """With no more memory than a smaller card has."""
    if not gigabytes or not session.is_cuda:
        yield
        return
    torch.cuda.set_per_process_memory_fraction(gigabytes * 1e9 / torch.cuda.mem_get_info()[1])
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


def floors(session: Session, arch: str) -> Found:
    """Read, upload, download and write; and every change formed by matmul on the device."""
    output = session.folder / f"{arch}-svd.merged.safetensors"
    files = reading_and_writing(session.files[arch], output, session.device)
    formed = forming([ml.load(path) for path in session.files[arch]], session.device)
    return {
        "read_upload_download_write": files.seconds,
        "forming": formed["plain"][0],
        "forming_into_one_buffer": formed["preallocated"][0],
    }


def waits(session: Session, line: Line) -> Found:
    """How often the host waits for the device in one merge, by torch's own account, and where most."""
    adapters = [ml.load(path) for path in session.files[line.arch]]
    given = keywords_of(session, line, session.device)
    if not session.is_cuda:
        return {"waits": 0}
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            ml.merge(adapters, progress=False, **given)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    places = Counter(
        "/".join([*Path(w.filename).parts[-2:]]) + f":{w.lineno}" for w in told if "synchroniz" in str(w.message)
    )
    layers = session.layers[line.arch]
    shapes = len(set(layers.values()))
    return {"waits": places.total(), "layers": len(layers), "shapes": shapes, "where": dict(places.most_common(12))}
