"""Writing whole or not at all, a file or a folder; and the hash of a file."""

from __future__ import annotations

import contextlib
import hashlib
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from mergelab.errors import OutputError

# Of the target's name in that of its temporary: four bytes a character at most, of the 255 that file systems allow.
_LONGEST_STEM = 50
# Files that are hashed at a time.
_HASHERS = 4


def sha256_of(path: Path) -> str:
    """Of the whole file, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()


@contextlib.contextmanager
def hashing(paths: Iterable[Path]) -> Iterator[Callable[[Path], str]]:
    """Hashes files in threads of its own, beside what is done meanwhile.

    Args:
        paths: of the files; one that is there twice is read once.

    Returns:
        A function that gives the `sha256_of` any of them, waiting for it if need be; it raises what reading raised.

    Example:
        >>> from mergelab import miniature
        >>> path = miniature.WEIGHTS / "sdxl" / "unet" / "config.json"
        >>> with hashing([path]) as digest_of:
        ...     digest_of(path) == sha256_of(path)
        True
    """
    with ThreadPoolExecutor(_HASHERS) as pool:
        found = {path: pool.submit(sha256_of, path) for path in dict.fromkeys(paths)}
        try:
            yield lambda path: found[path].result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)  # those that nobody waited for are not wanted


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A name beside `path` to write a file or a folder to; it becomes `path` on success, and is removed on any failure.

    Whoever looks sees what was there before, or all of what is new, never half of it.

    Raises:
        OutputError: the system cannot write there (no such folder, no space, no permission).

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "numbers.txt"
        >>> with replacing(path) as temporary:
        ...     _ = temporary.write_text("1 2 3")
        >>> path.read_text(), len(list(path.parent.iterdir()))
        ('1 2 3', 1)
    """
    temporary = _beside(path)
    try:
        yield temporary
        _put(temporary, path)
    except OSError as error:
        raise OutputError(f"{path}: cannot be written: {error.strerror or error}; nothing was changed") from None
    finally:
        _remove(temporary)


@contextlib.contextmanager
def replacing_folder(folder: Path, ours: set[str]) -> Iterator[Path]:
    """As `replacing`, a new folder that exists already when it is given; never takes the place of other people's files.

    Args:
        folder: does not exist, or holds nothing but files named as `ours`, in it and in its folders.
        ours: names of files that may be replaced.

    Raises:
        OutputError: `folder` is a file, or holds another file.
    """
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"{folder}: is a file, expected a folder")
    strange = [path for path in folder.rglob("*") if path.is_file() and path.name not in ours]
    if strange:
        raise OutputError(f"{folder}: holds {strange[0].name}, which would be lost; choose another folder")
    with replacing(folder) as temporary:
        temporary.mkdir()
        yield temporary


def _beside(path: Path) -> Path:
    return path.with_name(f".{path.name[:_LONGEST_STEM]}.{uuid.uuid4().hex[:8]}.tmp")


def _put(new: Path, path: Path) -> None:
    """Rename, over what is there; a folder cannot be renamed over another, so that one steps aside first."""
    if not path.is_dir():
        new.replace(path)
        return
    old = _beside(path)
    path.replace(old)
    try:
        new.replace(path)
    except BaseException:
        old.replace(path)
        raise
    _remove(old)


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
