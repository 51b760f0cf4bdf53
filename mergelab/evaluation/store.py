"""The run folder: what is finished in it is never computed again, and what is half written never counts.

It is a folder that is new, empty or an earlier run's: a run replaces no files but those of runs.

config.yaml  images/<hash>.png  adapters/<label>.safetensors + .json  journal.jsonl
scores.parquet  summary.json  results.json  report.html
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from filelock import FileLock, Timeout
from PIL import Image
from torch import Tensor

from mergelab.checks import readable
from mergelab.errors import OutputError
from mergelab.formats.files import replacing

# What a run leaves in its folder, when it is open and when it has drawn: either tells a run from other folders.
_LOCK, _JOURNAL = ".lock", "journal.jsonl"
SECONDS = "seconds of "
"""Before the key of an image, under which is kept what it took."""
LONGEST_NAME = 120
"""Of a file, without what it ends in: many systems take 255 bytes."""
IMAGES_IN_MEMORY = 24
"""Images that stay in memory: each is compared with several others of the same prompt and seed."""

COMPRESSION = 1
"""Of PNG, 0 to 9: the usual 6 takes four times as long for a tenth less, and a GPU waits for it meanwhile."""


def hash_of(request: Mapping[str, Any]) -> str:
    """A hash of a JSON-ready request, the same for the same content."""
    return hashlib.sha256(json.dumps(request, sort_keys=True, default=str).encode()).hexdigest()[:32]


def write(path: Path, content: str | bytes) -> None:
    """Writes a file, whole or not at all."""
    with replacing(path) as partial:
        partial.write_bytes(readable(content).encode("utf-8") if isinstance(content, str) else content)


def to_json(content: Any) -> str:
    """JSON that any reader takes: NaN and infinity become null."""

    def plain(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {str(key): plain(item) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [plain(item) for item in value]
        if isinstance(value, (float, np.floating)):
            return float(value) if math.isfinite(value) else None
        return bool(value) if isinstance(value, np.bool_) else value

    return json.dumps(plain(content), indent=1)


def file_name(label: str) -> str:
    """A label as a file's name: "ties density=0.3" becomes "ties-density-0.3"; a long one ends in its hash."""
    name = re.sub(r"[^\w.-]+", "-", label).strip("-")
    return name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 9]}-{hash_of({'label': label})[:8]}"


def _read_journal(path: Path) -> dict[str, Any]:
    values: dict[str, Any] = {}
    if path.exists():
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                key, value = json.loads(line)
            except ValueError:  # the line that a killed run was writing
                continue
            values[key] = value
    return values


def check_kind(folder: Path, key: str, mine: bool, what: str) -> None:
    """Raises where a folder is the run of another command, as its configuration tells.

    Args:
        folder: of the run.
        key: of a configuration, by which the two are told apart.
        mine: whether those that have it are the right ones.
        what: the others are.

    Raises:
        OutputError: so.
    """
    path = folder / "config.yaml"
    try:
        known = yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else None
    except (OSError, ValueError, yaml.YAMLError):
        return  # what cannot be read is found by whoever needs it
    if isinstance(known, dict) and "pipeline" in known and (key in known) is not mine:
        raise OutputError(f"{folder}: is the run of {what}; choose another folder")


def check_not_replaced(given: Path, target: Path, text: str) -> None:
    """Raises where a run would write another configuration over the one that it was given.

    Args:
        given: the file of the one that was given.
        target: where the run writes its own.
        text: what that would be.

    Raises:
        OutputError: so.
    """
    if target.exists() and target.samefile(given) and given.read_text(encoding="utf-8") != text:
        raise OutputError(
            f"{given}: is the configuration of this run, and would be replaced by its resolved form; an output never "
            "replaces an input: choose another folder for the run, or copy the file out of this one"
        )


def known_seconds(folder: Path) -> list[float]:
    """What the images of a run took, as far as its folder tells."""
    known = _read_journal(folder / _JOURNAL)
    return [float(value) for key, value in known.items() if key.startswith(SECONDS)]


class Store:
    """One run folder, open for one process at a time; use it as a context."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.images = folder / "images"
        self.adapters = folder / "adapters"
        self._remembered: dict[str, Any] = {}
        self._recent: dict[str, Tensor] = {}

    @contextmanager
    def open(self) -> Iterator[Store]:
        """Takes the folder, or says who has it; one that is new and stays empty is removed again.

        Raises:
            OutputError: the folder is in use, is none, cannot be made, or holds what no run of mergelab has left there.
        """
        new = self._is_new()
        try:
            for folder in (self.images, self.adapters):
                folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"{self.folder}: cannot be made a run folder: {error.strerror or error}") from None
        try:
            with FileLock(self.folder / _LOCK, timeout=0):
                for unfinished in self.folder.rglob(".*.tmp"):  # by a killed run
                    unfinished.unlink()
                self._remembered = _read_journal(self._journal)
                yield self
        except Timeout:
            raise OutputError(f"{self.folder}: another run is writing into this folder; choose another") from None
        finally:
            if new and {path.name for path in self.folder.rglob("*")} <= {"images", "adapters", _LOCK}:
                shutil.rmtree(self.folder)

    def _is_new(self) -> bool:
        """Whether there is no such folder yet.

        Raises:
            OutputError: there is something else than an empty folder or a run.
        """
        try:
            if not self.folder.exists():
                return True
            if not self.folder.is_dir():
                raise OutputError(f"{self.folder}: expected a folder for the run, found a file")
            found = sorted(path.name for path in self.folder.iterdir())
        except OSError as error:
            raise OutputError(f"{self.folder}: cannot be used: {error.strerror or error}") from None
        if found and not {_LOCK, _JOURNAL} & set(found):
            raise OutputError(
                f"{self.folder}: is no run folder and holds {found[0]}; expected a new or empty folder, or that of an "
                "earlier run"
            )
        return False

    # Images.

    def image_path(self, key: str) -> Path:
        """Where the image of a request lies."""
        return self.images / f"{key}.png"

    def save_image(self, key: str, pixels: Tensor) -> None:
        """Keeps an image, uint8 (3, h, w)."""
        with replacing(self.image_path(key)) as partial:
            Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(partial, format="PNG", compress_level=COMPRESSION)

    def save_file(self, key: str, content: bytes) -> None:
        """Keeps an image as the file that it is."""
        write(self.image_path(key), content)

    def load_image(self, key: str) -> Tensor:
        """float32 (3, h, w) in [0, 1], the caller's own to write to; the last few are kept."""
        if key not in self._recent:
            while len(self._recent) >= IMAGES_IN_MEMORY:
                del self._recent[next(iter(self._recent))]
            self._recent[key] = self._read_image(key)
        return self._recent[key].clone()

    def _read_image(self, key: str) -> Tensor:
        with Image.open(self.image_path(key)) as image:
            return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1).float() / 255

    # Scores, what a pipeline did not load, seconds: one line each, appended as they come.

    @property
    def _journal(self) -> Path:
        return self.folder / _JOURNAL

    def recall(self, key: str) -> Any:
        """What was kept under this key, or None."""
        return self._remembered.get(key)

    def keep(self, key: str, value: Any) -> None:
        """Keeps a JSON value."""
        self._remembered[key] = value
        with self._journal.open("a", encoding="utf-8") as journal:
            # A killed run may have left half a line: a line break before each keeps it from spoiling this one.
            journal.write(f"\n{json.dumps([key, value])}")
