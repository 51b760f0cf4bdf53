"""Draws are uniform, independent of each other in every direction, and a function of the entry alone."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from scipy import stats
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from mergelab.linalg.draws import EntryDraws, Hashes, key_of

ROWS, COLUMNS = 512, 2048
# Two in a million of tests without a fault fail at this level; there are a few thousand.
LEVEL = 1e-6


def bits(*key: object, rows: slice = slice(0, ROWS), columns: int = COLUMNS) -> Tensor:
    return EntryDraws(key_of(*key)).bits(rows, columns)


def bit(x: Tensor, number: int) -> Tensor:
    return ((x >> number) & 1).double()


def correlated(x: Tensor, y: Tensor) -> float:
    """p value of no correlation between two arrays of uniform numbers."""
    x, y = (v.double().flatten() - v.double().mean() for v in (x, y))
    r = float((x @ y) / (x.norm() * y.norm()))
    return 2 * float(stats.norm.sf(abs(r) * math.sqrt(len(x))))


@pytest.mark.parametrize("seed", range(3))
def test_every_bit_is_fair_and_independent_of_every_other(seed: int) -> None:
    """Chi-square of one bit, and of each pair of bits, of a million draws."""
    x = bits(seed, "layer", 0)
    columns = torch.stack([bit(x, number).flatten() for number in range(32)])
    ones = columns.sum(1)
    n = columns.shape[1]
    for count in ones.tolist():
        assert stats.chisquare([count, n - count]).pvalue > LEVEL
    both = columns @ columns.T
    for i in range(32):
        for j in range(i):
            cells = [both[i, j], ones[i] - both[i, j], ones[j] - both[i, j], n - ones[i] - ones[j] + both[i, j]]
            assert stats.chisquare([float(cell) for cell in cells]).pvalue > LEVEL / 10


@pytest.mark.parametrize("bins", [7, 64, 1000])
def test_values_fill_the_interval_evenly(bins: int) -> None:
    """Chi-square over bins; the smallest and largest values are near the ends, and in [0, 1)."""
    u = EntryDraws(key_of(1, "layer", 0)).uniform(slice(0, ROWS), COLUMNS)
    counts = torch.bincount((u.double() * bins).long().flatten(), minlength=bins)
    assert len(counts) == bins and stats.chisquare(counts.numpy()).pvalue > LEVEL
    assert 0 <= float(u.min()) < 1e-4 and 1 - 1e-4 < float(u.max()) < 1


def test_neighbours_rows_columns_adapters_layers_and_seeds_are_independent() -> None:
    """Of whole numbers, and of their highest and lowest bit; in pairs of equal places and of shifted ones."""
    x = bits(0, "layer", 0)
    others = {
        "adapter": bits(0, "layer", 1),
        "layer": bits(0, "layer2", 0),
        "seed": bits(1, "layer", 0),
        "right": x.roll(1, dims=1),
        "far right": x.roll(64, dims=1),
        "below": x.roll(1, dims=0),
        "diagonal": x.roll((1, 1), dims=(0, 1)),
        "other width": bits(0, "layer", 1, rows=slice(0, COLUMNS), columns=ROWS).T,
    }
    for y in others.values():
        assert correlated(x, y) > LEVEL
        for number in (0, 1, 15, 16, 30, 31):
            assert correlated(bit(x, number), bit(y, number)) > LEVEL
    # What rows and columns have in common: means of whole rows, and of whole columns, spread as they should.
    for means, count in ((x.double().mean(1), COLUMNS), (x.double().mean(0), ROWS)):
        z = means / (2**32 / math.sqrt(12 * count))
        assert stats.kstest(z.numpy(), "norm").pvalue > LEVEL


def test_a_table_of_rows_and_columns_has_no_structure() -> None:
    """Of four corners of a rectangle each is independent of the other three: sums modulo 2^32 are uniform."""
    x = bits(5, "layer", 0).long()
    corners = (x[:-1, :-1] + x[1:, 1:] - x[1:, :-1] - x[:-1, 1:]) % 2**32
    counts = torch.bincount((corners.flatten() >> 22), minlength=1024)
    assert stats.chisquare(counts.numpy()).pvalue > LEVEL
    # And rows seldom share a number at one place more often than chance lets them.
    assert len(x.unique()) > x.numel() - 3 * x.numel() ** 2 / 2**33 - 50


@pytest.mark.parametrize("probability", [1e-4, 0.1, 0.5, 0.9, 0.9999])
def test_a_share_is_kept(probability: float) -> None:
    """To four standard errors, for many small matrices of neighbouring keys too."""
    everything = slice(0, 100)
    kept = [EntryDraws(key_of(0, "layer", i)).keep_(torch.ones(100, 200), probability, everything) for i in range(50)]
    error = math.sqrt(probability * (1 - probability) / (50 * 100 * 200))
    assert set(torch.cat(kept).unique().tolist()) <= {0.0, 1.0}
    assert abs(float(torch.cat(kept).double().mean()) - probability) < 4.5 * error


def test_draws_are_a_function_of_the_place() -> None:
    """Blocks of any rows have the numbers of the whole; known ones never change; probability zero keeps nothing."""
    whole = bits(7, "layer", 2)
    for rows in (slice(0, 1), slice(17, 300), slice(ROWS - 3, ROWS)):
        assert torch.equal(bits(7, "layer", 2, rows=rows), whole[rows])
    assert torch.equal(bits(7, "layer", 2, columns=99), whole[:, :99])
    assert EntryDraws(12345).bits(slice(0, 2), 3).tolist() == FIXED
    assert not EntryDraws(0).keep_(torch.ones(50, 50), 0.0, slice(0, 50)).any()
    assert EntryDraws(0).keep_(torch.ones(50, 50), 1.0, slice(0, 50)).all()


class Count(TorchDispatchMode):
    """How many operations torch is asked for; views, which start nothing on a device, are none."""

    def __init__(self) -> None:
        super().__init__()
        self.operations = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.operations += not func.is_view
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("rows", [slice(0, 5), slice(3, 70), slice(64, 65)])
def test_matrices_hashed_together_have_their_own_numbers(rows: slice) -> None:
    """To the last bit, in any order, whichever else is in the group, a key twice included."""
    keys = [12345, 0, *(key_of(seed, "layer", place) for seed in (0, 9) for place in range(3)), (1 << 63) - 1, 12345]
    hashes = Hashes(tuple(keys))
    for key in reversed(keys):
        draws = EntryDraws(key, hashes)
        for columns in (33, 7, 200):
            assert torch.equal(draws.bits(rows, columns), EntryDraws(key).bits(rows, columns))
        assert draws == EntryDraws(key)


def test_hashing_many_matrices_takes_the_operations_of_one() -> None:
    """And each draws from it with a fixed number."""

    def operations(count: int) -> int:
        keys = tuple(key_of("count", count, i) for i in range(count))
        hashes = Hashes(keys)
        with Count() as counted:
            for key in keys:
                for rows in (slice(32, 40), slice(40, 50)):
                    EntryDraws(key, hashes).keep_(torch.ones(rows.stop - rows.start, 20), 0.5, rows)
        return counted.operations

    one, two, many = (operations(count) for count in (1, 2, 40))
    each = two - one
    assert many == one + 39 * each
    assert each < 2 * 15 and one - each > 2 * each


FIXED = [[-963543327, -1747115773, 1787606911], [-376593171, -1405506508, 1838954722]]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_draws_the_same() -> None:
    """To the last bit."""
    draws = EntryDraws(key_of(3, "layer", 1))
    assert torch.equal(draws.bits(slice(5, ROWS), COLUMNS, "cuda").cpu(), draws.bits(slice(5, ROWS), COLUMNS))
