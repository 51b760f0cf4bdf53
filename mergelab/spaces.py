"""SPACE: where a rule acts. Changes of one layer become matrices in a space, and the rule's result a change again.

A space knows nothing of methods; what tells one space from another is data that the engine asks for.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from mergelab.errors import OptionError
from mergelab.linalg.lowrank import Core, Factors, stacked_gram
from mergelab.linalg.stacks import ChangeStack

# Singular directions below this share of the largest are rounding, not part of any change.
NULL_TOLERANCE = 4e-6

# What a merge of one layer yields: factors that are final as they are, a low-rank product, or a dense change.
Merged = Factors | Core | Tensor


def dense(merged: Merged) -> Tensor:
    """What a merge of one layer yields as a dense matrix, `(out, in)`.

    Example:
        >>> dense(Factors(torch.ones(2, 1), torch.ones(1, 2))).tolist()
        [[1.0, 1.0], [1.0, 1.0]]
    """
    if isinstance(merged, Core):
        return merged.U @ merged.M.to(merged.U) @ merged.V.T
    return merged.delta() if isinstance(merged, Factors) else merged


@dataclass(frozen=True)
class Coordinates:
    """The changes of one layer in a space.

    Attributes:
        stacks: that the rule is applied to: one, or two in space "factors".
        restore: the merged change from the rule's results, one for each stack.
    """

    stacks: tuple[ChangeStack, ...]
    restore: Callable[[list[Tensor]], Merged]


@dataclass(frozen=True)
class Space:
    """One space.

    Attributes:
        name: of the option `space=`.
        build: `(changes, weights, weigh, basis)` -> coordinates. With `weigh` the matrices are those of the changes
            times their weights, and the weights that are left are 1; without, both are as given.
        bases: that the option `basis=` can name.
        keeps_sums: a weighted sum in the space is the weighted sum of the changes, so it need not be formed there.
        is_dense: its matrices are as large as the layer.
        acts_on_factors: the rule sees `lora_A` and `lora_B` as files hold them, without scalings and in the order
            given, each as a whole, with the arithmetic and the draws of PEFT.
        breaks: laws that no method obeys in this space -> why.
    """

    name: str
    build: Callable[[Sequence[Factors], Sequence[float], bool, str], Coordinates]
    bases: tuple[str, ...] = ("changes",)
    keeps_sums: bool = True
    is_dense: bool = False
    acts_on_factors: bool = False
    breaks: Mapping[str, str] = field(default_factory=dict)


def checked_space(name: object, basis: object, known: Sequence[str]) -> Space:
    """The space of this name, if it is one of the known ones and has the basis.

    Raises:
        OptionError: there is no such space here, or no such basis in it.

    Example:
        >>> checked_space("core", "factors", ["delta", "core"]).is_dense
        False
    """
    if name not in known or name not in SPACES:
        raise OptionError(f"space={name!r}: expected one of {', '.join(map(repr, known))}")
    space = SPACES[str(name)]
    if basis not in space.bases:
        homes = [other.name for other in SPACES.values() if basis in other.bases]
        if not homes:
            raise OptionError(f"basis={basis!r}: expected one of {', '.join(map(repr, BASES))}")
        raise OptionError(f"basis={basis!r} belongs to space={homes[0]!r}, found space={name!r}")
    return space


def delta_coordinates(changes: Sequence[Factors], weights: Sequence[float], weigh: bool, basis: str) -> Coordinates:
    """The changes themselves, `(out, in)`, formed in blocks when they are asked for.

    Args:
        changes: of one layer, `(out, in)` each, without their weights.
        weights: one for each, not 0.
        weigh: whether the rule is to see `w_i * delta_i`, beside weights of 1; else it sees `delta_i` beside `w_i`.
        basis: "changes"; there is no other here.

    Example:
        >>> change = Factors(torch.ones(2, 1), torch.ones(1, 2))
        >>> for weigh in (True, False):
        ...     (stack,) = delta_coordinates([change], [0.5], weigh, "changes").stacks
        ...     stack.rows(0, slice(0, 1)).tolist(), stack.weights
        ([[0.5, 0.5]], (1.0,))
        ([[1.0, 1.0]], (0.5,))
    """
    if weigh:
        changes, weights = [c.scaled(w) for c, w in zip(changes, weights)], [1.0] * len(changes)
    return Coordinates((ChangeStack(tuple(changes), tuple(weights)),), lambda results: results[0])


def core_coordinates(changes: Sequence[Factors], weights: Sequence[float], weigh: bool, basis: str) -> Coordinates:
    """`U.T delta_i V` with orthonormal U and V that span all column and all row spaces: nothing is lost.

    Basis "changes": the singular vectors of the weighted changes side by side, and one below the other. They depend
    on nothing but the changes, as long as the singular values differ. Basis "factors": those of the stacked `lora_B`
    and `lora_A`, weights and scalings in the first, as the published code takes them (arXiv 2509.17786).

    Args:
        changes: of one layer, `(out, in)` each, without their weights.
        weights: one for each, not 0; in either case they shape the basis.
        weigh: whether the rule is to see the cores of `w_i * delta_i`, beside weights of 1; else it sees those of
            `delta_i` beside `w_i`.
        basis: "changes" or "factors".

    Returns:
        One stack of cores, `(at most the sum of the ranks)` square, and a `restore` that gives a `Core`.

    Example:
        >>> change = Factors(torch.ones(8, 1), torch.ones(1, 2))
        >>> coordinates = core_coordinates([change], [0.5], True, "changes")
        >>> core = coordinates.stacks[0].matrices[0]
        >>> core.round(decimals=4).tolist(), dense(coordinates.restore([core])).round(decimals=4)[0].tolist()
        ([[2.0]], [0.5, 0.5])
    """
    whole = stacked_gram([c.scaled(w) for c, w in zip(changes, weights)])
    cores = whole.cores()
    if basis == "factors":
        u, left = _singular_vectors(whole.B, whole.r_b)
        v, right = _singular_vectors(whole.A.T, whole.r_a)
    else:
        u, left = _span(whole.B, cores, whole.r_a.split(whole.ranks, dim=1))
        v, right = _span(whole.A.T, [m.T for m in cores], whole.r_b.split(whole.ranks, dim=1))
    seen = _for_rule([left.T @ m @ right for m in cores], weights, weigh)
    return Coordinates((seen,), lambda results: Core(u, results[0].double(), v))


def knots_coordinates(changes: Sequence[Factors], weights: Sequence[float], weigh: bool, basis: str) -> Coordinates:
    """`Sigma V_i.T` of the joint decomposition `[delta_1 | ... | delta_n] = U Sigma V.T` (KnOTS, arXiv 2410.19735).

    Args:
        changes: of one layer, `(out, in)` each, without their weights.
        weights: one for each, not 0; in either case U is that of the weighted changes.
        weigh: whether the rule is to see `U.T w_i delta_i`, beside weights of 1; else it sees `U.T delta_i` beside
            `w_i`.
        basis: "changes"; there is no other here.

    Returns:
        One stack of matrices, `(at most the sum of the ranks, in)`, and a `restore` that gives a `Core`.

    Example:
        >>> change = Factors(torch.ones(4, 1), torch.ones(1, 3))
        >>> coordinates = knots_coordinates([change, change], [1.0, -0.5], False, "changes")
        >>> [m.round(decimals=4).tolist() for m in coordinates.stacks[0].matrices], coordinates.stacks[0].weights
        ([[[2.0, 2.0, 2.0]], [[2.0, 2.0, 2.0]]], (1.0, -0.5))
    """
    whole = stacked_gram([c.scaled(w) for c, w in zip(changes, weights)])
    u, left = _span(whole.B, whole.cores(), whole.r_a.split(whole.ranks, dim=1))
    # `U.T delta_i`, without the orthonormal factors of delta_i: what is left of B's root times A.
    roots, rows = whole.r_b.split(whole.ranks, dim=1), whole.A.double().split(whole.ranks)
    seen = _for_rule([(left.T @ r).to(a) @ a for r, a in zip(roots, rows)], weights, weigh)

    def restore(results: list[Tensor]) -> Core:
        q, r = torch.linalg.qr(results[0].T)
        return Core(u, r.double().T, q)

    return Coordinates((seen,), restore)


def factor_coordinates(changes: Sequence[Factors], weights: Sequence[float], weigh: bool, basis: str) -> Coordinates:
    """`lora_A` and `lora_B` by themselves, padded to one rank, each with the root of the weight.

    The arithmetic is PEFT's (0.21), in its order, so that its results are reproduced to the last bit.

    Args:
        changes: the factors of one layer as a file holds them, `(out, in)` each, without scalings and weights.
        weights: one for each, weight times scaling, not 0. The stack of `lora_A` gets `sign(w_i) sqrt(|w_i|)`, that of
            `lora_B` `sqrt(|w_i|)`.
        weigh: of no effect: PEFT's rules see the factors as they are, beside their weights.
        basis: "changes"; there is no other here.

    Returns:
        Two stacks, `(rank, in)` and `(out, rank)` at the largest rank, and a `restore` that gives `Factors`.

    Example:
        >>> a, b = factor_coordinates([Factors(torch.ones(2, 1), torch.ones(1, 3))], [-4.0], False, "changes").stacks
        >>> (a.shape, a.weights), (b.shape, b.weights)
        (((1, 3), (-2.0,)), ((2, 1), (2.0,)))
    """
    rank = max(c.A.shape[0] for c in changes)
    a = tuple(torch.nn.functional.pad(c.A, (0, 0, 0, rank - c.A.shape[0])) for c in changes)
    b = tuple(torch.nn.functional.pad(c.B, (0, rank - c.B.shape[1])) for c in changes)
    roots = tuple(math.sqrt(abs(w)) for w in weights)
    signed = tuple(math.copysign(root, w) for root, w in zip(roots, weights))
    return Coordinates((ChangeStack(a, signed), ChangeStack(b, roots)), lambda results: Factors(results[1], results[0]))


def _span(columns: Tensor, cores: Sequence[Tensor], roots: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Left singular vectors of the changes side by side, in full and in the coordinates of the cores.

    With `l` in these coordinates, `sum_i m_i m_i.T l = s^2 l` and `m_i = r_i t_i.T`, so that the vector in full is
    `columns` times the stack of `t_i.T m_i.T l / s^2`.
    """
    squares, left = torch.linalg.eigh(sum(m @ m.T for m in cores))
    squares, left = squares.flip(0), left.flip(1)
    count = max(1, int((squares > NULL_TOLERANCE**2 * squares[0]).sum()))
    squares, left = squares[:count], left[:, :count]
    parts = [t.T @ (m.T @ left) for m, t in zip(cores, roots)]
    vectors = columns @ (torch.cat(parts) / squares.clamp_min(1e-300)).to(columns)
    signs = _signs(vectors)
    return vectors * signs, left * signs.to(left)


def _singular_vectors(columns: Tensor, root: Tensor) -> tuple[Tensor, Tensor]:
    """Left singular vectors of a matrix, from its root; in the coordinates of the root they are the axes."""
    squares = root.square().sum(dim=1)
    vectors = (columns.double() @ (root.T / squares.clamp_min(1e-300)).to(columns.device)).to(columns)
    signs = _signs(vectors)
    return vectors * signs, torch.diag(signs.to(root))


def _signs(vectors: Tensor) -> Tensor:
    """By which the largest entry of each vector becomes positive: a rule may see which way a vector points."""
    return torch.where(vectors.amax(dim=0) < -vectors.amin(dim=0), -1.0, 1.0).to(vectors)


def _for_rule(weighted: list[Tensor], weights: Sequence[float], weigh: bool) -> ChangeStack:
    """Float32 matrices and weights as the rule wants them: weighted already, or not yet."""
    if weigh:
        return ChangeStack(tuple(m.float() for m in weighted), (1.0,) * len(weighted))
    return ChangeStack(tuple((m / w).float() for m, w in zip(weighted, weights)), tuple(weights))


SPACES: dict[str, Space] = {
    space.name: space
    for space in (
        Space("delta", delta_coordinates, is_dense=True),
        Space("core", core_coordinates, bases=("changes", "factors")),
        Space("knots", knots_coordinates),
        Space(
            "factors",
            factor_coordinates,
            keeps_sums=False,
            acts_on_factors=True,
            breaks={
                "strength": "sums of factors have cross terms",
                "halves": "PEFT's linear doubles, (2 sqrt(.5) B)(2 sqrt(.5) A) = 2 B A; its averages halve",
                "factoring": "the rule acts on the factors",
            },
        ),
    )
}
PLAIN_SPACE = next(iter(SPACES))
"""Where the changes are what they are, the dense matrices; the default."""
BASES = tuple(dict.fromkeys(basis for space in SPACES.values() for basis in space.bases))
