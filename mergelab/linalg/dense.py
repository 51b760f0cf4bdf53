"""The leading singular values of dense matrices, at most a thousandth worse than the best."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from mergelab.linalg import host
from mergelab.linalg.draws import EntryDraws, key_of
from mergelab.linalg.gram import gram
from mergelab.linalg.lowrank import Combination, Spectrum, decompose
from mergelab.linalg.workspace import Workspace

# Up to this smaller side the decomposition of a Gram matrix is cheap enough to be exact.
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
    matrix: Float[Tensor, "*batch out in"],
    wanted: int | float,
    start: Float[Tensor, "*batch in l"] | None = None,
    workspace: Workspace | None = None,
    energy: Float64[Tensor, " *batch"] | None = None,
) -> Spectrum:
    """The leading singular values and vectors of a dense matrix, or of each of a batch.

    Args:
        matrix: `(..., out, in)`, float32.
        wanted: how many (int), or the share of the energy that they shall hold (float in (0, 1)).
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

    Source: Halko, Martinsson, Tropp, arXiv 0909.4061, algorithm 4.4; orthonormal bases by Gram matrices in float64, twice.
    """
    workspace = workspace or Workspace()
    if matrix.dim() == 2:
        given = (None if x is None else x[None] for x in (start, energy))
        found = svd_dense(matrix[None], wanted, next(given), workspace, next(given))
        return Spectrum(*(part[0] for part in found))
    side, rank = min(matrix.shape[-2:]), wanted if isinstance(wanted, int) else 64
    found: dict[int, Spectrum] = {}
    items = list(range(len(matrix)))
    while items and side > EXACT_SIDE and rank < side // 3:
        energy = squared_norms(matrix, workspace) if energy is None else energy
        spectrum = _subspace_iteration(matrix, items, rank, energy, start, workspace)
        if spectrum is None:
            break
        enough = [isinstance(wanted, int) or bool(kept >= wanted * energy[i]) for i, kept in zip(items, spectrum.kept)]
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


def _wanted(spectrum: Spectrum, wanted: int | float) -> Spectrum:
    return spectrum.truncated(wanted) if isinstance(wanted, int) else spectrum


def _side_by_side(spectra: Sequence[Spectrum]) -> Spectrum:
    """A batch of several, with zeros where one has fewer values than another."""
    most = max(len(spectrum.S) for spectrum in spectra)

    def joined(parts: Sequence[Tensor]) -> Tensor:
        return torch.stack([torch.nn.functional.pad(x, (0, most - x.shape[-1])) for x in parts])

    u, s, v, energy = zip(*spectra)
    return Spectrum(joined(u), joined(s), joined(v), torch.stack(energy))


def squared_norms(matrix: Float[Tensor, "*batch out in"], workspace: Workspace | None = None) -> Float64[Tensor, " *batch"]:
    """Squared Frobenius norms, summed in float64 over blocks of rows; on the CPU.

    Example:
        >>> squared_norms(torch.tensor([[3.0, 4.0]])).tolist()
        25.0
    """

    if matrix.device.type == "cpu":
        found = [_squared_norm(item, workspace or Workspace()) for item in matrix.reshape(-1, *matrix.shape[-2:])]
        return torch.tensor(found, dtype=torch.float64).reshape(matrix.shape[:-2])
    blocks = torch.split(matrix, max(128, (1 << 26) // matrix[..., 0, :].numel()), dim=-2)
    return host.to_host(sum(torch.linalg.vector_norm(block, dim=(-2, -1), dtype=torch.float64).square() for block in blocks))[0]


def _squared_norm(matrix: Tensor, workspace: Workspace) -> float:
    def of(block: Tensor) -> float:  # small tensors between the blocks would keep the system from using these again
        exact = block.double().flatten()
        return float(torch.dot(exact, exact))

    return sum(workspace.map(of, torch.split(matrix, 128)))


def leading_directions(change: Combination, count: int) -> Float[Tensor, "*batch in l"]:
    """Right singular vectors of a combination, to the precision that a start needs; zero where it has no more.

    Example:
        >>> from mergelab.linalg.lowrank import Factors, Span, weighted_sum_of
        >>> change = Factors(torch.ones(4, 1), torch.tensor([[0.0, 5.0]]))
        >>> leading_directions(weighted_sum_of(Span.of([change]), torch.ones(1)), 1).abs()
        tensor([[0.],
                [1.]])
    """
    found = decompose(change, lambda s: min(count, len(s)))
    return found.span.A.mT @ host.like(found.right, found.span.A)


def _by_gram_matrix(matrix: Tensor, workspace: Workspace) -> Spectrum:
    """All singular values, those below 1e-8 of the largest being rounding."""
    is_tall = matrix.shape[-2] >= matrix.shape[-1]
    tall = matrix if is_tall else matrix.mT
    squares, vectors = host.eigh(gram(tall), workspace)
    s = squares.clamp_min(0).sqrt()
    near = host.like(vectors, tall)
    far = tall @ host.like(vectors * _inverse(s), tall)
    # The energy of these values, not of the matrix: between the two lies a rounding that is more than a small tail.
    energy = s.square().sum(-1)
    return Spectrum(far, s, near, energy) if is_tall else Spectrum(near, s, far, energy)


class _State(NamedTuple):
    """Where the iteration stands with some matrices of a batch.

    Attributes:
        items: which they are.
        sketch: what the last pass gave, `(items, out or in, width)`.
        values, vectors: of its Gram matrices.
        kept, gain: squared norms that it holds, and by how much more than before.
        number: of passes since the first, in this precision.
    """

    items: Tensor
    sketch: Tensor
    values: Tensor
    vectors: Tensor
    kept: Tensor
    gain: Tensor
    number: int

    def of(self, chosen: Tensor) -> _State:
        """A part of them."""
        if bool(chosen.all()):
            return self
        there = host.like(chosen.nonzero()[:, 0], self.sketch, self.items.dtype)
        return _State(
            self.items[chosen],
            self.sketch[there],
            self.values[chosen],
            self.vectors[chosen],
            self.kept[chosen],
            self.gain[chosen],
            self.number,
        )


def _subspace_iteration(
    matrix: Tensor, items: Sequence[int], rank: int, energy: Tensor, start: Tensor | None, workspace: Workspace
) -> Spectrum | None:
    """Multiply by the matrices and by their transposes in turn, until what further passes could still gain is too little
    to matter; None if that never happens.

    The gains of successive passes fall geometrically, by a ratio that the spectrum sets: the square of the first
    singular value that the subspace misses over the last one that is wanted, or what the last two gains say, whichever
    is larger. From it the sum of all that would follow is known, `gain * ratio / (1 - ratio)`; a small gain alone may
    be the first of many. Every matrix of a batch leaves when it is done, with what it would have by itself.
    """
    sketch, count, zeros = _first_sketch(matrix, len(items), rank, start), len(items), energy.new_zeros(len(items))
    found = Spectrum(
        matrix.new_zeros(count, matrix.shape[1], rank),
        energy.new_zeros(count, rank),
        matrix.new_zeros(count, matrix.shape[2], rank),
        energy[items],
    )
    states = [_State(torch.arange(count), sketch, *host.eigh(gram(sketch), workspace), zeros, zeros, 0)]
    for forward in itertools.islice(itertools.cycle((True, False)), MAX_PASSES):
        following = []
        for state in states:
            basis = _orthonormal(state.sketch, state.values, state.vectors)
            turned = matrix if forward else matrix.mT
            sketch = _times(turned, [items[i] for i in state.items], basis, workspace)
            state, done, fine = _passed(state, sketch, rank, found.energy, workspace)
            if bool(done.any()):
                _leave(found, state.of(done), basis[host.like(done, basis, torch.bool)], forward)
            if bool(fine.any()):
                finer = state.of(fine)
                following.append(finer._replace(sketch=finer.sketch.double(), number=0))
            if bool((~(done | fine)).any()):
                following.append(state.of(~(done | fine)))
        states = following
        if not states:
            return found.truncated(max(1, int((found.S > 0).sum(-1).max())))
    return None


def _passed(
    state: _State, sketch: Tensor, rank: int, energy: Tensor, workspace: Workspace
) -> tuple[_State, Tensor, Tensor]:
    """After one more pass, which gave the sketch: the state, which are done with, and which go on in float64."""
    energy, number = energy[state.items], state.number
    values, vectors = host.eigh(gram(sketch), workspace)
    now = values[:, :rank].sum(-1)
    missing, gain = energy - now, now - state.kept
    # What was gained so far is rounding.
    fine = (missing < FINE * energy) & (sketch.dtype != torch.float64)
    missed = values[:, -1] / values[:, rank - 1].clamp_min(1e-300)
    observed = torch.full_like(gain, MAX_RATIO)
    if number > 1:
        observed = torch.where(state.gain > 0, gain / state.gain.clamp_min(1e-300), 0.0)
    ratio = missed.maximum(observed).clamp(MIN_RATIO, MAX_RATIO)
    to_come = gain.clamp_min(0.0) * ratio / (1 - ratio)
    done = missing < NOTHING * energy
    if number > 1:
        done |= to_come <= TOLERANCE * missing
    return _State(state.items, sketch, values, vectors, now, gain, number + 1), done & ~fine, fine


def _leave(found: Spectrum, state: _State, basis: Tensor, forward: bool) -> None:
    """Write down singular values and vectors; a matrix of lower rank has no further directions, only rounding."""
    rank = found.S.shape[-1]
    s, vectors = state.values[:, :rank].clamp_min(0).sqrt(), state.vectors[..., :rank]
    s = torch.where(s > ROUNDING * s[:, :1], s, 0.0)
    image = (state.sketch @ host.like(vectors * _inverse(s), state.sketch)).to(found.U)
    source = (basis @ host.like(vectors * (s > 0)[:, None], basis)).to(found.U)
    there = host.like(state.items, found.U, state.items.dtype)
    found.U[there], found.V[there] = (image, source) if forward else (source, image)
    found.S[state.items] = s


def _first_sketch(matrix: Tensor, count: int, rank: int, start: Tensor | None) -> Tensor:
    """Directions to begin with, `(..., in, width)`: the known ones, then random ones, the same for every matrix."""
    columns, width = matrix.shape[-1], rank + max(OVERSAMPLE, rank // 4)
    known = matrix.new_zeros(count, columns, 0) if start is None else start[..., :width]
    random = _random(columns, width - known.shape[-1], matrix.device).expand(count, -1, -1)
    return torch.cat([known, random], dim=-1)


@lru_cache(maxsize=8)
def _random(rows: int, columns: int, device: torch.device) -> Tensor:
    """Uniform numbers around zero, as long as a unit vector: (almost) any start is as good."""
    uniform = EntryDraws(key_of("start")).uniform(slice(0, rows), columns, device)
    return uniform.sub_(0.5).mul_((12 / rows) ** 0.5)


def _inverse(s: Tensor) -> Tensor:
    """`1 / s` for the columns of a batch of matrices, `(..., 1, k)`; 0 where a value is the rounding of the largest."""
    return torch.where(s > ROUNDING * s[..., :1].clamp_min(1e-300), 1 / s, 0.0)[..., None, :]


def _orthonormal(sketch: Tensor, values: Tensor, vectors: Tensor) -> Tensor:
    """An orthonormal basis of the columns, from the eigenvalues of their Gram matrix; zeros in the place of null directions.

    Divided by singular values, what float32 rounds off is larger the smaller the value: a Cholesky factor takes the rest out.
    """
    basis = sketch @ host.like(vectors * _inverse(values.clamp_min(0).sqrt()), sketch)
    square = gram(basis)
    diagonal = square.diagonal(dim1=-2, dim2=-1)
    factor, _ = torch.linalg.cholesky_ex(square + torch.diag_embed((diagonal == 0).double()))
    inverse = torch.linalg.solve_triangular(factor, torch.eye(len(factor[0]), device=factor.device).to(factor), upper=False)
    return basis @ inverse.mT.to(basis)


def _times(matrix: Tensor, items: Sequence[int], basis: Tensor, workspace: Workspace) -> Tensor:
    """`matrix[item] @ basis` for each item, in panels of rows, in the precision of the basis."""
    product = torch.empty(len(items), matrix.shape[1], basis.shape[-1], dtype=basis.dtype, device=matrix.device)
    step = PANEL if matrix.device.type == "cpu" else matrix.shape[1]
    work = [(i, item, rows) for i, item in enumerate(items) for rows in panels(matrix.shape[1], step)]

    def panel(one: tuple[int, int, slice]) -> None:
        i, item, rows = one
        torch.matmul(matrix[item, rows].to(basis), basis[i], out=product[i, rows])

    workspace.each(panel, work) if step == PANEL else list(map(panel, work))
    return product


def panels(length: int, step: int) -> Iterator[slice]:
    """Slices that cover a length.

    Example:
        >>> list(panels(5, 3))
        [slice(0, 3, None), slice(3, 5, None)]
    """
    for start in range(0, length, step):
        yield slice(start, min(start + step, length))
