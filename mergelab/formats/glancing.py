"""What files show before they are understood: keys, shapes, dtypes, header; also of files that cannot be read."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mergelab.errors import BaseModelNeeded, MergelabError
from mergelab.formats.differences import parted
from mergelab.formats.keys import group_keys
from mergelab.formats.kinds import kind_of, module_shape
from mergelab.formats.kinds.kind import scaling_of
from mergelab.formats.mapped import BY_NAME, DTYPES
from mergelab.formats.options import ReadOptions
from mergelab.formats.reading import parse
from mergelab.formats.recognising import recognise
from mergelab.formats.streaming import Entry
from mergelab.formats.tensor_files import PICKLES, check_tensors, read_tensors
from mergelab.layer import AdapterData, DerivedLayer, Layer
from mergelab.linalg.lowrank import Factors

# No header of an adapter is longer, and no tensor larger: what says so is damaged.
_LONGEST_HEADER, _MOST_VALUES = 1 << 27, 1 << 29


@dataclass(frozen=True, eq=False)
class Glance:
    """What is seen of some files.

    Attributes:
        entries: key -> dtype, shape and place, as the headers say.
        metadata: the headers' strings.
        tensors: key -> values, float8 as float32; of files that can be read.
        size, promised: bytes that are there, and that the headers speak of.
    """

    entries: Mapping[str, Entry] = field(default_factory=dict)
    metadata: Mapping[str, str] = field(default_factory=dict)
    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    size: int = 0
    promised: int = 0

    def dtype(self, key: str) -> str:
        """Of a tensor in its file, by torch's name.

        Example:
            >>> Glance({"x": Entry("F8_E4M3", (2,), 0, 2)}).dtype("x")
            'float8_e4m3fn'
        """
        name = self.entries[key].dtype
        return str(BY_NAME[name]).removeprefix("torch.") if name in BY_NAME else name


def glance_at(files: Sequence[Path], options: ReadOptions) -> Glance:
    """What some files show; one that is damaged as much as it still shows, and nothing is raised for it."""
    glances = [_glance_at(path, options) for path in files]
    return Glance(
        {key: entry for one in glances for key, entry in one.entries.items()},
        {key: value for one in glances for key, value in one.metadata.items()},
        {key: tensor for one in glances for key, tensor in one.tensors.items()},
        sum(one.size for one in glances),
        sum(one.promised for one in glances),
    )


def glance_over(tensors: Mapping[str, Tensor]) -> Glance:
    """What a state dict shows.

    Example:
        >>> glance_over({"x": torch.zeros(2, 3)}).entries["x"][:2]
        ('F32', (2, 3))
    """
    entries = {
        str(key): Entry(DTYPES.get(x.dtype, str(x.dtype)), tuple(x.shape), 0, x.numel() * x.element_size())
        for key, x in tensors.items()
        if isinstance(x, Tensor)
    }
    try:
        plain = check_tensors(tensors)
    except MergelabError:
        plain = {}
    size = sum(entry.end for entry in entries.values())
    return Glance(entries, {}, plain, size, size)


def structure_of(glance: Glance) -> AdapterData | None:
    """The layers that a header speaks of, with nothing but ones in them; None where it is no adapter's.

    Example:
        >>> shapes = {"unet.conv_in.lora_A.weight": (2, 4), "unet.conv_in.lora_B.weight": (8, 2)}
        >>> glance = Glance({key: Entry("F16", shape, 0, 16) for key, shape in shapes.items()})
        >>> structure_of(glance).layers["unet.conv_in"].shape
        (8, 4)
    """
    if not glance.entries or any(math.prod(entry.shape) > _MOST_VALUES for entry in glance.entries.values()):
        return None
    ones = {
        key: torch.ones((), dtype=torch.float16 if entry.dtype.startswith(("F", "BF")) else torch.int64)
        for key, entry in glance.entries.items()
    }
    try:
        return parse({key: x.expand(glance.entries[key].shape) for key, x in ones.items()}, glance.metadata, "")
    except (MergelabError, RuntimeError):
        return None


def outline_of(glance: Glance) -> AdapterData | None:
    """The modules of an adapter that is a function of its base model, as its file names them: kind, shape, rank, alpha.

    A shape is () where the module does not tell it. There is nothing to compute with; None where it is no adapter's.
    """
    try:
        modules = parted(group_keys(glance.tensors).modules).layers
        shapes = {name: module_shape(module) for name, module in modules.items()}
        found = recognise(shapes, glance.metadata, None, None)
        layers: dict[str, Layer] = {}
        for name, module in modules.items():
            kind, where = kind_of(module), found.located[name]
            dim = kind.dim(module)
            stand_in = DerivedLayer(kind.name, shapes[name], dim, _unknown, scaling_of(module, dim, None), dim=dim)
            layers[f"{where.component}.{where.path}"] = stand_in
    except MergelabError:
        return None
    return AdapterData(layers, {}, found.architecture, glance.metadata)


def _unknown(rows: Sequence[slice]) -> Factors:
    raise BaseModelNeeded("the change is a function of the base model's weights, which are not given")


def _glance_at(path: Path, options: ReadOptions) -> Glance:
    try:
        size = path.stat().st_size
        start, content = (0, {}) if path.suffix.lower() in PICKLES else _header(path, size)
    except (OSError, ValueError, RecursionError, struct.error):
        return Glance()
    strings = content.pop("__metadata__", None)
    metadata = {str(key): str(value) for key, value in strings.items()} if isinstance(strings, dict) else {}
    entries = {key: entry for key, value in content.items() if (entry := _entry(value))}
    promised = start + max((entry.end for entry in entries.values()), default=0)
    try:
        tensors: Mapping[str, Tensor] = read_tensors(path, options.allow_pickle)[0]
    except MergelabError:
        tensors = {}
    if tensors and not entries:  # a pickle has no header
        entries = dict(glance_over(tensors).entries)
    return Glance(entries, metadata, tensors, size, max(promised, size) if tensors else promised)


def _header(path: Path, size: int) -> tuple[int, dict[str, Any]]:
    """Where the tensors begin, and the header; nothing of a file that has none."""
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        if length > min(size - 8, _LONGEST_HEADER):
            return 0, {}
        content = json.loads(file.read(length))
    return 8 + length, content if isinstance(content, dict) else {}


def _entry(value: Any) -> Entry | None:
    """An entry of a header, None for what is none."""
    try:
        dtype, shape, (begin, end) = value["dtype"], value["shape"], value["data_offsets"]
    except (KeyError, TypeError, ValueError):
        return None
    numbers = [begin, end, *shape] if isinstance(shape, list) else [None]
    if not isinstance(dtype, str) or any(type(n) is not int or n < 0 for n in numbers):
        return None
    return Entry(dtype, tuple(shape), begin, end)
