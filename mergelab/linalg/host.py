"""Small matrices are decomposed by the CPU's threads, wherever they are: one transfer there and back for a batch."""

from __future__ import annotations

from collections.abc import Callable

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
    flat = torch.cat([x.reshape(-1) for x in tensors])
    there = torch.empty(flat.shape, dtype=flat.dtype, pin_memory=flat.is_cuda)
    there.copy_(flat)
    parts = there.split([x.numel() for x in tensors])
    return tuple(part.view(x.shape) for part, x in zip(parts, tensors))


def like(x: Tensor, other: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """A tensor where another is, without waiting; in that one's dtype, or in the one given."""
    return sent(x.to(dtype or other.dtype), other.device)


def sent(x: Tensor, device: torch.device) -> Tensor:
    """A tensor on a device, without waiting for what is computed there."""
    if device.type == "cuda" and not x.is_cuda:
        return x.contiguous().pin_memory().to(device, non_blocking=True)
    return x.to(device)


def each(function: Callable[[Tensor], Tensor], matrices: Tensor, workspace: Workspace | None = None) -> Tensor:
    """A function of batches of matrices, `(count, k, k)` in float64, on shares of a batch `(..., k, k)`.

    Each thread has a share; of what takes longest there Python sees one call.

    Args:
        function: `(count, k, k)` -> `(count, m, n)`, item by item.
        matrices: anywhere.
        workspace: threads.

    Returns:
        `(..., m, n)`, on the CPU.

    Example:
        >>> each(torch.linalg.inv, torch.eye(2).double().expand(3, 2, 2)).shape
        torch.Size([3, 2, 2])
    """
    workspace, (items,) = workspace or Workspace(), to_host(matrices)
    flat = items.reshape(-1, *items.shape[-2:])
    parts = flat.split(-(-len(flat) // workspace.threads))
    found = function(flat) if len(parts) == 1 else torch.cat(list(workspace.map(function, parts)))
    return found.reshape(*items.shape[:-2], *found.shape[1:])


def eigh(matrices: Tensor, workspace: Workspace | None = None) -> tuple[Tensor, Tensor]:
    """Eigenvalues, the largest first, and eigenvectors of symmetric float64 matrices `(..., k, k)`.

    Returns:
        The values `(..., k)`, on the CPU; the vectors `(..., k, k)`, where the matrices are.

    Example:
        >>> eigh(torch.diag(torch.tensor([1.0, 4.0])).double())[0].tolist()
        [4.0, 1.0]
    """
    if matrices.shape[-1] > LARGEST_ON_HOST and matrices.device.type != "cpu":
        values, vectors = torch.linalg.eigh(matrices)
        return to_host(values)[0].flip(-1), vectors.flip(-1)
    found = each(_eigh, matrices, workspace)
    return found[..., 0, :].flip(-1), like(found[..., 1:, :].flip(-1), matrices)


def _eigh(matrices: Tensor) -> Tensor:
    """Values and vectors in one tensor, the values in the first row."""
    values, vectors = torch.linalg.eigh(matrices)
    return torch.cat([values[:, None], vectors], dim=1)
