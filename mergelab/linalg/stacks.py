"""Matrices of one shape, one for each adapter, which are read in blocks of rows."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from mergelab.linalg.lowrank import Factors
from mergelab.linalg.workspace import panels

# Entries of all changes that are held at a time, on a CPU and on a GPU. On a CPU a quarter of it fits the cache next to
# the processor, where each of a rule's many passes costs half as much: but Python, of which there is one for all
# threads, sees every block, and two threads wait for each other. Twice as many where a matrix has more than LARGE.
BLOCK, FEWEST_ROWS, GPU_BLOCK, LARGE = 1 << 20, 16, 1 << 26, 1 << 24

Matrix = Factors | Tensor


@dataclass(frozen=True)
class ChangeStack:
    """Matrices of one shape, one for each adapter, and the weights that a rule is to apply to them.

    A matrix is dense, or a product of factors of which only the rows are formed that are asked for.

    Args:
        matrices: n of them, each `(..., rows, columns)`: of one layer, or of a batch of which `item` gives each.
        weights: n numbers.

    Example:
        >>> ChangeStack((torch.eye(2), Factors(torch.ones(2, 1), torch.ones(1, 2))), (1.0, 0.5)).rows(1, slice(0, 1))
        tensor([[1., 1.]])
    """

    matrices: tuple[Matrix, ...]
    weights: tuple[float, ...]

    @property
    def shape(self) -> tuple[int, int]:
        rows, columns = self.matrices[0].shape[-2:]
        return rows, columns

    @property
    def device(self) -> torch.device:
        first = self.matrices[0]
        return first.A.device if isinstance(first, Factors) else first.device

    def item(self, i: int, weights: tuple[float, ...] | None = None) -> ChangeStack:
        """One of a batch, perhaps with weights of its own."""
        chosen = (Factors(m.B[i], m.A[i]) if isinstance(m, Factors) else m[i] for m in self.matrices)
        return ChangeStack(tuple(chosen), weights or self.weights)

    def blocks(self) -> list[slice]:
        """Row blocks that cover the matrices; they depend on the shapes alone."""
        rows, columns = self.shape
        on_cpu = self.device.type == "cpu"
        held, fewest = (BLOCK << (rows * columns > LARGE), FEWEST_ROWS) if on_cpu else (GPU_BLOCK, 1)
        return list(panels(rows, max(fewest, held // (max(4, len(self.matrices)) * columns))))

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

    def spread_sample(self, i: int, size: int) -> Tensor:
        """At least `size` entries of one matrix, or nearly, as many from each row and as many from each column.

        Rows and columns differ in size, so that those of a few would say less of the whole. With g groups of every g-th
        row, and as many of columns, the sample is where the first group of rows meets that of columns, and so on.
        """
        groups = max(1, min(*self.shape, math.prod(self.shape) // max(1, size)))
        rows, columns = (side // groups for side in self.shape)
        matrix = self.matrices[i]
        if isinstance(matrix, Factors):
            b = matrix.B[: rows * groups].unflatten(0, (rows, groups)).transpose(0, 1)
            a = matrix.A[:, : columns * groups].unflatten(1, (columns, groups)).permute(2, 0, 1)
            return torch.bmm(b.contiguous(), a.contiguous())
        whole = matrix[: rows * groups, : columns * groups].reshape(rows, groups, columns, groups)
        return whole.diagonal(dim1=1, dim2=3)


def _spaced(size: int, count: int, device: torch.device) -> Tensor:
    return torch.linspace(0, size - 1, max(1, min(size, count)), device=device).round().long()
