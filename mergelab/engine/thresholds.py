"""The magnitudes above which a share of the entries lies: of each matrix of a layer, or of whole adapters."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from mergelab.linalg.selection import EVERYTHING, MAX_CANDIDATES, Bracket, Search, Tally, bracket_of, sampled_bracket
from mergelab.linalg.stacks import ChangeStack
from mergelab.linalg.workspace import Workspace

# All entries of a matrix of at most so many are searched for its threshold; that of a larger one is first estimated
# from every fourth row and column, or from so many of them.
MAX_SEARCHED, SAMPLE_SIDE = 1 << 18, 640
# A trim over whole adapters looks at one in so many rows and columns first, and trusts the share of large entries there
# so far.
ADAPTER_STEP, ADAPTER_MARGIN = 64, 0.02

# A stack and, for each of its matrices, the number of the adapter that it belongs to.
Owned = tuple[Sequence[int], ChangeStack]


def layer_thresholds(share: float, stacked: ChangeStack, workspace: Workspace) -> list[float]:
    """For each matrix the magnitude of the smallest of this share of its largest entries, exactly."""
    n, size = len(stacked.matrices), math.prod(stacked.shape)

    def bracket(i: int) -> Bracket:
        picked = (min(SAMPLE_SIDE, side // 4) for side in stacked.shape)
        return sampled_bracket(stacked.sample(i, *picked), share, stacked.shape)

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
        share: of the entries.
        stacks: gives the stacks of all layers, as often as it is called.
        count: of adapters.
        workspace: threads and memory.
    """
    sizes = [0] * count
    samples: list[list[Tensor]] = [[] for _ in range(count)]
    for owners, stacked in stacks():
        picked = [-(-size // ADAPTER_STEP) for size in stacked.shape]
        for position, i in enumerate(owners):
            sizes[i] += math.prod(stacked.shape)
            samples[i].append(stacked.sample(position, *picked).abs().flatten().cpu())
    brackets = [
        bracket_of(torch.cat(own), share, ADAPTER_MARGIN) if size > MAX_CANDIDATES else EVERYTHING
        for own, size in zip(samples, sizes)
    ]
    search = Search([int(share * size) for size in sizes], sizes, brackets)
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
