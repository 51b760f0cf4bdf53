"""The k-th largest magnitude, exactly, of vectors that are only ever seen in blocks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

# So many candidates of one vector are kept and searched; of more, a histogram is taken.
MAX_CANDIDATES = 1 << 22
_BINS = 1 << 16
# The bracket reaches so many standard deviations of the sampled share to both sides, and at least so far.
_DEVIATIONS, _LEAST_MARGIN = 3.5, 0.0005

# Between which magnitudes the answer is looked for: `low <= |x| < high`.
Bracket = tuple[float, float]
EVERYTHING: Bracket = (0.0, math.inf)


class Tally(NamedTuple):
    """What one block holds: how many entries above a bracket, and those within it."""

    above: int
    values: Tensor


class _Collected:
    """The tallies of one vector; more values than are kept become a histogram."""

    def __init__(self, bracket: Bracket) -> None:
        self.bracket, self.above, self.inside = bracket, 0, 0
        self.histogram: Tensor | None = None
        # One piece of memory: many small ones between the blocks would keep the system from using those again.
        self._memory = torch.empty(_BINS, dtype=torch.float32)
        self._filled = 0

    @property
    def values(self) -> Tensor:
        return self._memory[: self._filled]

    def add(self, tally: Tally) -> None:
        self.above += tally.above
        self.inside += len(tally.values)
        if self.histogram is None and self.inside <= MAX_CANDIDATES:
            if self.inside > len(self._memory):
                self._memory = torch.cat([self.values, torch.empty(self.inside, dtype=torch.float32)])
            self._memory[self._filled : self.inside] = tally.values
            self._filled = self.inside
            return
        if self.histogram is None:
            self.histogram = _histogram(self.values, self.bracket)
        self.histogram += _histogram(tally.values, self.bracket)


class Search:
    """The exact `counts[i]`-th largest magnitude of each of several vectors that are only ever seen in blocks.

    Every pass counts what lies above the bracket of a vector and collects what lies within. Few values are searched; of
    many, a histogram over the bits (whose order is that of the magnitudes) gives a narrower bracket for the next pass.

    Args:
        counts: how many entries of each vector to keep, `0 <= counts[i] <= sizes[i]`.
        sizes: length of each vector.
        brackets: in which the answers probably lie: a good one saves a pass, a bad one costs one.

    Attributes:
        thresholds: one for each vector: infinity where nothing is kept, 0 where everything is.

    Example:
        >>> search = Search([2], [3], [EVERYTHING])
        >>> while search.is_open:
        ...     for block in ([1.0, -3.0], [2.0]):
        ...         search.add(0, search.look(0, torch.tensor(block).abs()))
        ...     search.narrow()
        >>> search.thresholds
        [2.0]
    """

    def __init__(self, counts: Sequence[int], sizes: Sequence[int], brackets: Sequence[Bracket]) -> None:
        self.thresholds = [math.inf if k == 0 else 0.0 for k in counts]
        self._counts = counts
        self._open = {i: _Collected(brackets[i]) for i, k in enumerate(counts) if 0 < k < sizes[i]}

    @property
    def is_open(self) -> bool:
        """Whether another pass over all blocks is needed."""
        return bool(self._open)

    def look(self, i: int, magnitudes: Tensor) -> Tally:
        """What a block of vector i holds; several threads may look at a time."""
        return _look(magnitudes, self._open[i].bracket) if i in self._open else Tally(0, magnitudes[:0])

    def add(self, i: int, tally: Tally) -> None:
        """Take down what a block of vector i holds."""
        if i in self._open:
            self._open[i].add(tally)

    def narrow(self) -> None:
        """After a pass over all blocks: decide what can be decided."""
        answers = {i: _decide(collected, self._counts[i]) for i, collected in self._open.items()}
        self._open = {i: _Collected(answer) for i, answer in answers.items() if not isinstance(answer, float)}
        for i, answer in answers.items():
            if isinstance(answer, float):
                self.thresholds[i] = answer


def sampled_bracket(sample: Tensor, share: float) -> Bracket:
    """Where the threshold that keeps this share of a matrix probably lies, from entries spread over it."""
    deviation = (share * (1 - share) / sample.numel()) ** 0.5
    return bracket_of(sample.abs().flatten(), share, max(_LEAST_MARGIN, _DEVIATIONS * deviation))


def bracket_of(magnitudes: Tensor, share: float, margin: float) -> Bracket:
    """The magnitudes above which lie `share - margin` and `share + margin` of the given ones."""
    size = len(magnitudes)
    first, last = int((share - margin) * size), int((share + margin) * size) + 1
    return (
        _kth_largest(magnitudes, last) if last <= size else 0.0,
        _kth_largest(magnitudes, first) if first >= 1 else math.inf,
    )


def _look(magnitudes: Tensor, bracket: Bracket) -> Tally:
    low, high = bracket
    magnitudes = magnitudes.reshape(-1)
    if bracket == EVERYTHING and bool(magnitudes.max() < high):
        return Tally(0, magnitudes.cpu().clone())  # the memory of a block is used again
    if magnitudes.device.type == "cpu":  # numpy compares and picks several times as fast as torch
        values = magnitudes.numpy()
        over = values >= np.float32(high)
        inside = np.flatnonzero((values >= np.float32(low)) != over)
        return Tally(int(np.count_nonzero(over)), torch.from_numpy(values[inside]))
    over_high = magnitudes >= high
    chosen = magnitudes[(magnitudes >= low) != over_high]
    return Tally(int(over_high.sum()), chosen.cpu())


def _decide(collected: _Collected, k: int) -> float | Bracket:
    """The k-th largest magnitude, or where to look for it next."""
    low, high = collected.bracket
    if k <= collected.above:
        return (high, math.inf) if high < math.inf else math.inf
    if k > collected.above + collected.inside:
        return (0.0, low) if low > 0 else 0.0
    k -= collected.above
    if collected.histogram is None:
        return _kth_largest(collected.values, k)
    from_top = collected.histogram.flip(0).cumsum(0)
    chosen = len(from_top) - 1 - int(torch.searchsorted(from_top, k))
    start, shift = _scale(collected.bracket)
    first, last = start + (chosen << shift), start + ((chosen + 1) << shift)
    return _magnitude(first) if shift == 0 else (_magnitude(first), min(high, _magnitude(last)))


def _kth_largest(values: Tensor, k: int) -> float:
    if values.device.type == "cpu":
        return float(np.partition(values.numpy(), len(values) - k)[len(values) - k])
    return float(values.sort(descending=True).values[k - 1])


def _histogram(values: Tensor, bracket: Bracket) -> Tensor:
    start, shift = _scale(bracket)
    return torch.bincount((values.view(torch.int32) - start) >> shift, minlength=_BINS)


def _scale(bracket: Bracket) -> tuple[int, int]:
    """The bits of the lower end, and how many of the last bits the bins leave out."""
    start, end = (int(np.float32(x).view(np.int32)) for x in bracket)
    return start, max(0, (end - start - 1).bit_length() - _BINS.bit_length() + 1)


def _magnitude(bits: int) -> float:
    return float(np.int32(bits).view(np.float32))
