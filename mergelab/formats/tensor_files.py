"""Files of tensors: safetensors in and out, pickles when allowed."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import struct
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mergelab.checks import readable
from mergelab.errors import FormatError, OutputError, SourceError
from mergelab.formats.files import replacing
from mergelab.formats.mapped import DTYPES, mapped_tensors
from mergelab.formats.messages import one_line
from mergelab.formats.strangers import other_file

PICKLES = (".bin", ".pt", ".pth", ".ckpt")
HASH = "modelspec.hash_sha256"
# The same digest, and one of a small part of the file, as kohya's tools, A1111 and Forge look for them.
_MODEL_HASH, _LEGACY_HASH = "sshs_model_hash", "sshs_legacy_hash"
HASHES = (HASH, _MODEL_HASH, _LEGACY_HASH)
_LEGACY_START, _LEGACY_SIZE = 0x100000, 0x10000

_USUAL = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def read_tensors(path: Path, allow_pickle: bool) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors (memory-mapped where the format allows) and the header's strings.

    Raises:
        SourceError, FormatError: no such file, or one that is damaged or not what its name says; they do not name it.
    """
    if not path.is_file():
        raise SourceError("there is no such file")
    if path.suffix.lower() not in PICKLES:
        return _read_safetensors(path)
    if not allow_pickle:
        raise FormatError(
            "is a pickle by its name, which can run code when it is read; pass allow_pickle=True "
            "(--allow-pickle) to read its tensors with weights_only=True"
        )
    return _read_pickle(path), {}


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        with path.open("rb") as file:
            start = file.read(4096)
        os.fsencode(path).decode("utf-8")  # of other names the package that reads it says nothing sensible
    except UnicodeDecodeError:
        raise SourceError("cannot be read: its name is no UTF-8; rename it") from None
    except OSError as error:
        raise SourceError(f"cannot be read: {error.strerror}") from None
    try:
        tensors, metadata = mapped_tensors(path)
        return check_tensors(tensors), metadata
    except FormatError:
        raise
    except Exception as error:  # a damaged file makes the package raise a dozen different things
        reason = one_line(error)
    # Looked at only now: a header of 640 bytes begins as a pickle does.
    is_archive = start[:4] == b"PK\x03\x04"
    if is_archive and b".pkl" not in start:  # with which the archives of torch.save begin
        raise FormatError("is a ZIP archive, expected safetensors; unpack it and give the file in it")
    if is_archive or start[:2] in (b"\x80\x02", b"\x80\x04", b"\x80\x05"):
        raise FormatError(
            "is a PyTorch pickle, expected safetensors; give it its name (.pt) and pass allow_pickle=True "
            "(--allow-pickle) if you trust it"
        )
    if what := other_file(start, path.suffix):
        raise FormatError(what)
    raise FormatError(f"is no whole safetensors file: {reason}; download or save it again")


def _read_pickle(path: Path) -> dict[str, Tensor]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise FormatError(f"cannot be read with weights_only=True: {one_line(error)}") from None
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
    if not isinstance(content, dict):
        raise FormatError(f"expected tensors by name, found {type(content).__name__}")
    return check_tensors(content)


def check_tensors(tensors: Mapping[Any, Any]) -> dict[str, Tensor]:
    """Tensors by name, raise where they are not; float8 and the like, which hardly any operation takes, as float32."""
    plain: dict[str, Tensor] = {}
    for key, value in tensors.items():
        if not isinstance(key, str) or not isinstance(value, torch.Tensor):
            raise FormatError(f"expected tensors by name, found {type(value).__name__} at {key!r}")
        if value.layout != torch.strided or value.is_meta or value.is_quantized:
            raise FormatError(f"{key!r} is no plain tensor with values: found {value.layout}, {value.device}")
        try:
            usual = not value.is_floating_point() or value.dtype in _USUAL
            plain[key] = value if usual else value.to(torch.float32)
        except (RuntimeError, NotImplementedError):
            raise FormatError(f"{key!r} is {value.dtype}, which cannot be converted to float32") from None
    return plain


def file_order(tensors: Mapping[str, Tensor]) -> list[str]:
    """Wide types first, so that every tensor is aligned; then by name."""
    return sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))


def write_safetensors(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str], digest: Callable[[], str]
) -> None:
    """Write a safetensors file whose bytes depend on nothing but its content.

    (The safetensors package writes the entries of the metadata in a random order, so the same content would give
    other bytes every time.) The file is written beside its target and renamed when it is whole. Its header gets the
    hash of the tensors, and of the part of the file by which A1111 once told models apart, unless the header reaches
    into that part.

    Args:
        path: of the file.
        tensors: by name.
        metadata: the header's strings.
        digest: of `hashed` tensors, these; it is asked for when they are written.
    """
    entries: dict[str, object] = {}
    offset = 0
    for name in file_order(tensors):
        tensor = tensors[name]
        if tensor.dtype not in DTYPES:
            raise OutputError(f"{path}: layer {name}: {tensor.dtype} cannot be stored in a safetensors file")
        end = offset + tensor.numel() * tensor.element_size()
        entries[name] = {"dtype": DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [offset, end]}
        offset = end

    def head(digest: str, legacy: str) -> bytes:
        hashes = {HASH: f"0x{digest}", _MODEL_HASH: digest, _LEGACY_HASH: legacy}
        given = {readable(key): readable(value) for key, value in metadata.items()}
        strings = dict(sorted({**given, **{key: value for key, value in hashes.items() if value}}.items()))
        content = {"__metadata__": strings, **entries}
        text = json.dumps(content, separators=(",", ":"), ensure_ascii=False).encode("utf-8", "replace")
        text += b" " * (-len(text) % 8)
        return struct.pack("<Q", len(text)) + text

    with replacing(path) as temporary, temporary.open("w+b") as file:
        legacy = "0" * 8 if len(start := head("0" * 64, "0" * 8)) <= _LEGACY_START else ""
        file.write(start if legacy else head("0" * 64, ""))
        for name in file_order(tensors):
            file.write(_raw(tensors[name]))
        if legacy:
            file.seek(_LEGACY_START)
            legacy = hashlib.sha256(file.read(_LEGACY_SIZE)).hexdigest()[:8]
        file.seek(0)
        file.write(head(digest(), legacy))


@contextlib.contextmanager
def hashed(tensors: Mapping[str, Tensor]) -> Iterator[Callable[[], str]]:
    """Hashes tensors in a thread of its own, beside what is done meanwhile: nothing else of a large file takes as long.

    Returns:
        A function that waits for the sha256 of the tensors' bytes in the order of the file, in hexadecimal.

    Example:
        >>> with hashed({"a": torch.zeros(2)}) as digest:
        ...     digest() == hashlib.sha256(bytes(8)).hexdigest()
        True
    """
    unwanted = threading.Event()

    def sha256() -> str:
        digest = hashlib.sha256()
        for name in file_order(tensors):
            if unwanted.is_set():
                break
            digest.update(_raw(tensors[name]))
        return digest.hexdigest()

    with ThreadPoolExecutor(1) as pool:
        try:
            yield pool.submit(sha256).result
        finally:
            unwanted.set()


def _raw(tensor: Tensor) -> memoryview:
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
