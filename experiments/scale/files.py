"""The parts of a run that need no GPU: images, journal, requests, adapters, and a task's way through Ray."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor

import mergelab as ml
from benchmarks.gpu.session import Found, Session
from benchmarks.measuring import timed
from experiments.scale.timing import each, seconds_of
from mergelab.evaluation.store import SECONDS, Store, hash_of
from mergelab.pipelines.fingerprints import adapter_hash

SIDE = 1024
LINES = 200_000
"""Of a journal that is read again."""
CELLS = 16
"""Images of a task."""


def units(session: Session) -> None:
    """All of them, the cheapest first."""
    session.unit("requests", 5, partial(requests, session))
    session.unit("journal", 8, partial(journal, session))
    session.unit("images", 12, partial(images, session))
    session.unit("adapter files", 25, partial(adapters, session))
    session.unit("tasks by Ray", 40, partial(tasks, session))


def picture(kind: str, side: int = SIDE) -> Tensor:
    """uint8 (3, side, side): "photographs" (two, side by side and above each other, not resized) or "noise".

    Raises:
        NotImplementedError: scikit-learn, whose the photographs are, is not there.
    """
    if kind == "noise":
        return torch.randint(256, (3, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    try:
        from sklearn.datasets import load_sample_image
    except ImportError:
        raise NotImplementedError("the photographs are those of scikit-learn") from None
    first, second = (load_sample_image(name) for name in ("china.jpg", "flower.jpg"))
    row, other = np.concatenate([first, second], 1), np.concatenate([second, first], 1)
    whole = np.concatenate([row, other, row], 0)[:side, :side]
    return torch.from_numpy(whole.copy()).permute(2, 0, 1).contiguous()


def request(number: int) -> dict[str, Any]:
    """As the grid asks for an image."""
    keywords = {"num_inference_steps": 28, "guidance_scale": 3.5, "width": SIDE, "height": SIDE}
    return {
        "model": "0" * 64, "adapters": f"{number % 10_000:064d}", "prompt": "a photo of a sks in the style of szn",
        "seed": number, "keywords": keywords, "vae_tiling": False, "compile": False, "fused": True,
    }  # fmt: skip


def requests(session: Session) -> Found:
    """What the driver does for every image before it is asked for: its key, and whether it is there."""
    store = Store(session.folder / "requests")
    store.images.mkdir(parents=True)
    keys = [hash_of(request(number)) for number in range(2000)]
    for key in keys[::2]:
        store.image_path(key).touch()

    def listing() -> set[str]:
        return {path.name for path in store.images.iterdir()}

    names = listing()

    def listed(number: int) -> bool:
        return f"{keys[number % 2000]}.png" in names

    return {
        "hash": each(lambda number: hash_of(request(number)), 5000),
        "exists": each(lambda number: store.image_path(keys[number % 2000]).exists(), 20_000),
        "in_a_listing": each(listed, 20_000),
        "listing_per_image": seconds_of(listing) / 1000,
    }


def journal(session: Session) -> Found:
    """A line of the journal: appended, read at the next start, recalled; and what it holds of memory and disk."""
    store = Store(session.folder / "journal")
    score = {"single:subject": 0.273615, "single:style": 0.219842, "": 0.301277}
    count = LINES // 100 if session.small else LINES
    with store.open():
        line = each(lambda number: store.keep(hash_of({"n": number}), score), count)
        store.keep(f"{SECONDS}{'0' * 32}", 6.25)
        size = (store.folder / "journal.jsonl").stat().st_size / (count + 2)
    with _held() as held:
        again = Store(store.folder)
        entered = again.open()
        _, reading = timed(entered.__enter__)
    known = list(again._remembered)
    recall = each(lambda number: again.recall(known[number % count]), 20_000)
    entered.__exit__(None, None, None)
    return {
        "append": line - each(lambda number: hash_of({"n": number}), 2000),
        "bytes_per_line": size,
        "read_per_line": reading / count,
        "held_per_line": held[0] / count,
        "recall": recall,
    }


@contextmanager
def _held() -> Iterator[list[int]]:
    """Bytes of this process's own memory that a block keeps."""
    from benchmarks.measuring import anonymous_bytes
    from mergelab.linalg.workspace import trim_heap

    trim_heap()
    before, found = anonymous_bytes(), [0]
    yield found
    found[0] = anonymous_bytes() - before


def images(session: Session) -> Found:
    """An image of 1024 x 1024 written and read by the store, and what PNG's levels of compression cost and save."""
    from io import BytesIO

    from PIL import Image

    store = Store(session.folder / "images")
    store.images.mkdir(parents=True)
    found: dict[str, Any] = {}
    for kind in ("photographs", "noise"):
        pixels = picture(kind, 64 if session.small else SIDE)
        found[kind] = {
            "save": seconds_of(lambda pixels=pixels: store.save_image("x", pixels)),
            "bytes": store.image_path("x").stat().st_size,
            "load": seconds_of(lambda: store._read_image("x")),
        }
        image, levels = Image.fromarray(pixels.permute(1, 2, 0).numpy()), dict[str, Any]()
        for level in (0, 1, 3, 6, 9):
            buffer = BytesIO()
            taken = seconds_of(lambda: (buffer.seek(0), image.save(buffer, "PNG", compress_level=level)))  # noqa: B023
            levels[str(level)] = {"seconds": taken, "bytes": buffer.tell()}
        found[kind]["levels"] = levels
    data = store.image_path("x").read_bytes()
    found["write_bytes"] = seconds_of(lambda: store.image_path("y").write_bytes(data))
    return found


def adapters(session: Session) -> Found:
    """An adapter of rank 32 for all 494 layers of FLUX.1: opened, hashed and saved. Drawn on the device."""
    from benchmarks.gpu.merging import write_files

    write_files(session, "flux")
    path = session.files["flux"][0]
    adapter = ml.load(path)
    merged = replace(adapter, layers={name: adapter.layers[name] for name in adapter.layers})
    output = session.folder / "saved.safetensors"
    return {
        "layers": len(adapter.layers),
        "bytes": path.stat().st_size,
        "read": seconds_of(path.read_bytes),
        "load": seconds_of(lambda: ml.load(path)),
        "hash": timed(lambda: adapter_hash(ml.load(path)))[1],
        "save": timed(lambda: merged.save(output))[1],
    }


def tasks(session: Session) -> Found:
    """A task of 16 cells through an actor of Ray on this machine, and the same with 16 images as bytes in its answer.

    Raises:
        NotImplementedError: Ray is not there.
    """
    try:
        import ray
    except ImportError:
        raise NotImplementedError("Ray is not installed here") from None
    data = os.urandom(100_000 if session.small else 1_600_000)

    class Worker:
        def keys(self, cells: list[dict[str, Any]]) -> list[tuple[str, float]]:
            return [(hash_of(cell), 6.25) for cell in cells]

        def pictures(self, cells: list[dict[str, Any]]) -> list[bytes]:
            return [data for _ in cells]

    with TemporaryDirectory() as folder:
        ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False, object_store_memory=256 << 20,
                 _temp_dir=str(Path(folder) / "ray"), configure_logging=False)  # fmt: skip
        try:
            worker = ray.remote(Worker).remote()  # type: ignore[attr-defined]
            cells = [request(number) for number in range(CELLS)]
            small = seconds_of(lambda: ray.get(worker.keys.remote(cells)), least=20)
            large = seconds_of(lambda: ray.get(worker.pictures.remote(cells)), least=10)
        finally:
            ray.shutdown()
    return {"cells": CELLS, "keys": small, "images": large, "image_bytes": len(data)}
