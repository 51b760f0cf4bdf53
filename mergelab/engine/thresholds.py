"""The magnitudes above which a share of the entries lies: of each matrix of a layer, or of whole adapters."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mergelab.linalg import host
from mergelab.linalg.radix import RadixSearch
from mergelab.linalg.selection import EVERYTHING, MAX_CANDIDATES, Bracket, Search, bracket_of, sampled_bracket
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
# The number of a matrix (or of an adapter), and the share of its entries that are to reach the threshold.
Wanted = tuple[int, float]


class Known:
    """Thresholds of the same matrices for several methods: each is found once, those of one matrix in one pass.

    Example:
        >>> known = Known()
        >>> known.expect("style", [0.5, 0.9])
        >>> find = lambda wanted: [print("searched", number, share) or 1 - share for number, share in wanted]
        >>> known.of(0.5, ["style"], find), known.of(0.9, ["style"], find)
        searched 0 0.5
        searched 0 0.9
        ([0.5], [0.09999999999999998])
    """

    def __init__(self) -> None:
        self._expected: dict[Hashable, set[float]] = {}
        self._found: dict[tuple[Hashable, float], float] = {}

    def expect(self, key: Hashable, shares: Iterable[float]) -> None:
        """These will be asked for, too."""
        self._expected.setdefault(key, set()).update(shares)

    def of(
        self, share: float, keys: Sequence[Hashable], find: Callable[[Sequence[Wanted]], Sequence[float]]
    ) -> list[float]:
        """Those of one share.

        Args:
            share: of the entries.
            keys: what tells each matrix from others.
            find: finds what is not known yet.
        """
        shares = [sorted({share} | self._expected.get(key, set())) for key in keys]
        wanted = [(i, s) for i, key in enumerate(keys) for s in shares[i] if (key, s) not in self._found]
        found = find(wanted) if wanted else ()
        self._found |= {(keys[i], s): threshold for (i, s), threshold in zip(wanted, found)}
        return [self._found[key, share] for key in keys]


def layer_thresholds(wanted: Sequence[Wanted], stacks: Sequence[ChangeStack], workspace: Workspace) -> list[float]:
    """The magnitude of the smallest of a share of a matrix's largest entries, exactly, for each that is wanted.

    What is as large or larger is kept by a trim: `floor(share * size)` entries, or more where some are equally large.

    Args:
        wanted: numbers of matrices, counted through all stacks, and shares of their entries, in [0, 1].
        stacks: of matrices each, `(rows, columns)`; their weights are not looked at.
        workspace: threads and memory.

    Returns:
        A magnitude for each: infinity where the share is less than one entry, 0 where it is all.

    Example:
        >>> matrix = torch.tensor([[1.0, -4.0], [3.0, 2.0]])
        >>> stacked = ChangeStack((matrix, -2 * matrix), (1.0, 1.0))
        >>> layer_thresholds([(0, 0.5), (1, 0.5), (0, 0.25)], [stacked], Workspace())
        [3.0, 6.0, 4.0]
    """
    found: dict[Wanted, float] = {}
    waiting, first = [], 0
    for stacked in stacks:
        end = first + len(stacked.matrices)
        own = [(number, share) for number, share in wanted if first <= number < end]
        inside = [(number - first, share) for number, share in own]
        if own and stacked.device.type == "cpu":
            found |= zip(own, _searched(inside, stacked, workspace))
        elif own:
            waiting.append((own, _searched_there(inside, stacked, workspace)))
        first = end
    if waiting:
        there = host.to_host(torch.cat([values for _, values in waiting]))[0].tolist()
        found |= zip([one for own, _ in waiting for one in own], there)
    return [found[one] for one in wanted]


def _searched(wanted: Sequence[Wanted], stacked: ChangeStack, workspace: Workspace) -> list[float]:
    size = math.prod(stacked.shape)

    def bracket(one: Wanted) -> Bracket:
        i, share = one
        if size <= MAX_SEARCHED or share >= 1:
            return EVERYTHING
        picked = (min(SAMPLE_SIDE, side // 4) for side in stacked.shape)
        return sampled_bracket(stacked.sample(i, *picked), share, stacked.shape)

    brackets = list(workspace.map(bracket, wanted))
    search = Search([int(share * size) for _, share in wanted], [size] * len(wanted), brackets)
    while search.is_open:
        _pass(search, _vectors(wanted), stacked, workspace)
        search.narrow()
    return search.thresholds


def _searched_there(wanted: Sequence[Wanted], stacked: ChangeStack, workspace: Workspace) -> Tensor:
    """The same on a GPU, whose answer is there."""
    size = math.prod(stacked.shape)
    search = RadixSearch([int(share * size) for _, share in wanted], [size] * len(wanted), stacked.device)
    while search.is_open:
        _pass(search, _vectors(wanted), stacked, workspace)
        search.narrow()
    return search.found


def _vectors(wanted: Sequence[Wanted]) -> dict[int, list[int]]:
    """Number of a matrix -> what is searched in it, by its number among all that is wanted."""
    vectors: dict[int, list[int]] = {}
    for number, (i, _) in enumerate(wanted):
        vectors.setdefault(i, []).append(number)
    return vectors


def adapter_thresholds(
    wanted: Sequence[Wanted], stacks: Callable[[], Iterable[Owned]], workspace: Workspace
) -> list[float]:
    """The same over all layers of each adapter together.

    Args:
        wanted: numbers of adapters, and shares of their entries, in [0, 1].
        stacks: gives the stacks of all layers, as often as it is called, each with the numbers of the adapters that its
            matrices belong to.
        workspace: threads and memory.

    Returns:
        A magnitude for each: infinity where the share is less than one entry, 0 where it is all.

    Example:
        >>> small, large = torch.tensor([[1.0, 2.0]]), torch.tensor([[5.0, 6.0]])
        >>> layers = [([0], ChangeStack((small,), (1.0,))), ([0, 1], ChangeStack((large, small), (1.0, 1.0)))]
        >>> adapter_thresholds([(0, 0.5), (1, 0.5)], lambda: layers, Workspace())
        [5.0, 2.0]
    """
    sizes, device = {i: 0 for i, _ in wanted}, torch.device("cpu")
    samples: dict[int, list[Tensor]] = {i: [] for i in sizes}
    for owners, stacked in stacks():
        device = stacked.device
        picked = [-(-size // ADAPTER_STEP) for size in stacked.shape]
        for position, i in enumerate(owners):
            if i in sizes:
                sizes[i] += math.prod(stacked.shape)
                if device.type == "cpu":
                    samples[i].append(stacked.sample(position, *picked).abs().flatten())
    counts, lengths = [int(share * sizes[i]) for i, share in wanted], [sizes[i] for i, _ in wanted]
    search: Search | RadixSearch
    if device.type == "cpu":
        brackets = [
            bracket_of(torch.cat(samples[i]), share, ADAPTER_MARGIN) if sizes[i] > MAX_CANDIDATES else EVERYTHING
            for i, share in wanted
        ]
        search = Search(counts, lengths, brackets)
    else:
        search = RadixSearch(counts, lengths, device)
    of_adapters = _vectors(wanted)
    while search.is_open:
        for owners, stacked in stacks():
            own = {position: of_adapters[i] for position, i in enumerate(owners) if i in of_adapters}
            _pass(search, own, stacked, workspace)
        search.narrow()
    return search.thresholds if isinstance(search, Search) else host.to_host(search.found)[0].tolist()


def _pass(
    search: Search | RadixSearch, vectors: Mapping[int, Sequence[int]], stacked: ChangeStack, workspace: Workspace
) -> None:
    """Look at the magnitudes in every block of the matrices, for all that is searched in each."""
    jobs = [(i, rows) for i in vectors for rows in stacked.blocks()]

    def look(job: tuple[int, slice]) -> list[tuple[int, Any]]:
        i, rows = job
        memory = workspace.scratch(rows.stop - rows.start, stacked.shape[1], device=stacked.device)
        magnitudes = stacked.rows(i, rows, out=memory).abs_()
        return [(vector, search.look(vector, magnitudes)) for vector in vectors[i]]

    for tallies in workspace.map(look, jobs):
        for vector, tally in tallies:
            search.add(vector, tally)
