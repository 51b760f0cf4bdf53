"""The magnitudes above which a share of the entries lies: of each matrix of a layer, or of whole adapters."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from mergelab.linalg import host
from mergelab.linalg.radix import RadixSearch
from mergelab.linalg.selection import EVERYTHING, MAX_CANDIDATES, Bracket, Search, Tally, bracket_of, sampled_bracket
from mergelab.linalg.stacks import ChangeStack
from mergelab.linalg.workspace import Workspace

# All entries of a matrix of at most so many are searched for its threshold; that of a larger one is first estimated
# from a sample. The larger the sample, the fewer entries are left to be searched: both together cost least at about
# this power of the size.
MAX_SEARCHED, SAMPLE_POWER = 1 << 18, 2 / 3
# So many magnitudes are held on a GPU at a time; of a layer with more they are formed for every pass.
HELD = 1 << 28
# A trim over whole adapters looks at one in so many rows and columns first, and trusts the share of large entries there
# so far.
ADAPTER_STEP, ADAPTER_MARGIN = 64, 0.02

# A stack and, for each of its matrices, the number of the adapter that it belongs to.
Owned = tuple[Sequence[int], ChangeStack]


def layer_thresholds(share: float, stacks: Sequence[ChangeStack], workspace: Workspace) -> list[float]:
    """For each matrix the magnitude of the smallest of this share of its largest entries, exactly.

    What is as large or larger is kept by a trim: `floor(share * size)` entries, or more where some are equally large.

    Args:
        share: of the entries, in [0, 1].
        stacks: of n matrices each, `(rows, columns)`; their weights are not looked at.
        workspace: threads and memory.

    Returns:
        A magnitude for each matrix of each stack: infinity where the share is less than one entry, 0 where it is all.

    Example:
        >>> matrix = torch.tensor([[1.0, -4.0], [3.0, 2.0]])
        >>> layer_thresholds(0.5, [ChangeStack((matrix, -2 * matrix), (1.0, 1.0))], Workspace())
        [3.0, 6.0]
    """
    if stacks[0].device.type == "cpu":
        return [threshold for stacked in stacks for threshold in _searched(share, stacked, workspace)]
    n, shape = len(stacks[0].matrices), stacks[0].shape
    together = max(1, HELD // (n * math.prod(shape)))
    found = [_found(share, stacks[i : i + together]) for i in range(0, len(stacks), together)]
    return host.to_host(torch.cat(found))[0].tolist()


def _found(share: float, stacks: Sequence[ChangeStack]) -> Tensor:
    """The thresholds of some stacks, on their device."""
    n, shape, device = len(stacks[0].matrices), stacks[0].shape, stacks[0].device
    count, size = n * len(stacks), math.prod(shape)
    search = RadixSearch([int(share * size)] * count, [size] * count, device)
    if count * size > HELD and len(blocks := stacks[0].blocks()) > 1:
        while search.is_open:
            for rows in blocks:
                search.count(range(n), _magnitudes(stacks, rows))
            search.narrow()
        return search.found
    magnitudes = _magnitudes(stacks, slice(0, shape[0]))
    while search.is_open:
        search.count(range(count), magnitudes)
        search.narrow()
    return search.found


def _magnitudes(stacks: Sequence[ChangeStack], rows: slice) -> Tensor:
    """Of some rows of all matrices, `(matrices, entries)`."""
    n, columns = len(stacks[0].matrices), stacks[0].shape[1]
    formed = torch.empty(len(stacks), n, rows.stop - rows.start, columns, device=stacks[0].device, dtype=torch.float32)
    for own, stacked in zip(formed, stacks):
        for i in range(n):
            stacked.rows(i, rows, out=own[i])
    return formed.abs_().flatten(2).flatten(0, 1)


def _searched(share: float, stacked: ChangeStack, workspace: Workspace) -> list[float]:
    n, size = len(stacked.matrices), math.prod(stacked.shape)

    def bracket(i: int) -> Bracket:
        return sampled_bracket(stacked.spread_sample(i, int((10 * size) ** SAMPLE_POWER)), share)

    whole = size <= MAX_SEARCHED or share >= 1
    brackets = [EVERYTHING] * n if whole else list(workspace.map(bracket, range(n)))
    search = Search([int(share * size)] * n, [size] * n, brackets)
    while search.is_open:
        _pass(search, range(n), stacked, workspace)
        search.narrow()
    return search.thresholds


def adapter_thresholds(
    share: float, stacks: Callable[[], Iterable[Owned]], count: int, workspace: Workspace
) -> list[float]:
    """The same over all layers of each adapter together.

    Args:
        share: of the entries, in [0, 1].
        stacks: gives the stacks of all layers, as often as it is called, each with the numbers (from 0) of the
            adapters that its matrices belong to.
        count: of adapters.
        workspace: threads and memory.

    Returns:
        A magnitude for each adapter: infinity where the share is less than one entry, 0 where it is all.

    Example:
        >>> small, large = torch.tensor([[1.0, 2.0]]), torch.tensor([[5.0, 6.0]])
        >>> layers = [([0], ChangeStack((small,), (1.0,))), ([0, 1], ChangeStack((large, small), (1.0, 1.0)))]
        >>> adapter_thresholds(0.5, lambda: layers, 2, Workspace())
        [5.0, 2.0]
    """
    sizes, device = [0] * count, torch.device("cpu")
    samples: list[list[Tensor]] = [[] for _ in range(count)]
    for owners, stacked in stacks():
        device = stacked.device
        picked = [-(-size // ADAPTER_STEP) for size in stacked.shape]
        for position, i in enumerate(owners):
            sizes[i] += math.prod(stacked.shape)
            if device.type == "cpu":
                samples[i].append(stacked.sample(position, *picked).abs().flatten())
    counts = [int(share * size) for size in sizes]
    if device.type != "cpu":
        search_there = RadixSearch(counts, sizes, device)
        while search_there.is_open:
            for owners, stacked in stacks():
                for rows in stacked.blocks():
                    search_there.count(owners, _magnitudes([stacked], rows))
            search_there.narrow()
        return host.to_host(search_there.found)[0].tolist()
    brackets = [
        bracket_of(torch.cat(own), share, ADAPTER_MARGIN) if size > MAX_CANDIDATES else EVERYTHING
        for own, size in zip(samples, sizes)
    ]
    search = Search(counts, sizes, brackets)
    while search.is_open:
        for owners, stacked in stacks():
            _pass(search, owners, stacked, workspace)
        search.narrow()
    return search.thresholds


def _pass(search: Search, owners: Sequence[int], stacked: ChangeStack, workspace: Workspace) -> None:
    """Look at the magnitudes in every block of every matrix, each under the number of its owner."""
    jobs = [(i, rows) for i in range(len(stacked.matrices)) for rows in stacked.blocks()]

    def look(job: tuple[int, slice]) -> tuple[int, Tally]:
        i, rows = job
        memory = workspace.scratch(rows.stop - rows.start, stacked.shape[1], device=stacked.device)
        return owners[i], search.look(owners[i], stacked.rows(i, rows, out=memory).abs_())

    for owner, tally in workspace.map(look, jobs):
        search.add(owner, tally)
