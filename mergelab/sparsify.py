"""Trim and drop: which entries of a change a rule gets to see.

`density` is the share that is KEPT, everywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from mergelab.checks import is_number, shown
from mergelab.errors import OptionError

Scope = Literal["layer", "adapter"]
SCOPES = ("layer", "adapter")


def check_density(density: object) -> None:
    """Raise unless `0 < density <= 1`."""
    if not is_number(density) or not 0 < density <= 1:  # type: ignore[operator]
        raise OptionError(f"density is the share of entries kept, expected 0 < density <= 1, found {shown(density)}")


@dataclass(frozen=True)
class Trim:
    """Keep the `floor(density * n)` entries of largest magnitude; entries equal to the smallest kept are all kept.

    Args:
        density: share kept, in (0, 1].
        scope: "layer": n counts the entries of one layer; "adapter": of all layers together, as in the TIES paper
            (arXiv 2306.01708).
    """

    density: float
    scope: Scope = "layer"


@dataclass(frozen=True)
class Drop:
    """Keep every entry with probability `density`, and divide what is kept by `density`.

    Variant: DARE as published (arXiv 2311.03099) with its rescaling, `m * x / density`, m ~ Bernoulli(density).
    """

    density: float


def trim(x: Tensor, threshold: float) -> Tensor:
    """Zero where `|x| < threshold`."""
    return torch.where(x.abs() >= threshold, x, torch.zeros((), dtype=x.dtype, device=x.device))


def trim_topk(x: Tensor, density: float) -> Tensor:
    """Keep exactly `floor(density * n)` entries, ties resolved as `torch.topk` does: PEFT's variant."""
    if density >= 1:
        return x
    mask = torch.zeros(x.numel(), dtype=x.dtype, device=x.device)
    mask[torch.topk(x.abs().reshape(-1), k=int(density * x.numel())).indices] = 1
    return x * mask.reshape(x.shape)


def drop(x: Tensor, density: float, generator: torch.Generator) -> Tensor:
    """Drop and rescale; the draw is made on the CPU, so that no device changes it."""
    if density >= 1:
        return x
    mask = torch.bernoulli(torch.full(x.shape, density, dtype=x.dtype), generator=generator)
    return x * mask.to(x.device) / density


def kth_largest_magnitudes(
    passes: Callable[[], Iterable[tuple[int, Tensor]]], counts: list[int], sizes: list[int]
) -> list[float]:
    """The exact `counts[i]`-th largest magnitude of vector i, which is only ever seen in blocks.

    A radix selection on the bits of float32 (whose order is that of the magnitudes): one pass counts the upper 16
    bits, a second the lower 16 within the bin that holds the answer. Memory is one block and two histograms.

    Args:
        passes: called once for each pass; yields `(i, block)` pairs that together hold every vector once.
        counts: how many entries of each vector to keep, `0 <= counts[i] <= sizes[i]`.
        sizes: length of each vector.

    Returns:
        One threshold per vector: infinity where nothing is kept, 0 where everything is.
    """
    bins = 1 << 16
    thresholds = [float("inf") if k == 0 else 0.0 for k in counts]
    open_ = [i for i, k in enumerate(counts) if 0 < k < sizes[i]]
    if not open_:
        return thresholds
    upper = torch.zeros(len(counts), bins, dtype=torch.int64)
    for i, block in passes():
        if i in open_:
            upper[i] += torch.bincount(_bits(block) >> 16, minlength=bins).cpu()
    chosen, missing = {}, {}
    for i in open_:
        chosen[i], above = _bin_of(upper[i], counts[i])
        missing[i] = counts[i] - above
    lower = torch.zeros(len(counts), bins, dtype=torch.int64)
    for i, block in passes():
        if i in open_:
            bits = _bits(block)
            lower[i] += torch.bincount(bits[bits >> 16 == chosen[i]] & 0xFFFF, minlength=bins).cpu()
    for i in open_:
        low, _ = _bin_of(lower[i], missing[i])
        bits = torch.tensor((chosen[i] << 16) | low, dtype=torch.int32)
        thresholds[i] = float(bits.view(torch.float32))
    return thresholds


def _bits(block: Tensor) -> Tensor:
    return block.float().abs().reshape(-1).contiguous().view(torch.int32)


def _bin_of(histogram: Tensor, k: int) -> tuple[int, int]:
    """The bin that holds the k-th largest entry, and how many entries lie in the bins above it."""
    from_top = histogram.flip(0).cumsum(0)
    position = int(torch.searchsorted(from_top, k))
    above = int(from_top[position - 1]) if position else 0
    return len(histogram) - 1 - position, above
