"""A safetensors file written anew tensor by tensor, some of them changed: never more than one of them in memory."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NamedTuple

import torch
from safetensors import safe_open
from torch import Tensor

from mergelab.errors import FormatError, SourceError
from mergelab.formats.mapped import BY_NAME
from mergelab.formats.messages import about, one_line
from mergelab.formats.tensor_files import HASHES

_BLOCK = 1 << 24

Edit = Callable[[Tensor], None]
"""Changes a tensor in place."""


class Entry(NamedTuple):
    """A tensor of a file: its dtype by safetensors' name, its shape, and where its bytes begin and end."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclass(frozen=True)
class Header:
    """What a safetensors file says of itself.

    Attributes:
        path: the file.
        entries: by name, in the order of the header.
        metadata: its strings.
        start: where the tensors begin.
    """

    path: Path
    entries: Mapping[str, Entry]
    metadata: Mapping[str, str]
    start: int


def read_header(path: Path) -> Header:
    """The header of a safetensors file, which is whole.

    Raises:
        SourceError, FormatError: it cannot be read, or is no safetensors file.

    Example:
        >>> from mergelab import miniature
        >>> header = read_header(miniature.WEIGHTS / "sdxl" / "unet" / "diffusion_pytorch_model.safetensors")
        >>> header.entries["conv_in.weight"][:2], dict(header.metadata)
        (('F16', (64, 8, 3, 3)), {'format': 'pt'})
    """
    try:
        with safe_open(path, framework="pt"):
            pass  # it has looked whether sizes and offsets fit together
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            content = json.loads(file.read(length))
    except OSError as error:
        raise SourceError(f"{path}: cannot be read: {error.strerror or one_line(error)}") from None
    except Exception as error:  # a damaged file makes the package raise a dozen different things
        raise FormatError(f"{path}: is no whole safetensors file: {one_line(error)}") from None
    metadata = content.pop("__metadata__", {})
    entries = {
        name: Entry(entry["dtype"], tuple(entry["shape"]), *entry["data_offsets"]) for name, entry in content.items()
    }
    return Header(path, entries, metadata, 8 + length)


def read_rows(header: Header, key: str, rows: slice) -> Tensor:
    """Some rows of one tensor, in the dtype of the file, in memory of their own: nothing else of the file is read.

    Raises:
        FormatError: the file ends early; it is of a dtype that is not known.
        SourceError: it cannot be read any more.
    """
    entry = header.entries[key]
    if (dtype := BY_NAME.get(entry.dtype)) is None:
        raise FormatError(f"{header.path}: {key} is {entry.dtype}, expected one of {', '.join(BY_NAME)}")
    begin, end, _ = rows.indices(entry.shape[0]) if entry.shape else (0, 1, 1)
    row = (entry.end - entry.begin) // max(1, entry.shape[0] if entry.shape else 1)
    raw = bytearray((end - begin) * row)
    try:
        with header.path.open("rb") as file:
            file.seek(header.start + entry.begin + begin * row)
            count = file.readinto(raw)
    except OSError as error:
        raise SourceError(f"{header.path}: cannot be read: {error.strerror or one_line(error)}") from None
    if count != len(raw):
        raise FormatError(f"{header.path}: {key}: the file ends early")
    shape = (end - begin, *entry.shape[1:]) if entry.shape else ()
    return torch.frombuffer(raw, dtype=dtype).reshape(shape) if raw else torch.empty(shape, dtype=dtype)


def rewrite(
    header: Header,
    target: Path,
    edits: Mapping[str, Edit],
    strings: Mapping[str, str],
    advance: Callable[[int], object],
) -> None:
    """Writes a file with the same tensors under the same names, in the same dtypes, shapes and order, some changed.

    Args:
        header: of the file that is read.
        target: what is written.
        edits: by name of a tensor.
        strings: what its header says beside what that of the file says; hashes of what has changed are left out.
        advance: is told how many bytes have been written.

    Raises:
        FormatError: the file ends early, as when somebody is writing it.
        MergelabError: whatever an edit raises.
    """
    metadata = {key: value for key, value in header.metadata.items() if key not in HASHES} | dict(strings)
    content: dict[str, object] = {"__metadata__": metadata} if metadata else {}
    for name, entry in header.entries.items():
        content[name] = {"dtype": entry.dtype, "shape": entry.shape, "data_offsets": [entry.begin, entry.end]}
    text = json.dumps(content, separators=(",", ":"), ensure_ascii=False).encode("utf-8", "replace")
    text += b" " * (-len(text) % 8)
    with header.path.open("rb") as source, target.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        source.seek(header.start)
        for name, entry in sorted(header.entries.items(), key=lambda item: item[1][2:]):
            if name in edits:
                with about(f"{header.path.name}: {name}"):
                    file.write(_edited(source, entry, edits[name]))
                advance(entry.end - entry.begin)
            else:
                _copy(source, file, entry.end - entry.begin, advance)
        file.flush()
        os.fsync(file.fileno())


def _edited(source: BinaryIO, entry: Entry, edit: Edit) -> memoryview:
    raw = bytearray(entry.end - entry.begin)
    if source.readinto(raw) != len(raw):  # type: ignore[attr-defined]
        raise FormatError("the file ends early")
    tensor = torch.frombuffer(raw, dtype=BY_NAME[entry.dtype]).reshape(entry.shape)
    edit(tensor)
    return memoryview(raw)


def _copy(source: BinaryIO, target: BinaryIO, count: int, advance: Callable[[int], object]) -> None:
    while count:
        block = source.read(min(count, _BLOCK))
        if not block:
            raise FormatError(f"{source.name}: the file ends early")
        target.write(block)
        advance(len(block))
        count -= len(block)
