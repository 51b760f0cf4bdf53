"""Matrices of one shape, one for each adapter, which are read in blocks of rows."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mergelab.linalg.lowrank import Factors
from mergelab.linalg.workspace import panels

# Entries of all changes that are held at a time: on a CPU a block and a few copies fit the cache, and are little beside
# the layer, but enough to be worth a product; on a GPU they are worth a kernel's launch.
BLOCK, SMALLEST_BLOCK, GPU_BLOCK = 1 << 21, 1 << 20, 1 << 26

Matrix = Factors | Tensor


@dataclass(frozen=True)
class ChangeStack:
    """Matrices of one shape, one for each adapter, and the weights that a rule is to apply to them.

    A matrix is dense, or a product of factors of which only the rows are formed that are asked for.

    Args:
        matrices: n of them, each `(rows, columns)`.
        weights: n numbers.

    Example:
        >>> ChangeStack((torch.eye(2), Factors(torch.ones(2, 1), torch.ones(1, 2))), (1.0, 0.5)).rows(1, slice(0, 1))
        tensor([[1., 1.]])
    """

    matrices: tuple[Matrix, ...]
    weights: tuple[float, ...]

    @property
    def shape(self) -> tuple[int, int]:
        rows, columns = self.matrices[0].shape
        return rows, columns

    @property
    def device(self) -> torch.device:
        first = self.matrices[0]
        return first.A.device if isinstance(first, Factors) else first.device

    def blocks(self) -> list[slice]:
        """Row blocks that cover the matrices; they depend on the shapes alone."""
        rows, columns = self.shape
        if self.device.type == "cpu":
            block = min(BLOCK, max(SMALLEST_BLOCK, rows * columns // 8)) // max(4, len(self.matrices))
        else:
            block = GPU_BLOCK // max(4, len(self.matrices))  # counts in float32 are exact to 2^24
        return list(panels(rows, max(1, block // columns)))

    def rows(self, i: int, rows: slice, out: Tensor | None = None) -> Tensor:
        """Some rows of one matrix, in memory of their own."""
        matrix = self.matrices[i]
        if isinstance(matrix, Factors):
            return torch.matmul(matrix.B[rows], matrix.A, out=out)
        return matrix[rows].clone() if out is None else out.copy_(matrix[rows])

    def sample(self, i: int, rows: int, columns: int) -> Tensor:
        """Evenly spaced rows and columns of one matrix."""
        matrix = self.matrices[i]
        picks = [_spaced(size, count, self.device) for size, count in zip(self.shape, (rows, columns))]
        if isinstance(matrix, Factors):
            return matrix.B[picks[0]] @ matrix.A[:, picks[1]]
        return matrix[picks[0]][:, picks[1]]


def _spaced(size: int, count: int, device: torch.device) -> Tensor:
    return torch.linspace(0, size - 1, max(1, min(size, count)), device=device).round().long()
