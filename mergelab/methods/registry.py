"""The table of methods by name, and how to add one of your own."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, field, fields, is_dataclass, replace
from pkgutil import resolve_name
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import torch
from torch import Tensor

from mergelab.checks import check_choice, did_you_mean, short_repr
from mergelab.errors import OptionError
from mergelab.methods.method import MatrixWise, Strategy
from mergelab.methods.own import unfit
from mergelab.spaces import BASES, PLAIN_SPACE

# Of several names of one class the first is the one that is recorded in files.
_TABLE = {
    "linear": "mergelab.methods.linear:Linear",
    "cat": "mergelab.methods.linear:Cat",
    "svd": "mergelab.methods.linear:Svd",
    "ties": "mergelab.methods.ties:Ties",
    "dare": "mergelab.methods.dare:Dare",
    "dare_linear": "mergelab.methods.dare:Dare",
    "dare_ties": "mergelab.methods.dare:DareTies",
    "magnitude_prune": "mergelab.methods.magnitude_prune:MagnitudePrune",
}
METHODS: dict[str, type[Strategy]] = {name: resolve_name(place) for name, place in _TABLE.items()}

AnyRule = TypeVar("AnyRule", bound=Callable[..., Any])
_REGISTERED: dict[str, Callable[..., Any]] = {}


@dataclass(frozen=True)
class Custom(MatrixWise):
    """A user's own function as a method, see `register`."""

    function: Callable[..., Tensor] = field(kw_only=True)
    generator: torch.Generator | None = field(default=None, kw_only=True, repr=False, compare=False)

    @property
    def weights_before_rule(self) -> bool:
        """The function gets the changes as they are, and their weights."""
        return False

    def for_layer(self, generator: Callable[[], torch.Generator]) -> Custom:
        """For a function that takes a generator: one of its own for each layer."""
        return replace(self, generator=generator()) if _takes_generator(self.function) else self

    def rule(self, changes: Tensor, weights: Tensor) -> Tensor:
        """The function, whatever it returns."""
        return self.function(changes, weights, *([self.generator] if self.generator is not None else []))


def _takes_generator(function: Callable[..., Any]) -> bool:
    """Whether a function has a third positional argument without a default."""
    try:
        given = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # of a built-in function nothing is known
        return False
    positional = [p for p in given if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    return len([p for p in positional if p.default is p.empty]) > 2


def register(name: str) -> Callable[[AnyRule], AnyRule]:
    """Add a method of your own; it then works by its name everywhere. A name that is registered again is replaced.

    It is one of:

    - a function `(changes, weights) -> merged`, with changes `(n, out, in)` in float32 (one layer of n adapters,
      convolutions flattened), weights `(n,)` and the result `(out, in)`; one that draws takes a third argument, a
      `torch.Generator` of its own for each layer;
    - a frozen dataclass of hyper-parameters whose instances are such functions: its fields become options of `merge`
      and of the command line;
    - a class that derives from `EntryWise`, `MatrixWise` or `LayerWise`, as the methods of mergelab do.

    Args:
        name: letters, digits and underscores; not that of a method of mergelab.

    Raises:
        OptionError: the name is no name, or taken; the class lacks a part of the contract, or has an option that is
            called as an argument of `merge` is; the function takes other arguments.

    Example:
        >>> @register("median_doc")
        ... @dataclass(frozen=True)
        ... class Median:
        ...     strength: float = 1.0
        ...     def __call__(self, changes, weights):
        ...         ordered, n = (changes * weights[:, None, None]).sort(dim=0).values, len(weights)
        ...         return self.strength * (ordered[(n - 1) // 2] + ordered[n // 2]) / 2
        >>> strategy_of("median_doc", {"strength": 0.5}).function
        Median(strength=0.5)
    """
    if not isinstance(name, str) or not name.isidentifier():
        raise OptionError(
            f"method name {short_repr(name)}: expected letters, digits and underscores, as in "
            "@mergelab.register('mine')"
        )
    if name in METHODS:
        raise OptionError(f"method name {name!r} is taken: {', '.join(METHODS)}")

    def decorate(rule: AnyRule) -> AnyRule:
        if wrong := unfit(rule):
            raise OptionError(f"method {name!r}: {wrong}")
        _REGISTERED[name] = rule
        return rule

    return decorate


def registered_methods() -> dict[str, Callable[..., Any]]:
    """Those of the user's own, to be sent to another process."""
    return dict(_REGISTERED)


def take_methods(methods: Mapping[str, Callable[..., Any]]) -> None:
    """Take over those of another process."""
    _REGISTERED.update(methods)


def _is_strategy(rule: Any) -> bool:
    return isinstance(rule, type) and issubclass(rule, Strategy)


def _registered(name: str) -> Any:
    """The class or function of a name.

    Raises:
        OptionError: there is none; the message names the nearest.
    """
    found = METHODS.get(name) or _REGISTERED.get(name)
    if found is None:
        known = did_you_mean(name, method_names())
        raise OptionError(f"there is no method {name!r}; {known}; one of your own: --import FILE.py that registers it")
    return found


def method_names() -> list[str]:
    """Every name that `merge(method=)` takes, registered ones included."""
    return [*METHODS, *_REGISTERED]


def options_of(name: str) -> dict[str, Any]:
    """The options of a method and their defaults (None where a registered rule has none).

    Example:
        >>> options_of("dare")
        {'density': 0.5, 'space': 'delta', 'basis': 'changes'}
    """
    own = _registered(name)
    listed = fields(own) if is_dataclass(own) else ()
    options = {f.name: None if f.default is MISSING else f.default for f in listed}
    shared = {"space": _default_space(own), "basis": BASES[0]}
    return {**{name: value for name, value in options.items() if name not in shared}, **shared}


def choices_of(name: str) -> dict[str, tuple[str, ...]]:
    """What the options of a method that are a choice can be.

    Example:
        >>> choices_of("dare")
        {'space': ('delta', 'core', 'knots', 'factors'), 'basis': ('changes', 'factors')}
    """
    own = _registered(name)
    try:
        hints = get_type_hints(own)
    except (NameError, TypeError):  # of a class within a function, whose annotations name what is not there
        hints = {}
    found = {option: get_args(hints[option]) for option in options_of(name) if get_origin(hints.get(option)) is Literal}
    return found | {"space": _method_of(own).spaces, "basis": BASES}


def _method_of(own: Any) -> type[Strategy]:
    return own if _is_strategy(own) else Custom


def _default_space(own: Any) -> str:
    """The plain one, or the first in which the method exists."""
    spaces = _method_of(own).spaces
    return PLAIN_SPACE if PLAIN_SPACE in spaces else spaces[0]


def summary_of(name: str) -> str:
    """First line of a method's docstring."""
    return (_registered(name).__doc__ or "a registered rule").strip().splitlines()[0]


def name_of(strategy: Strategy) -> str:
    """The name under which a method is known; that of its class for one that is not.

    Example:
        >>> name_of(strategy_of("dare_linear", {}))
        'dare'
    """
    rule: object = strategy.function if isinstance(strategy, Custom) else type(strategy)
    for name, known in {**METHODS, **_REGISTERED}.items():
        if known is rule or known is type(rule):
            return name
    return getattr(rule, "__name__", type(rule).__name__)


def strategy_of(method: str | Strategy, options: Mapping[str, Any]) -> Strategy:
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
    own, given = _registered(method), {"space": _default_space(_registered(method)), **options}
    _check_known(method, options, options_of(method))
    shared = {key: given.pop(key) for key in ("space", "basis") if key in given}
    choices = choices_of(method)
    for option in given.keys() & choices.keys():
        check_choice(option, given[option], choices[option])
    try:
        if _is_strategy(own):
            return own(**given, **shared)
        rule = own(**given) if isinstance(own, type) else own
    except (TypeError, ValueError) as error:
        if isinstance(error, OptionError):
            raise
        raise OptionError(f"method {method!r} cannot be made with {given}: {error}") from error
    return Custom(function=rule, **shared)


def is_own(strategy: Strategy) -> bool:
    """Whether it is a user's: what goes wrong in it is not mergelab's."""
    return type(strategy) not in METHODS.values()


def options_record(strategy: Strategy) -> dict[str, Any]:
    """The options of a strategy as a recipe keeps them, JSON-ready."""
    options = dict(vars(strategy))
    if isinstance(strategy, Custom):
        del options["generator"]
        rule = options.pop("function")
        # A dataclass shows its own options; a function only where it comes from, not where it lies in memory.
        named = rule if hasattr(rule, "__qualname__") else type(rule)
        options["rule"] = repr(rule) if is_dataclass(rule) else f"{named.__module__}.{named.__qualname__}"
    return options


def _check_known(method: str, options: Mapping[str, Any], known: Mapping[str, Any]) -> None:
    for name in options:
        if name not in known:
            raise OptionError(f"method {method!r} has no option {name!r}; {did_you_mean(name, known)}")
