"""The k-th largest magnitude, exactly, without the host: a radix selection whose state stays on the device."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

# How many of the last bits of a magnitude each pass leaves out, and its number of bins: eleven bits, then ten, then ten.
_LEVELS = ((20, 1 << 11), (10, 1 << 10), (0, 1 << 10))


class RadixSearch:
    """The exact `counts[i]`-th largest magnitude of each of several vectors that are only ever seen in blocks.

    The order of float32 magnitudes is that of their bits. Every pass over all blocks counts the next bits of the entries that
    agree with what is known of the answer: three passes, whatever the values are, and none waits for the device.

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
        ...     for block in ([1.0, -3.0], [2.0]):
        ...         search.add(0, search.look(0, torch.tensor(block).abs()))
        ...     search.narrow()
        >>> search.found
        tensor([2.])
    """

    def __init__(self, counts: Sequence[int], sizes: Sequence[int], device: torch.device) -> None:
        self._ends = [float("inf") if k == 0 else 0.0 if k == size else None for k, size in zip(counts, sizes)]
        self._need = torch.tensor(counts).to(device)
        self._low = torch.zeros(len(counts), dtype=torch.int32, device=device)
        self._level = 0
        self._reset()

    def _reset(self) -> None:
        if self.is_open:
            bins = _LEVELS[self._level][1]
            self._counted = torch.zeros(len(self._ends), bins, dtype=torch.int64, device=self._low.device)

    @property
    def is_open(self) -> bool:
        return self._level < len(_LEVELS)

    @property
    def found(self) -> Tensor:
        values = self._low.view(torch.float32).clone()
        for i, end in enumerate(self._ends):
            if end is not None:
                values[i] = end
        return values

    def look(self, i: int, magnitudes: Tensor) -> Tensor:
        """How many entries of a block of vector i are in each bin; at most 2^24 of them."""
        shift, bins = _LEVELS[self._level]
        places = (magnitudes.reshape(-1).view(torch.int32) - self._low[i]).bitwise_right_shift_(shift).float()
        return torch.histc(places, bins, min=0, max=bins - 0.5)

    def add(self, i: int, counted: Tensor) -> None:
        """Take down what a block of vector i holds."""
        self._counted[i] += counted.long()

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
