"""The magnitudes above which a share of the entries lies: of each matrix of a layer, or of whole adapters."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from mergelab.linalg import host
from mergelab.linalg.radix import RadixSearch
from mergelab.linalg.selection import EVERYTHING, MAX_CANDIDATES, Bracket, Search, bracket_of, sampled_bracket
from mergelab.linalg.stacks import ChangeStack
from mergelab.linalg.workspace import Workspace

# All entries of a matrix of at most so many are searched for its threshold; that of a larger one is first estimated
# from a sample. The larger the sample, the fewer entries are left to be searched: both together cost least at about
# this power of the size.
MAX_SEARCHED, SAMPLE_POWER = 1 << 18, 2 / 3
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
    found = []
    for stacked in stacks:
        n, size = len(stacked.matrices), math.prod(stacked.shape)
        search = RadixSearch([int(share * size)] * n, [size] * n, stacked.device)
        while search.is_open:
            _pass(search, range(n), stacked, workspace)
            search.narrow()
        found.append(search.found)
    return host.to_host(torch.cat(found))[0].tolist()


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
                _pass(search_there, owners, stacked, workspace)
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


def _pass(search: Search | RadixSearch, owners: Sequence[int], stacked: ChangeStack, workspace: Workspace) -> None:
    """Look at the magnitudes in every block of every matrix, each under the number of its owner."""
    jobs = [(i, rows) for i in range(len(stacked.matrices)) for rows in stacked.blocks()]

    def look(job: tuple[int, slice]) -> tuple[int, Any]:
        i, rows = job
        memory = workspace.scratch(rows.stop - rows.start, stacked.shape[1], device=stacked.device)
        return owners[i], search.look(owners[i], stacked.rows(i, rows, out=memory).abs_())

    for owner, tally in workspace.map(look, jobs):
        search.add(owner, tally)
