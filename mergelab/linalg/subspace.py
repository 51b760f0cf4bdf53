"""Randomised subspace iteration on a batch of dense matrices."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from mergelab.linalg import host
from mergelab.linalg.draws import EntryDraws, key_of
from mergelab.linalg.gram import gram
from mergelab.linalg.lowrank import Spectrum
from mergelab.linalg.workspace import Workspace, panels

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
        return _State(
            self.items[chosen],
            self.sketch[_places(chosen, self.sketch)],
            self.values[chosen],
            self.vectors[_places(chosen, self.sketch)],
            self.kept[chosen],
            self.gain[chosen],
            self.number,
        )


def _places(chosen: Tensor, other: Tensor) -> Tensor:
    """Of those that are chosen, as numbers where another tensor is: a mask there would have to be counted first."""
    return host.like(chosen.nonzero()[:, 0], other, torch.long)


def subspace_iteration(
    matrix: Tensor, items: Sequence[int], rank: int, energy: Tensor, start: Tensor | None, workspace: Workspace
) -> Spectrum | None:
    """Multiply by the matrices and by their transposes in turn, until what further passes could still gain is too
    little to matter; None if that never happens.

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
                _leave(found, state.of(done), basis[_places(done, basis)], forward)
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
    over, kept = host.like(inverse_of(s), vectors), host.like((s > 0)[:, None], vectors)
    image = (state.sketch @ (vectors * over).to(state.sketch)).to(found.U)
    source = (basis @ (vectors * kept).to(basis)).to(found.U)
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


def inverse_of(s: Tensor) -> Tensor:
    """`1 / s` for the columns of a batch of matrices, `(..., 1, k)`; 0 where a value is the rounding of the largest."""
    return torch.where(s > ROUNDING * s[..., :1].clamp_min(1e-300), 1 / s, 0.0)[..., None, :]


def _orthonormal(sketch: Tensor, values: Tensor, vectors: Tensor) -> Tensor:
    """An orthonormal basis of the columns, from the eigenvalues of their Gram matrix; zeros for null directions.

    What float32 rounds off is larger the smaller the singular value that is divided by: a Cholesky factor takes the
    rest out.
    """
    over = host.like(inverse_of(values.clamp_min(0).sqrt()), vectors)
    basis = sketch @ (vectors * over).to(sketch)
    square = gram(basis)
    diagonal = square.diagonal(dim1=-2, dim2=-1)
    factor, _ = torch.linalg.cholesky_ex(square + torch.diag_embed((diagonal == 0).double()))
    inverse = torch.linalg.solve_triangular(
        factor, torch.eye(len(factor[0]), device=factor.device).to(factor), upper=False
    )
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
