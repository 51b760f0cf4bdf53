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
from mergelab.linalg.directions import Found, squares_of, vectors_of_changes, vectors_of_factors, weighted_cores
from mergelab.linalg.lowrank import Core, Factors
from mergelab.linalg.span import Combination, Span
from mergelab.linalg.stacks import ChangeStack

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
        build: `(span, weights, weigh, basis)` -> coordinates of the changes of one layer, or of a batch of layers; None
            where the layers of a batch do not have coordinates of one size. With `weigh` the matrices are those of the
            changes times their weights, and the weights that are left are 1; without, both are as given.
        bases: that the option `basis=` can name.
        keeps_sums: a weighted sum in the space is the weighted sum of the changes, so it need not be formed there.
        is_dense: its matrices are as large as the layer.
        acts_on_factors: the rule sees `lora_A` and `lora_B` as files hold them, without scalings and in the order
            given, each as a whole, with the arithmetic and the draws of PEFT.
        breaks: laws that no method obeys in this space -> why.
    """

    name: str
    build: Callable[[Span, Tensor, bool, str], Coordinates | None]
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


def delta_coordinates(span: Span, weights: Tensor, weigh: bool, basis: str) -> Coordinates:
    """The changes themselves, `(out, in)`, formed in blocks when they are asked for.

    Args:
        span: of the changes of one layer or of a batch, `(..., out, in)` each, without their weights.
        weights: `(..., n)`, one for each, not 0.
        weigh: whether the rule is to see `w_i * delta_i`, beside weights of 1; else it sees `delta_i` beside `w_i`.
        basis: "changes"; there is no other here.

    Example:
        >>> change = Factors(torch.ones(2, 1), torch.ones(1, 2))
        >>> for weigh in (True, False):
        ...     (stack,) = delta_coordinates(Span.of([change]), torch.tensor([0.5]), weigh, "changes").stacks
        ...     stack.rows(0, slice(0, 1)).tolist(), stack.weights
        ([[0.5, 0.5]], (1.0,))
        ([[1.0, 1.0]], (0.5,))
    """
    changes = span.changes
    if weigh:
        changes = [c.scaled(w) for c, w in zip(changes, weights.unbind(-1))]
    return Coordinates((ChangeStack(tuple(changes), seen_weights(weights, weigh)),), lambda results: results[0])


def seen_weights(weights: Tensor, weigh: bool) -> tuple[float, ...]:
    """Those that are left for a rule: 1 each, or as they are, for a batch those of its first layer."""
    return (1.0,) * weights.shape[-1] if weigh else tuple(weights.reshape(-1, weights.shape[-1])[0].tolist())


def core_coordinates(span: Span, weights: Tensor, weigh: bool, basis: str) -> Coordinates | None:
    """`U.T delta_i V` with orthonormal U and V that span all column and all row spaces: nothing is lost.

    Basis "changes": the singular vectors of the weighted changes side by side, and one below the other. They depend
    on nothing but the changes, as long as the singular values differ. Basis "factors": those of the stacked `lora_B`
    and `lora_A`, weights and scalings in the first, as the published code takes them (arXiv 2509.17786).

    Args:
        span: of the changes of one layer or of a batch, `(..., out, in)` each, without their weights.
        weights: `(..., n)`, one for each, not 0; in either case they shape the basis.
        weigh: whether the rule is to see the cores of `w_i * delta_i`, beside weights of 1; else it sees those of
            `delta_i` beside `w_i`.
        basis: "changes" or "factors".

    Returns:
        One stack of cores, `(at most the sum of the ranks)` square, on the CPU, and a `restore` that gives a
        `Combination`.

    Example:
        >>> change = Factors(torch.ones(8, 1), torch.ones(1, 2))
        >>> coordinates = core_coordinates(Span.of([change]), torch.tensor([0.5]), True, "changes")
        >>> core = coordinates.stacks[0].matrices[0]
        >>> core.round(decimals=4).tolist(), dense(coordinates.restore([core])).round(decimals=4)[0].tolist()
        ([[2.0]], [0.5, 0.5])
    """
    cores, scales = weighted_cores(span, weights)
    sides: list[Found | None]
    if basis == "factors":
        wide = torch.cat([w.expand(*w.shape[:-2], 1, rank) for w, rank in zip(scales, span.ranks)], -1)
        left, right = span.r_b * wide, span.r_a
        found = host.eigh(torch.stack([left.mT @ left, right.mT @ right]), span.workspace)
        sides = [
            vectors_of_factors(found, 0, left, wide, span.marks[0]),
            vectors_of_factors(found, 1, right, torch.ones_like(wide), span.marks[1]),
        ]
    else:
        found = host.eigh(torch.stack([squares_of(cores), squares_of([m.mT for m in cores])]), span.workspace)
        sides = [
            vectors_of_changes(found, 0, cores, scales, span.r_a.split(span.ranks, -1), span.marks[0]),
            vectors_of_changes(found, 1, [m.mT for m in cores], scales, span.r_b.split(span.ranks, -1), span.marks[1]),
        ]
    columns, rows = sides
    if columns is None or rows is None:
        return None
    (u, left), (v, right) = columns, rows
    seen = _for_rule([left.mT @ m @ right for m in cores], scales, weights, weigh)
    return Coordinates((seen,), lambda results: Combination(span, u @ results[0].double() @ v.mT))


def knots_coordinates(span: Span, weights: Tensor, weigh: bool, basis: str) -> Coordinates | None:
    """`Sigma V_i.T` of the joint decomposition `[delta_1 | ... | delta_n] = U Sigma V.T` (KnOTS, arXiv 2410.19735).

    Args:
        span: of the changes of one layer or of a batch, `(..., out, in)` each, without their weights.
        weights: `(..., n)`, one for each, not 0; in either case U is that of the weighted changes.
        weigh: whether the rule is to see `U.T w_i delta_i`, beside weights of 1; else it sees `U.T delta_i` beside
            `w_i`.
        basis: "changes"; there is no other here.

    Returns:
        One stack of matrices, `(at most the sum of the ranks, in)`, and a `restore` that gives a `Combination`.

    Example:
        >>> change = Factors(torch.ones(4, 1), torch.ones(1, 3))
        >>> coordinates = knots_coordinates(Span.of([change, change]), torch.tensor([1.0, -0.5]), False, "changes")
        >>> [m.round(decimals=4).tolist() for m in coordinates.stacks[0].matrices], coordinates.stacks[0].weights
        ([[[2.0, 2.0, 2.0]], [[2.0, 2.0, 2.0]]], (1.0, -0.5))
    """
    cores, scales = weighted_cores(span, weights)
    found = host.eigh(squares_of(cores)[None], span.workspace)
    side = vectors_of_changes(found, 0, cores, scales, span.r_a.split(span.ranks, -1), span.marks[0])
    if side is None:
        return None
    u, left = side
    # `U.T delta_i`, without the orthonormal factors of delta_i: what is left of B's root times A.
    parts = zip(scales, span.r_b.split(span.ranks, -1), span.A.split(span.ranks, -2))
    seen = _for_rule([(w * left.mT @ root) @ rows.double() for w, root, rows in parts], scales, weights, weigh)

    def restore(results: list[Tensor]) -> Combination:
        rows = u.to(results[0]) @ results[0]
        rank = rows.shape[-2]
        whole = torch.eye(rank, dtype=torch.float64, device=rows.device).expand(*rows.shape[:-2], rank, rank)
        return Combination(Span(span.B, rows, (rank,), span.workspace), whole)

    return Coordinates((seen,), restore)


def factor_coordinates(span: Span, weights: Tensor, weigh: bool, basis: str) -> Coordinates:
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
        >>> span = Span.of([Factors(torch.ones(2, 1), torch.ones(1, 3))])
        >>> a, b = factor_coordinates(span, torch.tensor([-4.0]), False, "changes").stacks
        >>> (a.shape, a.weights), (b.shape, b.weights)
        (((1, 3), (-2.0,)), ((2, 1), (2.0,)))
    """
    changes, rank = span.changes, max(span.ranks)
    a = tuple(torch.nn.functional.pad(c.A, (0, 0, 0, rank - c.A.shape[0])) for c in changes)
    b = tuple(torch.nn.functional.pad(c.B, (0, rank - c.B.shape[1])) for c in changes)
    roots = tuple(math.sqrt(abs(w)) for w in weights.tolist())
    signed = tuple(math.copysign(root, w) for root, w in zip(roots, weights.tolist()))
    return Coordinates((ChangeStack(a, signed), ChangeStack(b, roots)), lambda results: Factors(results[1], results[0]))


def _for_rule(weighted: list[Tensor], scales: Sequence[Tensor], weights: Tensor, weigh: bool) -> ChangeStack:
    """Float32 matrices and weights as the rule wants them: weighted already, or not yet."""
    seen = weighted if weigh else [m / w for m, w in zip(weighted, scales)]
    return ChangeStack(tuple(m.float() for m in seen), seen_weights(weights, weigh))


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
