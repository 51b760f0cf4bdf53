"""The named points of the grid rule x space: `Linear`, `Cat`, `Svd`, `Ties`, `Dare`, ... and the table of names.

A strategy is a frozen dataclass of hyper-parameters: what is kept of each change (`sparsifier`), how the changes are
combined (`rule`) and where that happens (`space`, `basis`). How the result is stored, the rank, is an argument of
`merge`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import MISSING, dataclass, field, fields, is_dataclass, replace
from typing import Any, ClassVar, Literal, TypeVar, get_args, get_origin, get_type_hints

import torch
from torch import Tensor

from mergelab.checks import EXPECTED_NUMBER, is_number, shown
from mergelab.errors import OptionError
from mergelab.hints import did_you_mean
from mergelab.methods.linear import weighted_sum
from mergelab.methods.ties import elect_and_average
from mergelab.methods.ties import MAJORITY_SIGNS, MajoritySign
from mergelab.methods.sparsify import SCOPES, Drop, Scope, Trim, check_density

Space = Literal["delta", "core", "knots", "factors"]
SPACES = ("delta", "core", "knots", "factors")
Basis = Literal["changes", "factors"]
BASES = ("changes", "factors")
Variant = Literal["scaled", "peft"]
VARIANTS = ("scaled", "peft")

Rule = Callable[[Tensor, Tensor, torch.Generator], Tensor]
AnyRule = TypeVar("AnyRule", bound=Callable[..., Any])


def _check_choice(option: str, value: object, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise OptionError(f"{option}={value!r}: expected one of {', '.join(map(repr, choices))}")


@dataclass(frozen=True)
class Strategy:
    """Base of every strategy.

    Args:
        space: where the rule acts: "delta" (the dense changes), "core" (small cores in a common basis, lossless),
            "knots" (`Sigma V_i.T` of the joint SVD), "factors" (lora_A and lora_B separately: what PEFT's `linear`,
            `ties`, ... do, which is not the merge of the changes).
        basis: of space "core": "changes" (singular vectors of the stacked changes, which depend on nothing but the
            changes, as long as the singular values differ: among equal ones a basis is arbitrary) or "factors" (those
            of the stacked lora_B and lora_A, as the published code takes them).

    Raises:
        OptionError: a value out of its range.
    """

    space: Space = field(default="delta", kw_only=True)
    basis: Basis = field(default="changes", kw_only=True)

    # A plain weighted sum never needs a dense matrix.
    is_sum: ClassVar[bool] = False
    # May the rule be applied to blocks of rows, one after the other?
    entrywise: ClassVar[bool] = True

    def __post_init__(self) -> None:
        _check_choice("space", self.space, SPACES)
        _check_choice("basis", self.basis, BASES)
        if self.basis != "changes" and self.space != "core":
            raise OptionError(f"basis={self.basis!r} belongs to space='core', found space={self.space!r}")

    @property
    def sparsifier(self) -> Trim | Drop | None:
        """What is kept of each change before the rule sees it."""
        return None

    @property
    def factor(self) -> float:
        """Multiplies the merged change."""
        return 1.0

    @property
    def weighted_first(self) -> bool:
        """Are changes multiplied by their weights before the rule sees them? (The rule's weights are then 1.)"""
        return True

    def rule(self, changes: Tensor, weights: Tensor, generator: torch.Generator) -> Tensor:
        """Combine stacked changes `(n, out, in)`, which may be overwritten, into one `(out, in)`."""
        return weighted_sum(changes, weights)


@dataclass(frozen=True)
class Linear(Strategy):
    """The weighted sum `sum_i w_i delta_i`, truncated to the rank asked for; in any space.

    In space "factors" it is PEFT's `linear`: `A = sum sgn(w s) sqrt|w s| A_i` and `B = sum sqrt|w s| B_i`, whose
    product has cross terms.

    Source: task arithmetic, arXiv 2212.04089.

    Example:
        >>> Linear()
        Linear(space='delta', basis='changes')
    """

    is_sum: ClassVar[bool] = True


@dataclass(frozen=True)
class _ExactSum(Strategy):
    is_sum: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.space == "factors":
            raise OptionError(
                f"{type(self).__name__} is the exact sum of the changes, which space='factors' is not; "
                "for PEFT's sum of factors use method='linear', space='factors'"
            )


@dataclass(frozen=True)
class Cat(_ExactSum):
    """The exact weighted sum at the sum of the ranks: the factors side by side.

    Source: PEFT's `cat`.

    Example:
        >>> Cat()
        Cat(space='delta', basis='changes')
    """


@dataclass(frozen=True)
class Svd(_ExactSum):
    """The exact weighted sum, truncated optimally (Eckart-Young) to the rank asked for.

    Source: PEFT's `svd`, by QR of the factors instead of a dense decomposition.

    Example:
        >>> Svd()
        Svd(space='delta', basis='changes')
    """


@dataclass(frozen=True)
class MagnitudePrune(Strategy):
    """`sum_i w_i topk(delta_i)`: the weighted sum of the largest entries of each change.

    Args:
        density: share of entries kept, in (0, 1].
        scope: "layer": the largest of each layer; "adapter": of all layers of an adapter together.

    Source: PEFT's `magnitude_prune` (in space "factors") and `magnitude_prune_svd` (in space "delta").

    Example:
        >>> MagnitudePrune(density=0.3).density
        0.3
    """

    density: float = 0.5
    scope: Scope = "layer"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_density(self.density)
        _check_scope(self.scope, self.space)

    @property
    def sparsifier(self) -> Trim:
        return Trim(self.density, self.scope)


@dataclass(frozen=True)
class _Elect(Strategy):
    """What TIES and DARE-TIES share: the vote and the average of those that agree."""

    density: float = 0.5
    majority_sign: MajoritySign = "total"
    lam: float = 1.0
    variant: Variant = "scaled"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_density(self.density)
        _check_choice("majority_sign", self.majority_sign, MAJORITY_SIGNS)
        _check_choice("variant", self.variant, VARIANTS)
        if not is_number(self.lam):
            raise OptionError(f"lam={shown(self.lam)}: {EXPECTED_NUMBER}")

    @property
    def factor(self) -> float:
        return self.lam

    @property
    def weighted_first(self) -> bool:
        return self.variant == "scaled"

    def rule(self, changes: Tensor, weights: Tensor, generator: torch.Generator) -> Tensor:
        as_peft = self.variant == "peft" or self.space == "factors"
        return elect_and_average(changes, weights, self.majority_sign, tie_is_positive=as_peft, overwrite=True)


@dataclass(frozen=True)
class Ties(_Elect):
    """TIES: trim each change, elect a sign for every entry, average what agrees with it.

    Args:
        density: share of entries kept by the trim, in (0, 1].
        majority_sign: "total": the sign of the sum; "frequency": that of most adapters, a tie decided by "total"
            (by variant "peft" for +).
        lam: factor on the result (lambda in the paper), any finite number.
        variant: "scaled" (default): the changes are multiplied by their weights before trim and vote; "peft": the
            vote is on the unscaled changes, as in PEFT. Both agree where the weights are equal.
        scope: of the trim, "layer" or "adapter" (as in the paper).

    Source: Yadav et al., arXiv 2306.01708.

    Example:
        >>> Ties(density=0.3, majority_sign="frequency").space
        'delta'
    """

    scope: Scope = "layer"

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_scope(self.scope, self.space)

    @property
    def sparsifier(self) -> Trim:
        return Trim(self.density, self.scope)


@dataclass(frozen=True)
class Dare(Strategy):
    """DARE: drop entries at random, rescale what is left by 1 / density, and sum.

    Args:
        density: probability with which an entry is kept, in (0, 1]. The draw comes from the `seed` of `merge`.

    Source: Yu et al., arXiv 2311.03099 (whose p is the share dropped, 1 - density).

    Example:
        >>> Dare(density=0.9).density
        0.9
    """

    density: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        check_density(self.density)

    @property
    def sparsifier(self) -> Drop:
        return Drop(self.density)


@dataclass(frozen=True)
class DareTies(_Elect):
    """DARE's drop and rescale in the place of the trim, then the vote and the average of TIES.

    Args:
        density, majority_sign, lam, variant: as for `Dare` and `Ties`.

    Source: arXiv 2311.03099 with arXiv 2306.01708.

    Example:
        >>> DareTies(density=0.7).majority_sign
        'total'
    """

    @property
    def sparsifier(self) -> Drop:
        return Drop(self.density)


@dataclass(frozen=True)
class Custom(Strategy):
    """A user's own rule, see `register`."""

    function: Rule = weighted_sum  # type: ignore[assignment]
    entrywise: ClassVar[bool] = False

    @property
    def weighted_first(self) -> bool:
        return False

    def rule(self, changes: Tensor, weights: Tensor, generator: torch.Generator) -> Tensor:
        return self.function(changes, weights, generator)


def _check_scope(scope: str, space: str) -> None:
    _check_choice("scope", scope, SCOPES)
    if scope == "adapter" and space == "factors":
        raise OptionError("scope='adapter' trims whole changes; in space='factors' only scope='layer' exists")


METHODS: dict[str, type[Strategy]] = {
    "linear": Linear,
    "cat": Cat,
    "svd": Svd,
    "ties": Ties,
    "dare": Dare,
    "dare_linear": Dare,
    "dare_ties": DareTies,
    "magnitude_prune": MagnitudePrune,
}
_REGISTERED: dict[str, Callable[..., Any]] = {}


def register(name: str) -> Callable[[AnyRule], AnyRule]:
    """Add a rule of your own; it then works by its name everywhere.

    The rule is a function `(changes, weights, generator) -> merged`, with changes `(n, out, in)` in float32 (one
    layer of n adapters, convolutions flattened), weights `(n,)` and the result `(out, in)`; or a frozen dataclass of
    hyper-parameters whose instances are such functions: its fields become options of `merge` and of the command line.

    Args:
        name: letters, digits and underscores; a name that is taken is an error.

    Example:
        >>> from dataclasses import dataclass
        >>> @register("median_doc")
        ... @dataclass(frozen=True)
        ... class Median:
        ...     strength: float = 1.0
        ...     def __call__(self, changes, weights, generator):
        ...         return self.strength * (changes * weights[:, None, None]).median(dim=0).values
        >>> make("median_doc", {"strength": 0.5}).function
        Median(strength=0.5)
    """
    if not name.isidentifier():
        raise OptionError(f"method name {name!r}: expected letters, digits and underscores")
    if name in METHODS or name in _REGISTERED:
        raise OptionError(f"method name {name!r} is taken: {', '.join(method_names())}")

    def decorate(rule: AnyRule) -> AnyRule:
        _REGISTERED[name] = rule
        return rule

    return decorate


def method_names() -> list[str]:
    """Every name that `merge(method=)` takes, registered ones included."""
    return [*METHODS, *_REGISTERED]


def options_of(name: str) -> dict[str, Any]:
    """The options of a method and their defaults (None where a registered rule has none).

    Example:
        >>> options_of("dare")
        {'density': 0.5, 'space': 'delta', 'basis': 'changes'}
    """
    own: Any = METHODS.get(name) or _REGISTERED.get(name)
    if own is None:
        raise OptionError(f"there is no method {name!r}; {did_you_mean(name, method_names())}")
    listed = fields(own) if is_dataclass(own) else ()
    options = {f.name: None if f.default is MISSING else f.default for f in listed}
    shared = {"space": options.pop("space", "delta"), "basis": options.pop("basis", "changes")}
    return {**options, **shared}


def choices_of(name: str) -> dict[str, tuple[str, ...]]:
    """What the options of a method that are a choice can be.

    Example:
        >>> choices_of("dare")
        {'space': ('delta', 'core', 'knots', 'factors'), 'basis': ('changes', 'factors')}
    """
    own = METHODS.get(name, Strategy)
    hints = get_type_hints(own)
    found = {option: get_args(hints[option]) for option in options_of(name) if get_origin(hints.get(option)) is Literal}
    if issubclass(own, _ExactSum):
        found["space"] = tuple(space for space in SPACES if space != "factors")
    return found


def summary_of(name: str) -> str:
    """First line of a method's docstring."""
    own: Any = METHODS.get(name) or _REGISTERED[name]
    return (own.__doc__ or "a registered rule").strip().splitlines()[0]


def make(method: str | Strategy, options: dict[str, Any]) -> Strategy:
    """The strategy of a name and its options; with a strategy, the same with some options replaced.

    Raises:
        OptionError: an unknown method, or an option that it does not have; the message lists its own.
    """
    if isinstance(method, Strategy):
        known = {f.name: getattr(method, f.name) for f in fields(method)}
        _check_known(type(method).__name__, options, known)
        return replace(method, **options)
    if not isinstance(method, str):
        raise OptionError(f"method={method!r}: expected a name or a strategy such as mergelab.Ties(density=0.5)")
    known = options_of(method)
    _check_known(method, options, known)
    if method in METHODS:
        return METHODS[method](**options)
    rule = _REGISTERED[method]
    shared = {key: options[key] for key in ("space", "basis") if key in options}
    own = {key: value for key, value in options.items() if key not in shared}
    return Custom(function=rule(**own) if isinstance(rule, type) else rule, **shared)


def _check_known(method: str, options: dict[str, Any], known: dict[str, Any]) -> None:
    for name in options:
        if name not in known:
            raise OptionError(f"method {method!r} has no option {name!r}; {did_you_mean(name, known)}")
