"""Adapters as trainers leave them: decaying spectra, subspaces partly shared, bfloat16 files in diffusers' names."""

from __future__ import annotations

import hashlib
import math
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

# The k-th singular value is about DECAY**k of the first; the share SHARED of each direction's energy lies in directions
# that all adapters have in common.
DECAY, SHARED = 0.9, 0.3
STRENGTH = 0.5


def _normal(name: str, part: str, rows: int, columns: int) -> Tensor:
    digest = hashlib.sha256(f"{name}/{part}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
    return torch.randn(rows, columns, generator=generator) / math.sqrt(columns)


def factors(name: str, shape: tuple[int, ...], rank: int, index: int) -> tuple[Tensor, Tensor]:
    """`lora_A (rank, in[, kh, kw])` and `lora_B (out, rank[, 1, 1])` of adapter number `index`."""
    out, columns = shape[0], math.prod(shape[1:])
    rank = min(rank, out, columns)
    sizes = DECAY ** torch.arange(rank)
    own, common = math.sqrt(1 - SHARED), math.sqrt(SHARED)
    # One order of importance for all adapters would make them copies of each other.
    order = torch.randperm(rank, generator=torch.Generator().manual_seed(index))
    a = own * _normal(name, f"A{index}", rank, columns) + common * _normal(name, "A", rank, columns)[order]
    b = own * _normal(name, f"B{index}", rank, out) + common * _normal(name, "B", rank, out)[order]
    root = (STRENGTH * sizes).sqrt()[:, None]
    ones = [1] * (len(shape) - 2)
    return (a * root).reshape(rank, *shape[1:]), (b * root).T.reshape(out, rank, *ones)


def write_adapter(path: Path, layers: dict[str, tuple[int, ...]], rank: int, index: int) -> Path:
    """One file; nothing is done where it lies there already."""
    if not path.exists():
        tensors = {}
        for name, shape in layers.items():
            lora_a, lora_b = factors(name, shape, rank, index)
            tensors[f"{name}.lora_A.weight"] = lora_a.bfloat16().contiguous()
            tensors[f"{name}.lora_B.weight"] = lora_b.bfloat16().contiguous()
        part = path.with_suffix(".part")
        save_file(tensors, part)
        part.replace(path)
    return path
