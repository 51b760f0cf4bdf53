"""The k-th largest magnitude, exactly, without the host: a radix selection whose state stays on the device."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from mergelab.linalg import host

# How many of the last bits of a magnitude each pass leaves out, and its bins: eleven bits, then ten, then ten.
_LEVELS = ((20, 1 << 11), (10, 1 << 10), (0, 1 << 10))
# As far as float32 counts.
_EXACT = 1 << 24


class RadixSearch:
    """The exact `counts[i]`-th largest magnitude of each of several vectors that are only ever seen in blocks.

    The order of float32 magnitudes is that of their bits. Every pass over all blocks counts the next bits of the
    entries that agree with what is known of the answer: three passes, whatever the values are, and none waits for the
    device.

    Args:
        counts: how many entries of each vector to keep, `0 <= counts[i] <= sizes[i]`.
        sizes: length of each vector.
        device: of the blocks.

    Attributes:
        is_open: whether another pass over all blocks is needed.
        found: `(n,)`, float32 on the device: infinity where nothing is kept, 0 where everything is.

    Example:
        >>> search = RadixSearch([2], [3], torch.device("cpu"))
        >>> while search.is_open:
        ...     for block in ([[1.0, -3.0]], [[2.0]]):
        ...         search.count([0], torch.tensor(block).abs())
        ...     search.narrow()
        >>> search.found
        tensor([2.])
    """

    def __init__(self, counts: Sequence[int], sizes: Sequence[int], device: torch.device) -> None:
        ends = [math.inf if k == 0 else 0.0 if k == size else math.nan for k, size in zip(counts, sizes)]
        self._ends = host.sent(torch.tensor(ends, dtype=torch.float32), device)
        self._need = host.sent(torch.tensor(counts), device)
        self._low = torch.zeros(len(counts), dtype=torch.int32, device=device)
        self._level = 0
        self._reset()

    def _reset(self) -> None:
        if self.is_open:
            bins = _LEVELS[self._level][1]
            self._counted = torch.zeros(len(self._low), bins, dtype=torch.int64, device=self._low.device)

    @property
    def is_open(self) -> bool:
        return self._level < len(_LEVELS)

    @property
    def found(self) -> Tensor:
        return torch.where(self._ends.isnan(), self._low.view(torch.float32), self._ends)

    def count(self, owners: Sequence[int], magnitudes: Tensor) -> None:
        """Take down what blocks hold.

        Args:
            owners: to which vector each belongs; no two to one.
            magnitudes: `(blocks, entries)`, contiguous.
        """
        shift, bins = _LEVELS[self._level]
        bits, everybody = magnitudes.view(torch.int32), list(owners) == list(range(len(self._low)))
        which = None if everybody else host.sent(torch.tensor(owners), bits.device)
        if self._level:
            agreeing = bits ^ (self._low if which is None else self._low[which])[:, None]
            places = agreeing.bitwise_right_shift_(shift)
        else:
            places = bits >> shift
        counted = torch.stack([_histogram(row, bins) for row in places])
        if which is None:
            self._counted += counted
        else:
            self._counted.index_add_(0, which, counted)

    def narrow(self) -> None:
        """After a pass over all blocks: the next bits of the answers."""
        shift, bins = _LEVELS[self._level]
        from_top = self._counted.flip(1).cumsum(1)
        chosen = (from_top < self._need[:, None]).sum(1).clamp_max(bins - 1)
        above = torch.nn.functional.pad(from_top, (1, 0)).gather(1, chosen[:, None])[:, 0]
        self._need -= above
        self._low += ((bins - 1 - chosen) << shift).int()
        self._level += 1
        self._reset()


def _histogram(places: Tensor, bins: int) -> Tensor:
    """How many are 0, how many 1, ...: all else is left out."""
    if _counts_integers(places.device):
        # The last bin takes its upper end as well: one more than is wanted.
        return torch.histc(places, bins + 1, min=0, max=bins + 1)[:bins].long()
    parts = places.float().split(_EXACT)
    return torch.stack([torch.histc(part, bins + 1, min=0, max=bins + 1)[:bins].long() for part in parts]).sum(0)


@lru_cache(maxsize=8)
def _counts_integers(device: torch.device) -> bool:
    """Whether histograms there are of integers, too."""
    try:
        found = torch.histc(
            torch.tensor([-1, 0, 0, 2, 3, 4, 1 << 20], dtype=torch.int32, device=device), 4, min=0, max=4
        )
    except RuntimeError:
        return False
    return found[:3].tolist() == [2, 0, 1]
