"""Photographs of what an adapter shows: the image files of a folder."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from mergelab.errors import SourceError
from mergelab.evaluation.config import Lora
from mergelab.evaluation.metrics.metric import Picture

ENDINGS = (".png", ".jpg", ".jpeg", ".webp")


class Photograph(Picture):
    """A picture that stays in its file until a metric looks at it: the memory has no room for many of a camera's.

    Attributes:
        path: the file. The key is a hash of its content, so that scores against another photograph do not count.
    """

    def __init__(self, path: Path) -> None:
        self.key, self.path = hashlib.sha256(path.read_bytes()).hexdigest()[:32], path

    @property
    def pixels(self) -> Tensor:
        """float32 (3, h, w) in [0, 1], upright; of what is transparent the colour counts, as with CLIP."""
        with Image.open(self.path) as image:
            upright = ImageOps.exif_transpose(image)
            return torch.from_numpy(np.array(upright.convert("RGB"))).permute(2, 0, 1).float() / 255


def photographs(folder: Path, name: str) -> tuple[Photograph, ...]:
    """The images of a folder, png, jpg, jpeg and webp, by file name; each is read once, to be sure of it.

    Args:
        folder: of image files; what else lies in it is passed over, hidden files too.
        name: of the adapter, for the messages.

    Raises:
        SourceError: there is no such folder, no image in it, or one that cannot be read.
    """
    if not folder.is_dir():
        raise SourceError(f"loras: {name}: references: {folder}: expected a folder of photographs, found none there")
    found = (path for path in folder.iterdir() if path.suffix.lower() in ENDINGS and not path.name.startswith("."))
    files = sorted(path for path in found if path.is_file())
    if not files:
        raise SourceError(
            f"loras: {name}: references: {folder}: has no image; expected files that end in {', '.join(ENDINGS)}"
        )
    return tuple(_read(path, name) for path in files)


def all_photographs(loras: Iterable[Lora]) -> dict[str, tuple[Photograph, ...]]:
    """Name of an adapter -> its photographs, of those that have some; raises as `photographs` does."""
    return {lora.name: photographs(Path(lora.references), lora.name) for lora in loras if lora.references}


def _read(path: Path, name: str) -> Photograph:
    try:
        photograph = Photograph(path)
        _ = photograph.pixels
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:  # SyntaxError: a broken PNG
        raise SourceError(f"loras: {name}: references: {path}: cannot be read as an image: {error}") from error
    return photograph
