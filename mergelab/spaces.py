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
from mergelab.linalg import host
from mergelab.linalg.lowrank import Core, Factors
from mergelab.linalg.span import Combination, Span
from mergelab.linalg.stacks import ChangeStack

# Singular directions below this share of the largest are rounding, not part of any change.
NULL_TOLERANCE = 4e-6

# What a merge of one layer yields: factors that are final as they are, a low-rank product, or a dense change.
Merged = Factors | Core | Combination | Tensor


def dense(merged: Merged) -> Tensor:
    """What a merge of one layer yields as a dense matrix, `(out, in)`.

    Example:
        >>> dense(Factors(torch.ones(2, 1), torch.ones(1, 2))).tolist()
        [[1.0, 1.0], [1.0, 1.0]]
    """
    if isinstance(merged, Core):
        return merged.U @ merged.M.to(merged.U) @ merged.V.T
    return merged.delta() if isinstance(merged, (Factors, Combination)) else merged


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
        build: `(span, weights, weigh, basis)` -> coordinates of the changes of one layer. With `weigh` the matrices are
            those of the changes times their weights, and the weights that are left are 1; without, both are as given.
        bases: that the option `basis=` can name.
        keeps_sums: a weighted sum in the space is the weighted sum of the changes, so it need not be formed there.
        is_dense: its matrices are as large as the layer.
        acts_on_factors: the rule sees `lora_A` and `lora_B` as files hold them, without scalings and in the order
            given, each as a whole, with the arithmetic and the draws of PEFT.
        breaks: laws that no method obeys in this space -> why.
    """

    name: str
    build: Callable[[Span, Sequence[float], bool, str], Coordinates]
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


def delta_coordinates(span: Span, weights: Sequence[float], weigh: bool, basis: str) -> Coordinates:
    """The changes themselves, `(out, in)`, formed in blocks when they are asked for.

    Args:
        span: of the changes of one layer, `(out, in)` each, without their weights.
        weights: one for each, not 0.
        weigh: whether the rule is to see `w_i * delta_i`, beside weights of 1; else it sees `delta_i` beside `w_i`.
        basis: "changes"; there is no other here.

    Example:
        >>> change = Factors(torch.ones(2, 1), torch.ones(1, 2))
        >>> for weigh in (True, False):
        ...     (stack,) = delta_coordinates(Span.of([change]), [0.5], weigh, "changes").stacks
        ...     stack.rows(0, slice(0, 1)).tolist(), stack.weights
        ([[0.5, 0.5]], (1.0,))
        ([[1.0, 1.0]], (0.5,))
    """
    changes = span.changes
    if weigh:
        changes, weights = [c.scaled(w) for c, w in zip(changes, weights)], [1.0] * len(changes)
    return Coordinates((ChangeStack(tuple(changes), tuple(weights)),), lambda results: results[0])


def core_coordinates(span: Span, weights: Sequence[float], weigh: bool, basis: str) -> Coordinates:
    """`U.T delta_i V` with orthonormal U and V that span all column and all row spaces: nothing is lost.

    Basis "changes": the singular vectors of the weighted changes side by side, and one below the other. They depend
    on nothing but the changes, as long as the singular values differ. Basis "factors": those of the stacked `lora_B`
    and `lora_A`, weights and scalings in the first, as the published code takes them (arXiv 2509.17786).

    Args:
        span: of the changes of one layer, `(out, in)` each, without their weights.
        weights: one for each, not 0; in either case they shape the basis.
        weigh: whether the rule is to see the cores of `w_i * delta_i`, beside weights of 1; else it sees those of
            `delta_i` beside `w_i`.
        basis: "changes" or "factors".

    Returns:
        One stack of cores, `(at most the sum of the ranks)` square, on the CPU, and a `restore` that gives a
        `Combination`.

    Example:
        >>> change = Factors(torch.ones(8, 1), torch.ones(1, 2))
        >>> coordinates = core_coordinates(Span.of([change]), [0.5], True, "changes")
        >>> core = coordinates.stacks[0].matrices[0]
        >>> core.round(decimals=4).tolist(), dense(coordinates.restore([core])).round(decimals=4)[0].tolist()
        ([[2.0]], [0.5, 0.5])
    """
    roots_b, roots_a = (root.split(span.ranks, dim=-1) for root in (span.r_b, span.r_a))
    cores = [w * m for w, m in zip(weights, span.cores())]
    if basis == "factors":
        scales = torch.cat([torch.full((rank,), float(w)) for rank, w in zip(span.ranks, weights)]).double()
        u, left = _singular_vectors(span.r_b, scales, span.marks[0])
        v, right = _singular_vectors(span.r_a, torch.ones_like(scales), span.marks[1])
    else:
        u, left = _span(cores, [w * r for w, r in zip(weights, roots_a)], span.marks[0])
        v, right = _span([m.T for m in cores], [w * r for w, r in zip(weights, roots_b)], span.marks[1])
    seen = _for_rule([left.T @ m @ right for m in cores], weights, weigh)
    return Coordinates((seen,), lambda results: Combination(span, u @ results[0].double() @ v.T))


def knots_coordinates(span: Span, weights: Sequence[float], weigh: bool, basis: str) -> Coordinates:
    """`Sigma V_i.T` of the joint decomposition `[delta_1 | ... | delta_n] = U Sigma V.T` (KnOTS, arXiv 2410.19735).

    Args:
        span: of the changes of one layer, `(out, in)` each, without their weights.
        weights: one for each, not 0; in either case U is that of the weighted changes.
        weigh: whether the rule is to see `U.T w_i delta_i`, beside weights of 1; else it sees `U.T delta_i` beside
            `w_i`.
        basis: "changes"; there is no other here.

    Returns:
        One stack of matrices, `(at most the sum of the ranks, in)`, and a `restore` that gives a `Combination`.

    Example:
        >>> change = Factors(torch.ones(4, 1), torch.ones(1, 3))
        >>> coordinates = knots_coordinates(Span.of([change, change]), [1.0, -0.5], False, "changes")
        >>> [m.round(decimals=4).tolist() for m in coordinates.stacks[0].matrices], coordinates.stacks[0].weights
        ([[[2.0, 2.0, 2.0]], [[2.0, 2.0, 2.0]]], (1.0, -0.5))
    """
    roots_b, roots_a = (root.split(span.ranks, dim=-1) for root in (span.r_b, span.r_a))
    cores = [w * m for w, m in zip(weights, span.cores())]
    u, left = _span(cores, [w * r for w, r in zip(weights, roots_a)], span.marks[0])
    # `U.T delta_i`, without the orthonormal factors of delta_i: what is left of B's root times A.
    rows = span.A.double().split(span.ranks)
    seen = _for_rule([host.like(w * left.T @ r, a) @ a for w, r, a in zip(weights, roots_b, rows)], weights, weigh)

    def restore(results: list[Tensor]) -> Combination:
        rows = host.like(u, results[0]) @ results[0]
        return Combination(Span(span.B, rows, (len(rows),)), torch.eye(len(rows), dtype=torch.float64))

    return Coordinates((seen,), restore)


def factor_coordinates(span: Span, weights: Sequence[float], weigh: bool, basis: str) -> Coordinates:
    """`lora_A` and `lora_B` by themselves, padded to one rank, each with the root of the weight.

    The arithmetic is PEFT's (0.21), in its order, so that its results are reproduced to the last bit.

    Args:
        span: of the factors of one layer as a file holds them, `(out, in)` each, without scalings and weights.
        weights: one for each, weight times scaling, not 0. The stack of `lora_A` gets `sign(w_i) sqrt(|w_i|)`, that of
            `lora_B` `sqrt(|w_i|)`.
        weigh: of no effect: PEFT's rules see the factors as they are, beside their weights.
        basis: "changes"; there is no other here.

    Returns:
        Two stacks, `(rank, in)` and `(out, rank)` at the largest rank, and a `restore` that gives `Factors`.

    Example:
        >>> a, b = factor_coordinates(Span.of([Factors(torch.ones(2, 1), torch.ones(1, 3))]), [-4.0], False, "changes").stacks
        >>> (a.shape, a.weights), (b.shape, b.weights)
        (((1, 3), (-2.0,)), ((2, 1), (2.0,)))
    """
    changes, rank = span.changes, max(span.ranks)
    a = tuple(torch.nn.functional.pad(c.A, (0, 0, 0, rank - c.A.shape[0])) for c in changes)
    b = tuple(torch.nn.functional.pad(c.B, (0, rank - c.B.shape[1])) for c in changes)
    roots = tuple(math.sqrt(abs(w)) for w in weights)
    signed = tuple(math.copysign(root, w) for root, w in zip(roots, weights))
    return Coordinates((ChangeStack(a, signed), ChangeStack(b, roots)), lambda results: Factors(results[1], results[0]))


def _span(cores: Sequence[Tensor], roots: Sequence[Tensor], marks: Tensor) -> tuple[Tensor, Tensor]:
    """Left singular vectors of the changes side by side: as combinations of the columns, and in coordinates of the cores.

    With `l` in the latter, `sum_i m_i m_i.T l = s^2 l` and `m_i = r_i t_i.T`, so that the vector is the columns times the
    stack of `t_i.T m_i.T l / s^2`.
    """
    squares, left = torch.linalg.eigh(sum(m @ m.T for m in cores))
    squares, left = squares.flip(0), left.flip(1)
    count = max(1, int((squares > NULL_TOLERANCE**2 * squares[0]).sum()))
    squares, left = squares[:count], left[:, :count]
    parts = [t.T @ (m.T @ left) for m, t in zip(cores, roots)]
    vectors = torch.cat(parts) / squares.clamp_min(1e-300)
    signs = _signs(marks @ vectors)
    return vectors * signs, left * signs


def _singular_vectors(root: Tensor, scales: Tensor, marks: Tensor) -> tuple[Tensor, Tensor]:
    """Left singular vectors of the columns times their scales, and their coordinates, from the root of the columns.

    With `r D = x s y.T` the vectors are `Q x`, and `Q = columns r^-1`, so that `Q x = columns D y / s`.
    """
    scaled = root * scales
    squares, y = torch.linalg.eigh(scaled.T @ scaled)
    squares, y = squares.flip(0), y.flip(1)
    count = max(1, int((squares > NULL_TOLERANCE**2 * squares[0]).sum()))
    over = squares[:count].clamp_min(1e-300).rsqrt()
    vectors, coordinates = scales[:, None] * y[:, :count] * over, scaled @ y[:, :count] * over
    signs = _signs(marks @ vectors)
    return vectors * signs, coordinates * signs


def _signs(projections: Tensor) -> Tensor:
    """By which each vector gets one fixed direction: a rule may see which way a vector points."""
    return torch.where(projections < 0, -1.0, 1.0).to(projections)


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
