"""The magnitudes above which a share of the entries lies: of each matrix of a layer, or of whole adapters."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence

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
# The number of a matrix (or of an adapter), and the share of its entries that are to reach the threshold.
Wanted = tuple[int, float]


class Known:
    """Thresholds of the same matrices for several methods: each is found once, those of one matrix in one pass.

    Example:
        >>> known = Known()
        >>> known.expect(["style"], [0.5, 0.9])
        >>> find = lambda wanted: [print("searched", number, share) or 1 - share for number, share in wanted]
        >>> known.of(0.5, ["style"], find), known.of(0.9, ["style"], find)
        searched 0 0.5
        searched 0 0.9
        ([0.5], [0.09999999999999998])
    """

    def __init__(self) -> None:
        self._expected: dict[Hashable, set[float]] = {}
        self._found: dict[tuple[Hashable, float], float] = {}

    def expect(self, keys: Iterable[Hashable], shares: Sequence[float]) -> None:
        """These shares will be asked for, too."""
        for key in keys:
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
    size, per_stack = math.prod(stacks[0].shape), len(stacks[0].matrices)
    if stacks[0].device.type == "cpu":
        found: dict[Wanted, float] = {}
        for number, stacked in enumerate(stacks):
            own = [(i, share) for i, share in wanted if i // per_stack == number]
            found |= zip(own, _searched([(i % per_stack, share) for i, share in own], stacked, workspace))
        return [found[one] for one in wanted]
    numbers, together = list(_vectors(wanted)), max(1, HELD // size)
    parts = [set(numbers[i : i + together]) for i in range(0, len(numbers), together)]
    owned = [[one for one in wanted if one[0] in part] for part in parts]
    values = host.to_host(torch.cat([_found(own, stacks) for own in owned]))[0].tolist()
    there = dict(zip((one for own in owned for one in own), values))
    return [there[one] for one in wanted]


def _found(wanted: Sequence[Wanted], stacks: Sequence[ChangeStack]) -> Tensor:
    """The thresholds of some matrices, on their device."""
    vectors, n, shape = _vectors(wanted), len(stacks[0].matrices), stacks[0].shape
    size = math.prod(shape)
    search = RadixSearch([int(share * size) for _, share in wanted], [size] * len(wanted), stacks[0].device)
    matrices = [(stacks[i // n], i % n) for i in vectors]
    blocks = stacks[0].blocks() if size > HELD else [slice(0, shape[0])]
    magnitudes = _magnitudes(matrices, blocks[0])
    while search.is_open:
        for rows in blocks:
            if len(blocks) > 1:
                magnitudes = _magnitudes(matrices, rows)
            _count(search, list(vectors.values()), magnitudes)
        search.narrow()
    return search.found


def _magnitudes(matrices: Sequence[tuple[ChangeStack, int]], rows: slice) -> Tensor:
    """Of some rows of matrices of stacks, `(matrices, entries)`."""
    first, height = matrices[0][0], rows.stop - rows.start
    formed = torch.empty(len(matrices), height, first.shape[1], device=first.device, dtype=torch.float32)
    for own, (stacked, i) in zip(formed, matrices):
        stacked.rows(i, rows, out=own)
    return formed.abs_().flatten(1)


def _count(search: RadixSearch, vectors: Sequence[Sequence[int]], magnitudes: Tensor) -> None:
    """Take down what the rows of some magnitudes hold, for all that is searched in each."""
    for turn in range(max(map(len, vectors))):
        own = [(numbers[turn], row) for row, numbers in enumerate(vectors) if turn < len(numbers)]
        some = magnitudes
        if len(own) < len(vectors):
            some = magnitudes[host.sent(torch.tensor([row for _, row in own]), magnitudes.device)]
        search.count([number for number, _ in own], some)


def _searched(wanted: Sequence[Wanted], stacked: ChangeStack, workspace: Workspace) -> list[float]:
    size = math.prod(stacked.shape)

    def bracket(one: Wanted) -> Bracket:
        i, share = one
        if size <= MAX_SEARCHED or share >= 1:
            return EVERYTHING
        return sampled_bracket(stacked.spread_sample(i, int((10 * size) ** SAMPLE_POWER)), share)

    brackets = list(workspace.map(bracket, wanted))
    search = Search([int(share * size) for _, share in wanted], [size] * len(wanted), brackets)
    while search.is_open:
        _pass(search, _vectors(wanted), stacked, workspace)
        search.narrow()
    return search.thresholds


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
    vectors = _vectors(wanted)
    if device.type != "cpu":
        search_there = RadixSearch(counts, lengths, device)
        while search_there.is_open:
            for owners, stacked in stacks():
                own = [(place, vectors[i]) for place, i in enumerate(owners) if i in vectors]
                for rows in stacked.blocks() if own else ():
                    magnitudes = _magnitudes([(stacked, place) for place, _ in own], rows)
                    _count(search_there, [numbers for _, numbers in own], magnitudes)
            search_there.narrow()
        return host.to_host(search_there.found)[0].tolist()
    brackets = [
        bracket_of(torch.cat(samples[i]), share, ADAPTER_MARGIN) if sizes[i] > MAX_CANDIDATES else EVERYTHING
        for i, share in wanted
    ]
    search = Search(counts, lengths, brackets)
    while search.is_open:
        for owners, stacked in stacks():
            _pass(search, {n: vectors[i] for n, i in enumerate(owners) if i in vectors}, stacked, workspace)
        search.narrow()
    return search.thresholds


def _pass(search: Search, vectors: Mapping[int, Sequence[int]], stacked: ChangeStack, workspace: Workspace) -> None:
    """Look at the magnitudes in every block of the matrices, for all that is searched in each."""
    jobs = [(i, rows) for i in vectors for rows in stacked.blocks()]

    def look(job: tuple[int, slice]) -> list[tuple[int, Tally]]:
        i, rows = job
        memory = workspace.scratch(rows.stop - rows.start, stacked.shape[1], device=stacked.device)
        magnitudes = stacked.rows(i, rows, out=memory).abs_()
        return [(vector, search.look(vector, magnitudes)) for vector in vectors[i]]

    for tallies in workspace.map(look, jobs):
        for vector, tally in tallies:
            search.add(vector, tally)
