"""Object stores and everything else that fsspec opens: `s3://` (with s3fs), `gs://`, `sftp://`, ..."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mergelab.errors import MergelabError, SourceError
from mergelab.formats.fetching.cache import BrokenError, Entry, entry
from mergelab.formats.fetching.folders import (
    PEFT_FILES,
    MissingError,
    RefusedError,
    RemoteFolder,
    shown,
    without_secrets,
)
from mergelab.formats.messages import one_line

_BLOCK = 1 << 22
_EXTRAS = {"s3": "s3", "s3a": "s3"}  # protocol -> the extra of mergelab that opens it


def fetch(url: str) -> Path:
    """A file; of a folder PEFT's files or the one file in it.

    Raises:
        SourceError: a package is missing, there is no such file, no access, no connection.
    """
    from fsspec.implementations.local import LocalFileSystem

    system, path = _open(url)
    if isinstance(system, LocalFileSystem):
        return Path(path)
    with _explained(url):
        is_folder = system.isdir(path)
    if is_folder:
        store = _Store(url, system, url.rstrip("/"), path.rstrip("/"))
        return RemoteFolder(shown(url), store.get, store.names).fetch()
    (address, _, name), folder = url.rpartition("/"), path.rpartition("/")[0]
    return RemoteFolder(shown(url), _Store(url, system, address, folder).get).fetch_file(name)


def _open(url: str) -> tuple[Any, str]:
    """The file system of an address, and the path in it."""
    import fsspec

    protocol = url.partition("://")[0].rpartition("::")[2]
    try:
        system, path = fsspec.core.url_to_fs(url)
    except ImportError as error:
        extra = _EXTRAS.get(protocol)
        remedy = f"python -m pip install 'mergelab[{extra}]'" if extra else _said(error)
        raise SourceError(f"{shown(url)}: {protocol}:// needs another package: {remedy}") from None
    except Exception as error:
        raise SourceError(f"{shown(url)}: cannot be opened: {_said(error)}") from None
    system.invalidate_cache()  # what another process has put there since
    return system, path


@dataclass(frozen=True)
class _Store:
    """A folder of a file system: its address and its path there, and what the user gave."""

    url: str
    system: Any
    address: str
    folder: str

    def names(self) -> list[str]:
        with _explained(self.url):
            found = self.system.find(self.folder)
        start = self.folder.lstrip("/") + "/"
        names = [path.lstrip("/").removeprefix(start) for path in found]
        for gone in set(PEFT_FILES) - set(names):
            entry(self.address, gone).forget()
        return names

    def get(self, name: str) -> Path:
        with _explained(f"{self.address}/{name}"):
            place = entry(self.address, name)
            return place.complete(lambda: self._attempt(f"{self.folder}/{name}", place))

    def _attempt(self, path: str, place: Entry) -> Path:
        """Ask for what is not here: the rest of a part, or the file if it is another version than the one kept."""
        try:
            version, size = self.system.ukey(path), self.system.info(path).get("size")
        except FileNotFoundError:
            place.forget()
            raise
        kept, part = place.whole, place.part
        if kept and kept.version == version:
            return kept.path
        start = part.size if part and part.version == version else 0
        return place.write(path.rpartition("/")[2], version, self._blocks(path, start), start, size)

    def _blocks(self, path: str, start: int) -> Iterator[bytes]:
        try:
            with self.system.open(path, "rb") as remote:
                if start:
                    remote.seek(start)
                while block := remote.read(_BLOCK):
                    yield block
        except Exception as error:
            raise BrokenError(_said(error)) from None


def _said(error: Exception) -> str:
    return without_secrets(one_line(error))


@contextmanager
def _explained(address: str) -> Iterator[None]:
    """The many errors of file systems in words."""
    address = shown(address)
    try:
        yield
    except MergelabError as error:
        error.args = (f"{address}: {error}",)
        raise
    except FileNotFoundError:
        raise MissingError(f"{address}: there is no such file or folder") from None
    except PermissionError as error:
        raise RefusedError(f"{address}: no access, {_said(error)}: check the credentials") from None
    except Exception as error:
        if "Credentials" in type(error).__name__:
            raise SourceError(
                f"{address}: needs credentials, and there are none; for S3 set AWS_PROFILE, or AWS_ACCESS_KEY_ID and "
                "AWS_SECRET_ACCESS_KEY"
            ) from None
        raise SourceError(f"{address}: could not be fetched: {type(error).__name__}: {_said(error)}") from None
