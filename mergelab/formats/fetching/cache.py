"""Downloads that are kept: whole files under their names, and the beginnings of those that broke off."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from filelock import FileLock
from tqdm import tqdm

from mergelab.errors import SourceError
from mergelab.formats.peft_config import PEFT_CONFIG, PEFT_WEIGHTS

_TRIES = 4


class BrokenError(SourceError):
    """A connection ended before the file did."""


@dataclass(frozen=True)
class Kept:
    """A file, or the beginning of one, and the version of the remote file that it is of ("" where none is known)."""

    path: Path
    version: str

    @property
    def size(self) -> int:
        """In bytes."""
        return self.path.stat().st_size


@dataclass(frozen=True)
class Entry:
    """The place of one address in the cache.

    Attributes:
        folder: of what is kept; the files of one PEFT folder are in one.
        key: of the notes on this address in the folder.
    """

    folder: Path
    key: str

    @property
    def whole(self) -> Kept | None:
        """The file, if it is here."""
        noted = _read(self.folder / f".{self.key}.json")
        path = self.folder / noted.get("name", "")
        return Kept(path, noted.get("version", "")) if path.is_file() else None

    @property
    def part(self) -> Kept | None:
        """The beginning of a file of a known version, if there is one to go on from."""
        noted = _read(self.folder / f".{self.key}.part.json")
        kept = Kept(self._part, noted.get("version", ""))
        return kept if kept.version and self._part.is_file() and kept.size else None

    @property
    def _part(self) -> Path:
        return self.folder / f".{self.key}.part"

    def write(self, name: str, version: str, blocks: Iterable[bytes], start: int, size: int | None) -> Path:
        """Keep a file, which appears under its name once it is whole.

        Args:
            name: of the file.
            version: of the remote file, that the next download can compare; "": it says none, and no part is kept.
            blocks: of bytes, from `start` on.
            start: how much of it is here already.
            size: of the whole file; None where it is not known.

        Raises:
            BrokenError: fewer or more bytes came than were said.
            SourceError: the disk does not take them.
        """
        try:
            if not start:
                self.forget_part()
            _note(self.folder / f".{self.key}.part.json", {"version": version})
            with self._part.open("ab" if start else "wb") as file, _bar(name, start, size) as bar:
                for block in blocks:
                    file.write(block)
                    bar.update(len(block))
            found = self._part.stat().st_size
            if size is not None and found != size:
                if found > size:
                    self.forget_part()
                raise BrokenError(f"{found} of {size} bytes came")
            self._part.replace(self.folder / name)
            _note(self.folder / f".{self.key}.json", {"name": name, "version": version})
            self.forget_part()
        except OSError as error:
            raise _unkept(error) from None
        finally:
            if not version:
                self.forget_part()
        return self.folder / name

    def forget(self) -> None:
        """The file is there no more, and is here no more either."""
        with suppress(OSError):
            if kept := self.whole:
                kept.path.unlink()
            (self.folder / f".{self.key}.json").unlink(missing_ok=True)
        self.forget_part()

    def forget_part(self) -> None:
        """The next download begins anew."""
        for path in (self._part, self.folder / f".{self.key}.part.json"):
            with suppress(OSError):
                path.unlink()

    def complete(self, attempt: Callable[[], Path]) -> Path:
        """Try to download, again as long as each attempt gets further; one process at a time.

        Raises:
            BrokenError: the last attempt did not reach the end.
        """
        with self._alone():
            for _ in range(_TRIES):
                before = self.part.size if self.part else 0
                try:
                    return attempt()
                except BrokenError:
                    after = self.part.size if self.part else 0
                    if after <= before:
                        break
            remedy = f"the next try goes on after {after} bytes" if after else "try again"
            raise BrokenError(f"the connection broke off before the end of the file; {remedy}")

    @contextmanager
    def _alone(self) -> Iterator[None]:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            lock = FileLock(self.folder / ".lock")
            lock.acquire()
        except OSError as error:
            raise _unkept(error) from None
        try:
            yield
        finally:
            lock.release()


def entry(address: str, name: str = "") -> Entry:
    """The place of a file in the cache: that of a folder's address and a name in it, or of an address alone.

    PEFT's files keep the layout of their folder, any other file has a folder of its own.

    Raises:
        SourceError: the name, which may be another's choice, would lead out of the folder.
    """
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts:
        raise SourceError(f"the name {name!r} leads out of its folder, expected one in it; nothing was fetched")
    if path.name in (PEFT_CONFIG, *PEFT_WEIGHTS):
        return Entry(_root() / _digest(address) / path.parent, path.name)
    return Entry(_root() / _digest(f"{address}/{name}" if name else address), "download")


def _root() -> Path:
    """Where downloads are kept: `MERGELAB_CACHE`, or `mergelab` in the user's cache."""
    default = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "mergelab"
    return Path(os.environ.get("MERGELAB_CACHE") or default).expanduser()


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:24]


def _unkept(error: OSError) -> SourceError:
    reason = error.strerror or error
    return SourceError(f"downloads cannot be kept in {_root()}: {reason}; MERGELAB_CACHE names another folder")


def _bar(name: str, start: int, size: int | None) -> tqdm[Any]:
    """On a terminal; none in a pipe."""
    return tqdm(desc=name, initial=start, total=size, unit="B", unit_scale=True, disable=None, leave=False)


def _note(path: Path, content: dict[str, str]) -> None:
    path.write_text(json.dumps(content), encoding="utf-8")


def _read(path: Path) -> dict[str, str]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
