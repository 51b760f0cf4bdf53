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


def _normal(name: str, part: str, rows: int, columns: int, device: str) -> Tensor:
    digest = hashlib.sha256(f"{name}/{part}".encode()).digest()
    generator = torch.Generator(device).manual_seed(int.from_bytes(digest[:7], "big"))
    return torch.randn(rows, columns, generator=generator, device=device) / math.sqrt(columns)


def factors(name: str, shape: tuple[int, ...], rank: int, index: int, device: str = "cpu") -> tuple[Tensor, Tensor]:
    """`lora_A (rank, in[, kh, kw])` and `lora_B (out, rank[, 1, 1])` of adapter number `index`.

    Other numbers on a GPU than on the CPU, where its generator takes far longer.
    """
    out, columns = shape[0], math.prod(shape[1:])
    rank = min(rank, out, columns)
    sizes = DECAY ** torch.arange(rank, device=device)
    own, common = math.sqrt(1 - SHARED), math.sqrt(SHARED)
    # One order of importance for all adapters would make them copies of each other.
    order = torch.randperm(rank, generator=torch.Generator().manual_seed(index)).to(device)

    def directions(part: str, size: int) -> Tensor:
        shared = _normal(name, part, rank, size, device)[order]
        return own * _normal(name, f"{part}{index}", rank, size, device) + common * shared

    a, b = directions("A", columns), directions("B", out)
    root = (STRENGTH * sizes).sqrt()[:, None]
    ones = [1] * (len(shape) - 2)
    return (a * root).reshape(rank, *shape[1:]), (b * root).T.reshape(out, rank, *ones)


def write_adapter(path: Path, layers: dict[str, tuple[int, ...]], rank: int, index: int, device: str = "cpu") -> Path:
    """One file; nothing is done where it lies there already."""
    if not path.exists():
        tensors = {}
        for name, shape in layers.items():
            lora_a, lora_b = factors(name, shape, rank, index, device)
            tensors[f"{name}.lora_A.weight"] = lora_a.bfloat16().contiguous().cpu()
            tensors[f"{name}.lora_B.weight"] = lora_b.bfloat16().contiguous().cpu()
        part = path.with_suffix(".part")
        save_file(tensors, part)
        part.replace(path)
    return path
