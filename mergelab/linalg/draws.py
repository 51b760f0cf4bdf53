"""Random numbers that are a function of a key, a row and a column: the same on every device, in any order of blocks.

A counter-based generator in integer arithmetic that wraps around, which all devices do alike: row and column are
hashed to 32 bits each, added, and mixed by the rounds of Wellons' `lowbias32`, with another hash of the row between.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache, partial

import torch
from torch import Tensor

from mergelab.linalg import host

# Hashes of so many sizes are kept: those of one serve all blocks of a matrix.
_KEPT = 4
# Odd multipliers of the mixing rounds, as signed 32-bit integers.
_FIRST, _SECOND = 0x7FEB352D, 0x846CA68B - (1 << 32)
_GOLDEN = 0x9E3779B97F4A7C15 - (1 << 64)
_MIX_64 = (0xBF58476D1CE4E5B9 - (1 << 64), 0x94D049BB133111EB - (1 << 64))


def key_of(*parts: object) -> int:
    """A key of 63 bits from whatever tells one matrix from another: seed, layer, adapter.

    Example:
        >>> key_of(0, "unet.conv_in", 1) == key_of(0, "unet.conv_in", 1) != key_of(1, "unet.conv_in", 1)
        True
    """
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


@dataclass(frozen=True, eq=False)
class Hashes:
    """The hashes of the rows and columns of several matrices: when those of one are asked for, all are computed.

    That takes as many operations as for one, which on a GPU would cost more than the draws themselves. The last few are
    kept as long as this is.

    Args:
        keys: of `key_of`, one for each matrix.

    Example: the numbers are those that each matrix has by itself.
        >>> first, second = key_of(0, "layer", 0), key_of(0, "layer", 1)
        >>> hashes = Hashes((first, second))
        >>> draws = [EntryDraws(first, hashes), EntryDraws(first)]
        >>> torch.equal(*(one.uniform(slice(0, 4), 3) for one in draws))
        True
    """

    keys: tuple[int, ...]

    @cached_property
    def rows(self) -> Callable[[int, torch.device], dict[int, tuple[Tensor, Tensor]]]:
        """Of a count and a device: by key the 32 last and the 32 first bits of each row, `(count, 1)`."""
        return lru_cache(maxsize=_KEPT)(partial(_rows, self.keys))

    @cached_property
    def columns(self) -> Callable[[int, torch.device], dict[int, Tensor]]:
        """Of a count and a device: by key the 32 bits of each column, `(count,)`."""
        return lru_cache(maxsize=_KEPT)(partial(_columns, self.keys))


@dataclass(frozen=True)
class EntryDraws:
    """A random number for every entry of one matrix.

    Args:
        key: of `key_of`; another key gives independent numbers.
        together: hashes of several matrices, of which this is one; by default its own.

    Example: any block of rows has the numbers that the whole has there.
        >>> draws = EntryDraws(key_of(0, "layer", 0))
        >>> whole = draws.uniform(slice(0, 4), 3)
        >>> torch.equal(draws.uniform(slice(1, 3), 3), whole[1:3])
        True
    """

    key: int
    together: Hashes | None = field(default=None, repr=False, compare=False)

    def bits(self, rows: slice, columns: int, device: torch.device | str = "cpu") -> Tensor:
        """int32 `(rows, columns)`: all 2^32 values are equally likely."""
        hashes, device = self.together or _alone(self.key), torch.device(device)
        first, second = hashes.rows(1 << (rows.stop - 1).bit_length(), device)[self.key]
        x = first[rows] + hashes.columns(columns, device)[self.key]
        scratch = torch.empty_like(x)
        _xor_shifted(x, 16, scratch).mul_(_FIRST).bitwise_xor_(second[rows])
        return _xor_shifted(x, 15, scratch).mul_(_SECOND)

    def keep_(self, x: Tensor, probability: float, rows: slice) -> Tensor:
        """Set to zero, in place, all entries of these rows but those that are kept with this probability (to 2^-31).

        Args:
            x: float32 `(rows, columns)`.
            probability: in [0, 1].
            rows: which they are.
        """
        # This share of all 2^32 values, which begin at -2^31, lies below it.
        below = 2 * round(probability * (1 << 31)) - (1 << 31)
        if below >= 1 << 31:
            return x
        # A product with 0 or 1 keeps the bits or none of them: a mask of booleans would cost more.
        x.view(torch.int32).mul_(self.bits(rows, x.shape[1], x.device).lt_(below))
        return x

    def uniform(self, rows: slice, columns: int, device: torch.device | str = "cpu") -> Tensor:
        """float32 `(rows, columns)` in [0, 1), multiples of 2^-24."""
        return _shifted(self.bits(rows, columns, device), 8).to(torch.float32).mul_(2.0**-24)


@lru_cache(maxsize=32)
def _alone(key: int) -> Hashes:
    return Hashes((key,))


def _rows(keys: tuple[int, ...], count: int, device: torch.device) -> dict[int, tuple[Tensor, Tensor]]:
    row = _hashed(keys, count, device)[..., None]
    return dict(zip(keys, zip(_low(row), _low(row >> 32))))


def _columns(keys: tuple[int, ...], count: int, device: torch.device) -> dict[int, Tensor]:
    return dict(zip(keys, _low(_hashed([~key for key in keys], count, device))))


def _hashed(keys: Sequence[int], count: int, device: torch.device) -> Tensor:
    """64 bits for each of a few integers, `(keys, count)`: the finaliser of SplitMix64, twice, the key between."""
    x = _mixed_64((torch.arange(count, device=device) + 1) * _GOLDEN)
    return _mixed_64(x ^ host.like(torch.tensor(keys), x)[:, None])


def _mixed_64(x: Tensor) -> Tensor:
    x = (x ^ ((x >> 30) & ((1 << 34) - 1))) * _MIX_64[0]
    x = (x ^ ((x >> 27) & ((1 << 37) - 1))) * _MIX_64[1]
    return x ^ ((x >> 31) & ((1 << 33) - 1))


def _low(x: Tensor) -> Tensor:
    """The last 32 bits, as a signed integer of 32 bits."""
    return (((x & 0xFFFFFFFF) ^ 0x80000000) - 0x80000000).to(torch.int32)


def _shifted(x: Tensor, count: int, out: Tensor | None = None) -> Tensor:
    """A shift to the right that fills with zeros: torch fills with the sign."""
    return torch.bitwise_right_shift(x, count, out=out).bitwise_and_((1 << (32 - count)) - 1)


def _xor_shifted(x: Tensor, count: int, scratch: Tensor) -> Tensor:
    return x.bitwise_xor_(_shifted(x, count, scratch))
