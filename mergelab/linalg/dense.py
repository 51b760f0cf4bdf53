"""The leading singular values of dense matrices, at most a thousandth worse than the best."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from mergelab.linalg import host
from mergelab.linalg.gram import gram
from mergelab.linalg.lowrank import Spectrum
from mergelab.linalg.span import Combination, decompose
from mergelab.linalg.subspace import inverse_of, subspace_iteration
from mergelab.linalg.workspace import Workspace

# Whether leading singular values, with the squared norm of the whole, are as many as are wanted.
Enough = Callable[[Tensor, float], bool]

# Up to this smaller side the decomposition of a Gram matrix is cheap enough to be exact.
EXACT_SIDE = 256


def svd_dense(
    matrix: Float[Tensor, "*batch out in"],
    wanted: int | Enough,
    start: Float[Tensor, "*batch in l"] | None = None,
    workspace: Workspace | None = None,
    energy: Float64[Tensor, " *batch"] | None = None,
) -> Spectrum:
    """The leading singular values and vectors of a dense matrix, or of each of a batch.

    Args:
        matrix: `(..., out, in)`, float32.
        wanted: how many, or what tells of the leading ones, in float64, whether they are enough.
        start: directions near the leading right singular vectors, if any are known: saves passes over the matrix.
        workspace: threads.
        energy: squared norms, where they are known already.

    Returns:
        Exact where the smaller side is at most 256 or most values are wanted; else by randomised subspace iteration,
        whose error is at most 0.1 % above that of the best approximation of that rank. `energy - kept` is what is
        missed, also where it is tiny.

    Example:
        >>> found = svd_dense(torch.diag(torch.tensor([3.0, 2.0, 1.0])), 2)
        >>> found.S.tolist(), round(float(found.energy))
        ([3.0, 2.0], 14)

    Source: Halko, Martinsson, Tropp, arXiv 0909.4061, algorithm 4.4.
    """
    workspace = workspace or Workspace()
    if matrix.dim() == 2:
        given = (None if x is None else x[None] for x in (start, energy))
        return svd_dense(matrix[None], wanted, next(given), workspace, next(given)).item(0)
    side, rank = min(matrix.shape[-2:]), wanted if isinstance(wanted, int) else 64
    found: dict[int, Spectrum] = {}
    items = list(range(len(matrix)))
    while items and side > EXACT_SIDE and rank < side // 3:
        energy = squared_norms(matrix, workspace) if energy is None else energy
        spectrum = subspace_iteration(matrix, items, rank, energy, start, workspace)
        if spectrum is None:
            break
        enough = [isinstance(wanted, int) or wanted(s, float(energy[i])) for i, s in zip(items, spectrum.S)]
        if all(enough) and len(items) == len(matrix):
            return spectrum
        found |= {item: spectrum.item(i) for i, item in enumerate(items) if enough[i]}
        # What is found is where the search for more begins.
        start = spectrum.V[[i for i, ended in enumerate(enough) if not ended]]
        items, rank = [item for item, ended in zip(items, enough) if not ended], rank * 2
    if not found:
        return _wanted(_by_gram_matrix(matrix, workspace), wanted)
    if items:
        rest = _wanted(_by_gram_matrix(matrix[items], workspace), wanted)
        found |= {item: rest.item(i) for i, item in enumerate(items)}
    return _side_by_side([found[i] for i in range(len(matrix))])


def _wanted(spectrum: Spectrum, wanted: int | Enough) -> Spectrum:
    return spectrum.truncated(wanted) if isinstance(wanted, int) else spectrum


def _side_by_side(spectra: Sequence[Spectrum]) -> Spectrum:
    """A batch of several, with zeros where one has fewer values than another."""
    most = max(len(spectrum.S) for spectrum in spectra)

    def joined(parts: Sequence[Tensor]) -> Tensor:
        return torch.stack([torch.nn.functional.pad(x, (0, most - x.shape[-1])) for x in parts])

    u, s, v, energy = zip(*spectra)
    return Spectrum(joined(u), joined(s), joined(v), torch.stack(energy))


def squared_norms(
    matrix: Float[Tensor, "*batch out in"], workspace: Workspace | None = None
) -> Float64[Tensor, " *batch"]:
    """Squared Frobenius norms, summed in float64 over blocks of rows; on the CPU.

    Example:
        >>> squared_norms(torch.tensor([[3.0, 4.0]])).tolist()
        25.0
    """

    if matrix.device.type == "cpu":
        found = [_squared_norm(item, workspace or Workspace()) for item in matrix.reshape(-1, *matrix.shape[-2:])]
        return torch.tensor(found, dtype=torch.float64).reshape(matrix.shape[:-2])
    blocks = torch.split(matrix, max(128, (1 << 26) // matrix[..., 0, :].numel()), dim=-2)
    return host.to_host(
        sum(torch.linalg.vector_norm(block, dim=(-2, -1), dtype=torch.float64).square() for block in blocks)
    )[0]


def _squared_norm(matrix: Tensor, workspace: Workspace) -> float:
    def of(block: Tensor) -> float:  # small tensors between the blocks would keep the system from using these again
        exact = block.double().flatten()
        return float(torch.dot(exact, exact))

    return sum(workspace.map(of, torch.split(matrix, 128)))


def leading_directions(change: Combination, count: int) -> Float[Tensor, "*batch in l"]:
    """Right singular vectors of a combination, to the precision that a start needs; zero where it has no more.

    Example:
        >>> from mergelab.linalg.lowrank import Factors
        >>> from mergelab.linalg.span import Span, weighted_sum_of
        >>> change = Factors(torch.ones(4, 1), torch.tensor([[0.0, 5.0]]))
        >>> leading_directions(weighted_sum_of(Span.of([change]), torch.ones(1)), 1).abs()
        tensor([[0.],
                [1.]])
    """
    found = decompose(change, lambda s: min(count, len(s)))
    return found.span.A.mT @ found.right.to(found.span.A)


def _by_gram_matrix(matrix: Tensor, workspace: Workspace) -> Spectrum:
    """All singular values, those below 1e-8 of the largest being rounding."""
    is_tall = matrix.shape[-2] >= matrix.shape[-1]
    tall = matrix if is_tall else matrix.mT
    squares, vectors = host.eigh(gram(tall), workspace)
    s = squares.clamp_min(0).sqrt()
    near = vectors.to(tall)
    far = tall @ (vectors * host.like(inverse_of(s), vectors)).to(tall)
    # The energy of these values, not of the matrix: between the two lies a rounding that is more than a small tail.
    energy = s.square().sum(-1)
    return Spectrum(far, s, near, energy) if is_tall else Spectrum(near, s, far, energy)
