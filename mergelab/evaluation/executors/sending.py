"""Files of a run for workers that cannot reach them: what they need comes with a task, what they leave goes back."""

from __future__ import annotations

import hashlib
import io
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mergelab.adapter import Adapter
from mergelab.evaluation.executors.desk import Desk
from mergelab.evaluation.executors.task import DrawTask, ScoreTask, Task

Parcel = Mapping[str, bytes]
"""A file, or those of a folder: path within it -> content; "" is the file itself."""


def packed(path: Path) -> Parcel:
    """A file, or a folder, to be sent."""
    if path.is_file():
        return {"": path.read_bytes()}
    files = (one for one in sorted(path.rglob("*")) if one.is_file())
    return {one.relative_to(path).as_posix(): one.read_bytes() for one in files}


def unpacked(parcel: Parcel, place: Path) -> Path:
    """The file or the folder at a place."""
    for name, content in parcel.items():
        target = place / name if name else place
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
    return place


def files_of(task: Task) -> list[Path]:
    """Merged adapters that a task needs."""
    return list(task.acting.merged.values()) if isinstance(task, DrawTask) else []


def images_of(task: Task) -> list[str]:
    """Keys of the images that a task needs."""
    if not isinstance(task, ScoreTask):
        return []
    return list(dict.fromkeys(key for q in task.questions for key in (q.image, *q.images.values())))


class SentDesk(Desk):
    """A folder of the worker's own, in place of the run folder.

    Args:
        given: paths of the configuration -> what was sent of them.
    """

    def __init__(self, given: Mapping[str, Parcel]) -> None:
        self._own = tempfile.TemporaryDirectory(prefix="mergelab-")
        super().__init__(Path(self._own.name))
        self._given = {path: str(unpacked(parcel, self._place(path))) for path, parcel in given.items()}
        self._files: Mapping[Path, Callable[[], Parcel]] = {}
        self._images: Mapping[str, bytes] = {}

    def _place(self, path: str | Path) -> Path:
        """A folder for each path, so that a file keeps its name."""
        path = Path(path)
        return self.store.folder / hashlib.sha256(str(path).encode()).hexdigest()[:16] / path.name

    def receive(self, files: Mapping[Path, Callable[[], Parcel]], images: Mapping[str, bytes]) -> None:
        """What comes with the next task: merged adapters, read when they are needed, and images."""
        self._files, self._images = files, images

    def given(self, path: str) -> str:
        """What was sent; whatever else is on the Hub or in a store, and read from there."""
        return self._given.get(path, path)

    def merged(self, path: Path) -> Path:
        """What this worker has merged, or was sent."""
        place = self._place(path)
        if not place.exists():
            unpacked(self._files[path](), place)
        return place

    def image(self, key: str) -> Tensor:
        """Of those that were sent."""
        with Image.open(io.BytesIO(self._images[key])) as image:
            return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1).float() / 255

    def has_image(self, key: str) -> bool:
        """Never: it has only what it was sent."""
        return False

    def leave_image(self, key: str, pixels: Tensor) -> bytes:
        """The bytes of its file."""
        self.store.images.mkdir(exist_ok=True)
        self.store.save_image(key, pixels)
        content = self.store.image_path(key).read_bytes()
        self.store.image_path(key).unlink()
        return content

    def leave_merged(self, path: Path, merged: Adapter) -> tuple[Path, bytes]:
        """Kept for what it draws with it, and sent."""
        place = self._place(path)
        place.parent.mkdir(parents=True, exist_ok=True)
        merged.save(place)
        return place, place.read_bytes()


def local_paths(paths: Iterable[str]) -> list[str]:
    """Those of this machine: what else a configuration names is on the Hub, in a store, or ships with the package."""
    return [path for path in dict.fromkeys(paths) if path and Path(path).exists()]
