"""Small matrices are decomposed on the CPU, wherever the large ones are: one transfer there for a whole batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from mergelab.linalg.workspace import Workspace

# A symmetric matrix of a larger side is decomposed where it is.
LARGEST_ON_HOST = 1024


def to_host(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Tensors of one dtype on the CPU, in one transfer; the one place where a computation waits for a GPU.

    Example:
        >>> [x.tolist() for x in to_host(torch.ones(2), torch.zeros(1, 1))]
        [[1.0, 1.0], [[0.0]]]
    """
    if all(x.device.type == "cpu" for x in tensors):
        return tensors
    flat = torch.cat([x.reshape(-1) for x in tensors]).cpu()
    parts = flat.split([x.numel() for x in tensors])
    return tuple(part.view(x.shape) for part, x in zip(parts, tensors))


def like(x: Tensor, other: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """A tensor of the host where another is, without waiting; in that one's dtype, or in the one given."""
    x = x.to(dtype or other.dtype)
    return x.contiguous().pin_memory().to(other.device, non_blocking=True) if other.is_cuda else x.to(other.device)


def each(function: Callable[..., Any], *batches: Tensor, workspace: Workspace | None = None) -> list[Any]:
    """A function of matrices for every item of batches `(..., m, n)` with the same leading dimensions, in their order.

    Example:
        >>> each(lambda m: float(m.sum()), torch.ones(2, 3, 3))
        [9.0, 9.0]
    """
    items = [x.reshape(-1, *x.shape[-2:]) for x in batches]
    return list((workspace or Workspace()).map(lambda i: function(*(x[i] for x in items)), range(len(items[0]))))


def eigh(matrices: Tensor, workspace: Workspace | None = None) -> tuple[Tensor, Tensor]:
    """Eigenvalues, the largest first, and eigenvectors of symmetric float64 matrices `(..., k, k)`, on the host.

    Example:
        >>> eigh(torch.diag(torch.tensor([1.0, 4.0])).double())[0].tolist()
        [4.0, 1.0]
    """
    lead, k = matrices.shape[:-2], matrices.shape[-1]
    if k > LARGEST_ON_HOST and matrices.device.type != "cpu":
        values, vectors = to_host(*torch.linalg.eigh(matrices))
    else:
        found = each(torch.linalg.eigh, *to_host(matrices), workspace=workspace)
        values = torch.stack([w for w, _ in found]).reshape(*lead, k)
        vectors = torch.stack([v for _, v in found]).reshape(*lead, k, k)
    return values.flip(-1), vectors.flip(-1)
