"""The order in which nunchaku's kernels read the factors of a 4-bit layer: tiles of 16 x 16, one for a warp.

A factor is cut into tiles of 16 x 16 numbers of 16 bits, and every tile is stored as a whole, 256 numbers in a row. The
tiles follow each other with those of one group of 16 features together, the ranks running fastest: of `lora_B`,
`(features, rank)`, from left to right and from top to bottom; of `lora_A`, `(rank, features)`, from top to bottom and
from left to right. What is stored has the shape `(features, rank)` for both.

A warp has 32 lanes, and a lane reads 8 numbers that lie side by side, so a tile is 32 lanes of 8. Lane `4 i + j`
(`i` below 8, `j` below 4) holds, of rows `i` and `i + 8`, columns `2 j`, `2 j + 1`, `2 j + 8` and `2 j + 9`: four of
the one row, then four of the other. Rows and columns are those of the factor, features or ranks.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mergelab.errors import FormatError

TILE = 16
"""Rows and columns of a tile; a rank is padded to a multiple."""


def _places() -> Tensor:
    """Where in a tile as it is stored the number of each row and column is, row by row."""
    row, column = torch.arange(TILE)[:, None], torch.arange(TILE)
    lane = 4 * (row % 8) + column % 8 // 2
    return (8 * lane + 4 * (row // 8) + 2 * (column // 8) + column % 2).flatten()


def pack(factor: Tensor, down: bool) -> Tensor:
    """A factor as the kernels read it, `(features, rank)`.

    Args:
        factor: `lora_A`, `(rank, features)`, or `lora_B`, `(features, rank)`; both sizes are multiples of 16.
        down: whether it is `lora_A`.

    Example:
        >>> pack(torch.arange(256).reshape(16, 16), down=False)[0, :8].tolist()
        [0, 1, 8, 9, 128, 129, 136, 137]
    """
    rows, columns = (size // TILE for size in factor.shape)
    tiles = factor.reshape(rows, TILE, columns, TILE).transpose(1, 2).reshape(rows, columns, TILE * TILE)
    tiles = tiles.transpose(0, 1) if down else tiles
    stored = torch.empty_like(tiles, memory_format=torch.contiguous_format)
    stored[..., _places()] = tiles
    return stored.reshape(tuple(reversed(factor.shape)) if down else factor.shape)


def unpack(stored: Tensor, down: bool) -> Tensor:
    """The factor from what `pack` makes of it.

    Raises:
        FormatError: the sizes are no multiples of 16.

    Example:
        >>> factor = torch.arange(512).reshape(16, 32)
        >>> torch.equal(unpack(pack(factor, down=True), down=True), factor)
        True
    """
    if stored.dim() != 2 or any(size % TILE for size in stored.shape):
        raise FormatError(f"a packed factor has shape {tuple(stored.shape)}, expected two multiples of {TILE}")
    features, ranks = (size // TILE for size in stored.shape)
    tiles = stored.reshape(features, ranks, TILE * TILE)[..., _places()].reshape(features, ranks, TILE, TILE)
    if down:
        return tiles.permute(1, 2, 0, 3).reshape(ranks * TILE, features * TILE)
    return tiles.transpose(1, 2).reshape(features * TILE, ranks * TILE)
