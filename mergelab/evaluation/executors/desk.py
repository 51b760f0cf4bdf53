"""Where a worker finds the files of a run, and where it leaves its own."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from mergelab.adapter import Adapter
from mergelab.evaluation.store import Store


class Desk:
    """The run folder itself, of a worker that can reach it; those who cannot override every function.

    What is left behind is whole or not there, and its name tells its content: who leaves it twice changes nothing.

    Args:
        folder: the run folder.
    """

    def __init__(self, folder: Path) -> None:
        self.store = Store(folder)

    def given(self, path: str) -> str:
        """Where an adapter, or a folder of photographs, of the configuration lies here."""
        return path

    def merged(self, path: Path) -> Path:
        """Where a merged adapter of the run lies here."""
        return path

    def image(self, key: str) -> Tensor:
        """An image of the run, float32 (3, h, w) in [0, 1], the caller's own."""
        return self.store.load_image(key)

    def has_image(self, key: str) -> bool:
        """Whether an image is drawn already."""
        return self.store.image_path(key).exists()

    def leave_image(self, key: str, pixels: Tensor) -> bytes | None:
        """Leaves an image, uint8 (3, h, w), in the run folder: None; or gives the bytes of its file, to be sent."""
        self.store.save_image(key, pixels)
        return None

    def leave_merged(self, path: Path, merged: Adapter) -> tuple[Path, bytes | None]:
        """Leaves a merged adapter: where it lies here, and the bytes of its file, if it is to be sent."""
        path.parent.mkdir(parents=True, exist_ok=True)
        return merged.save(path), None
