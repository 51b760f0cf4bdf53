"""The tensors of a safetensors file, mapped into memory: nothing is read before it is computed with.

The safetensors package checks the file. The tensors are made here, in a fifth of its time: an adapter has thousands.
"""

from __future__ import annotations

import json
import mmap
import struct
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
BY_NAME = {name: dtype for dtype, name in DTYPES.items()}


def mapped_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and the header's strings; what is written into a tensor never reaches the file.

    Raises whatever the safetensors package and the system raise for a damaged file.

    Example:
        >>> from mergelab import miniature
        >>> path = miniature.WEIGHTS / "sdxl" / "unet" / "diffusion_pytorch_model.safetensors"
        >>> tensors, strings = mapped_tensors(path)
        >>> tensors["conv_in.weight"].shape, strings
        (torch.Size([64, 8, 3, 3]), {'format': 'pt'})
    """
    with safe_open(path, framework="pt") as checked, path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        entries = json.loads(file.read(length))
        # Copied on write, page by page. Each tensor has a storage of its own size, and keeps the map open.
        content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)

        def mapped(key: str) -> Tensor:
            entry = entries[key]
            dtype, (begin, end) = BY_NAME.get(entry["dtype"]), entry["data_offsets"]
            if dtype is None or begin == end:
                return checked.get_tensor(key)
            count = (end - begin) // dtype.itemsize
            return torch.frombuffer(content, dtype=dtype, count=count, offset=8 + length + begin).view(entry["shape"])

        return {key: mapped(key) for key in checked.keys()}, checked.metadata() or {}  # noqa: SIM118
