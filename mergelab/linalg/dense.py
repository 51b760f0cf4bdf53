"""The leading singular values of a dense matrix, at most a thousandth worse than the best."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor

from mergelab.linalg.lowrank import Factors, Spectrum
from mergelab.linalg.workspace import Workspace

# Up to this smaller side a dense SVD is cheap enough to be exact.
EXACT_SIDE = 256
OVERSAMPLE = 16
MAX_PASSES = 80
# Stop when all further passes together would lower the squared error by less than this share of it.
TOLERANCE = 5e-4
# The ratio of successive gains, as far as it is believed.
MIN_RATIO, MAX_RATIO = 0.1, 0.99
ROUNDING = 1e-7
# Where less than this share of the energy is missed, float32 cannot tell what a pass gains: passes are made in float64.
FINE = 1e-3
# What is missed below this share of the energy is the rounding of a float32 matrix.
NOTHING = 1e-13
# Rows or columns of a matrix that one thread multiplies at a time.
PANEL = 512


def svd_dense(
    matrix: Float[Tensor, "out in"],
    wanted: int | float,
    generator: torch.Generator,
    start: Float[Tensor, "in l"] | None = None,
    workspace: Workspace | None = None,
) -> Spectrum:
    """The leading singular values and vectors of a dense matrix.

    Args:
        matrix: `(out, in)`, float32.
        wanted: how many (int), or the share of the energy that they shall hold (float in (0, 1)).
        generator: for the random start of the iteration.
        start: directions near the leading right singular vectors, if any are known: saves passes over the matrix.
        workspace: threads.

    Returns:
        Exact where the smaller side is at most 256 or most values are wanted; else by randomised subspace iteration,
        whose error is at most 0.1 % above that of the best approximation of that rank. `energy - kept` is what is
        missed, also where it is tiny.

    Example:
        >>> found = svd_dense(torch.diag(torch.tensor([3.0, 2.0, 1.0])), 2, torch.Generator())
        >>> found.S.tolist(), round(found.energy)
        ([3.0, 2.0], 14)

    Source: Halko, Martinsson, Tropp, arXiv 0909.4061, algorithm 4.4.
    """
    workspace = workspace or Workspace()
    side = min(matrix.shape)
    energy = squared_norm(matrix, workspace)
    rank = wanted if isinstance(wanted, int) else 64
    while side > EXACT_SIDE and rank < side // 3:
        spectrum = _subspace_iteration(matrix, rank, energy, generator, start, workspace)
        if spectrum is None:
            break
        if isinstance(wanted, int) or spectrum.kept >= wanted * energy:
            return spectrum
        # What is found is where the search for more begins.
        rank, start = rank * 2, spectrum.V
    u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    s = s.cpu().double()
    # The energy of these values, not of the matrix: between the two lies a rounding that is more than a small tail.
    found = Spectrum(u, s, vh.T, float(s.square().sum()))
    return found.truncated(wanted) if isinstance(wanted, int) else found


def squared_norm(matrix: Tensor, workspace: Workspace | None = None) -> float:
    """Squared Frobenius norm, summed in float64 over blocks of rows.

    Example:
        >>> squared_norm(torch.tensor([[3.0, 4.0]]))
        25.0
    """

    def of(block: Tensor) -> float:
        exact = block.double().flatten()
        return float(torch.dot(exact, exact))

    return sum((workspace or Workspace()).map(of, torch.split(matrix, 128 if matrix.device.type == "cpu" else 4096)))


def leading_directions(changes: Factors, count: int) -> Float[Tensor, "in l"]:
    """Right singular vectors of a product of factors, to the precision that a start needs.

    Example:
        >>> leading_directions(Factors(torch.ones(4, 1), torch.tensor([[0.0, 5.0]])), 1).abs()
        tensor([[0.],
                [1.]])
    """
    gram = changes.B.T @ changes.B
    values, vectors = torch.linalg.eigh(gram.cpu().double())
    root = vectors * values.clamp_min(0).sqrt()
    rows = root.T.to(gram) @ changes.A
    _, vectors = torch.linalg.eigh((rows @ rows.T).cpu().double())
    return torch.linalg.qr(rows.T @ vectors[:, -count:].flip(1).to(rows)).Q


def _subspace_iteration(
    matrix: Tensor, rank: int, energy: float, generator: torch.Generator, start: Tensor | None, workspace: Workspace
) -> Spectrum | None:
    """Multiply by the matrix and by its transpose in turn, until what further passes could still gain is too little
    to matter; None if that never happens.

    The gains of successive passes fall geometrically, by a ratio that the spectrum sets: the square of the first
    singular value that the subspace misses over the last one that is wanted, or what the last two gains say, whichever
    is larger. From it the sum of all that would follow is known, `gain * ratio / (1 - ratio)`; a small gain alone may
    be the first of many.
    """
    width = rank + max(OVERSAMPLE, rank // 4)
    sketch = torch.randn(matrix.shape[1], width, generator=generator, dtype=torch.float32).to(matrix)
    if start is not None:
        sketch[:, : min(width, start.shape[1])] = start[:, :width]
    kept, gain, number = 0.0, 0.0, 0
    for forward in itertools.islice(itertools.cycle((True, False)), MAX_PASSES):
        basis = torch.linalg.qr(sketch).Q
        sketch = _times(matrix if forward else matrix.T, basis, workspace)
        exact = sketch.double()
        values, vectors = torch.linalg.eigh((exact.T @ exact).cpu())
        now = float(values[-rank:].sum())
        missing = energy - now
        before, gain, kept = gain, now - kept, now
        if missing < FINE * energy and sketch.dtype != torch.float64:
            sketch, number = exact, 0  # what was gained so far is rounding
            continue
        missed = float(values[0] / values[-rank].clamp_min(1e-300))
        observed = gain / before if number > 1 and before > 0 else MAX_RATIO if number < 2 else 0.0
        ratio = min(max(observed, missed, MIN_RATIO), MAX_RATIO)
        to_come = max(gain, 0.0) * ratio / (1 - ratio)
        if missing < NOTHING * energy or (number > 1 and to_come <= TOLERANCE * missing):
            break
        number += 1
    else:
        return None
    values, vectors = values[-rank:].flip(0), vectors[:, -rank:].flip(1)
    s = values.clamp_min(0).sqrt()
    # A matrix of lower rank has no further directions, only rounding.
    found = max(1, int((s > ROUNDING * s[0]).sum()))
    s, vectors = s[:found], vectors[:, :found]
    image = exact @ (vectors / s).to(exact) if s[0] > 0 else exact.new_zeros(len(exact), 1)
    image, source = image.to(matrix), (basis @ vectors.to(basis)).to(matrix)
    return Spectrum(image, s, source, energy) if forward else Spectrum(source, s, image, energy)


def _times(matrix: Tensor, basis: Tensor, workspace: Workspace) -> Tensor:
    """`matrix @ basis`, in panels of rows, in the precision of the basis."""
    product = torch.empty(matrix.shape[0], basis.shape[1], dtype=basis.dtype, device=matrix.device)

    def panel(rows: slice) -> None:
        torch.matmul(matrix[rows].to(basis), basis, out=product[rows])

    workspace.each(panel, panels(matrix.shape[0], PANEL if matrix.device.type == "cpu" else matrix.shape[0]))
    return product


def panels(length: int, step: int) -> Iterator[slice]:
    """Slices that cover a length.

    Example:
        >>> list(panels(5, 3))
        [slice(0, 3, None), slice(3, 5, None)]
    """
    for start in range(0, length, step):
        yield slice(start, min(start + step, length))
