"""Where Optuna may look: weights, method, rank and the options of methods, each of which some methods have."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from mergelab.checks import did_you_mean, short_repr
from mergelab.engine.weights import resolve
from mergelab.errors import OptionError
from mergelab.evaluation.config import Weight
from mergelab.methods.registry import choices_of, method_names, options_of, strategy_of
from mergelab.ranks import check_rank
from mergelab.tuning.groups import ALL, Groups
from mergelab.tuning.parameters import Choice, Parameter, ends, is_range, numbers, parameter

OF_MERGE = ("rank", "seed")
"""Keywords of `mergelab.merge` that are no option of a method and may be searched."""


@dataclass(frozen=True)
class Searched:
    """The weight of some layers of an adapter.

    Attributes:
        name: of the parameter: "ghost", "ghost up", "ghost unet.up_blocks.*".
        adapter: whose it is.
        group: of the groups of the configuration; empty where a pattern is given.
        pattern: of layers, beside which the others keep their usual weight; empty where a group is given.
        values: what it can be.
    """

    name: str
    adapter: str
    group: str
    pattern: str
    values: Parameter


@dataclass(frozen=True)
class Space:
    """What is searched, and what stays as it is.

    Attributes:
        usual: adapter -> its weight where none is searched.
        layers: adapter -> the names of its layers.
        groups: of layers that share a weight.
        weights: those that are searched.
        methods: names of methods, at least one.
        options: rank, seed and options of methods -> what they can be; the space first, since others depend on it.
        fixed: keywords of `merge` of every trial whose method has them.
    """

    usual: Mapping[str, Weight]
    layers: Mapping[str, Sequence[str]]
    groups: Groups
    weights: tuple[Searched, ...]
    methods: tuple[str, ...]
    options: Mapping[str, Parameter]
    fixed: Mapping[str, Any]


def space_of(
    given: Mapping[str, Any],
    fixed: Mapping[str, Any],
    usual: Mapping[str, Weight],
    groups: Groups,
    layers: Mapping[str, Iterable[str]],
    unchanged: Iterable[str] = (),
) -> Space:
    """The space of a configuration, checked.

    Args:
        given: `space` of the configuration.
        fixed: `merge` of the configuration.
        usual: adapter -> its weight in the configuration.
        groups: of layers that share a weight.
        layers: adapter -> the names of its layers.
        unchanged: adapters that keep their weight unless `given` names them.

    Raises:
        OptionError: nothing is searched, an option that no method has, a value that no method takes, an empty range, an
            adapter that is not there.

    Example:
        >>> from mergelab.tuning.groups import groups_of
        >>> given = {"weights": [0.5, 1.3], "method": ["svd", "ties"], "density": {"low": 0.2, "high": 0.9}}
        >>> space = space_of(given, {"rank": "max"}, {"ghost": 1.0, "day": 1.0}, groups_of([], "none"), {})
        >>> [one.name for one in space.weights], space.methods, list(space.options)
        (['ghost', 'day'], ('svd', 'ties'), ['density'])
    """
    if not given:
        raise OptionError("space: nothing is searched; expected what may be chosen, as in {weights: [0.5, 1.3]}")
    own = dict(given)
    kept = {name: value for name, value in fixed.items() if name not in own}  # what is searched is not fixed
    if "weights" in kept:
        raise OptionError("merge: weights: they stand with the adapters, or under space where they are searched")
    names = {adapter: list(known) for adapter, known in layers.items()}
    weights = _weights(own.pop("weights"), usual, groups, names, set(unchanged)) if "weights" in own else ()
    methods = _methods(own.pop("method", None), kept.pop("method", "svd"))
    options = {name: parameter(name, value) for name, value in own.items()}
    for name, known in [*options.items(), *((name, Choice((value,))) for name, value in kept.items())]:
        _check(name, known, methods, "space" if name in options else "merge")
    first = sorted(options, key=lambda name: name != "space")
    # An adapter may be called as an option is.
    apart = tuple(replace(w, name=f"weight of {w.name}") if w.name in {*options, "method"} else w for w in weights)
    return Space(dict(usual), names, groups, apart, methods, {name: options[name] for name in first}, kept)


def has(method: str, option: str) -> bool:
    """Whether a method has an option, a rank and a seed among them.

    Example:
        >>> has("ties", "density"), has("svd", "density"), has("cat", "rank"), has("dare", "seed")
        (True, False, False, True)
    """
    if option == "rank":
        return not strategy_of(method, {}).stores_factors
    return option in OF_MERGE or option in options_of(method)


def misfit(method: str, option: str, value: Any, chosen: Mapping[str, Any]) -> str:
    """Why a method cannot have this value, in words; empty where it can.

    Args:
        method: its name.
        option: one that it has.
        value: of the option.
        chosen: what was chosen before.

    Example:
        >>> misfit("ties", "density", 1.5, {})
        'density is the share of entries kept, expected 0 < density <= 1, found 1.5'
        >>> misfit("ties", "basis", "factors", {"space": "core", "rank": 8})
        ''
    """
    try:
        if option == "rank":
            check_rank(value)
        elif option == "seed":
            if isinstance(value, bool) or not isinstance(value, int):
                return f"seed={short_repr(value)}: expected a whole number"
        else:
            known = options_of(method)
            strategy_of(method, {**{name: one for name, one in chosen.items() if name in known}, option: value})
    except OptionError as error:
        return str(error)
    return ""


def fitting(method: str, option: str, known: Parameter, chosen: Mapping[str, Any]) -> Parameter | None:
    """What an option of a method can be, given what was chosen before; None where there is nothing to choose.

    Example: a basis exists in one space alone.
        >>> fitting("ties", "basis", Choice(("factors",)), {"space": "delta"}) is None
        True
    """
    if not has(method, option):
        return None
    if not isinstance(known, Choice):
        return known
    values = tuple(value for value in known.values if not misfit(method, option, value, chosen))
    return Choice(values) if values else None


def _methods(searched: Any, fixed: Any) -> tuple[str, ...]:
    known = Choice((fixed,)) if searched is None else parameter("method", searched)
    names = [name for name in known.values if isinstance(name, str)] if isinstance(known, Choice) else []
    if not isinstance(known, Choice) or len(names) < len(known.values):
        raise OptionError(f"method: {short_repr(searched or fixed)}: expected names out of {', '.join(method_names())}")
    for name in names:
        options_of(name)  # or the sentence that lists them
    return tuple(names)


def _check(name: str, known: Parameter, methods: Sequence[str], where: str) -> None:
    """Some method has the option; each value of a choice fits one of them, a range all of them."""
    having = [method for method in methods if has(method, name)]
    if not having and not (name in OF_MERGE and where == "merge"):  # a rank beside a method that stores its factors
        options = dict.fromkeys(option for method in methods for option in options_of(method))
        said = f"method {methods[0]!r} has" if len(methods) == 1 else f"none of the methods {', '.join(methods)} has"
        raise OptionError(f"{where}: {said} no option {name!r}; {did_you_mean(name, [*OF_MERGE, *options])}")
    for value in ends(known):
        wrong = [_misfit_anywhere(method, name, value) for method in having]
        if wrong and (all(wrong) if isinstance(known, Choice) else any(wrong)):
            raise OptionError(f"{where}: {next(filter(None, wrong))}")


def _misfit_anywhere(method: str, name: str, value: Any) -> str:
    """Some options exist in one space alone."""
    spaces = [{"space": space} for space in choices_of(method)["space"]] if name != "space" else []
    wrong = [misfit(method, name, value, chosen) for chosen in ({}, *spaces)]
    return wrong[0] if all(wrong) else ""


def _weights(
    given: Any, usual: Mapping[str, Weight], groups: Groups, layers: Mapping[str, Sequence[str]], unchanged: set[str]
) -> tuple[Searched, ...]:
    named = isinstance(given, Mapping) and not is_range(given)
    by_adapter = given if named else {adapter: given for adapter in usual if adapter not in unchanged}
    found: list[Searched] = []
    for adapter, own in by_adapter.items():
        if adapter not in usual:
            known = did_you_mean(str(adapter), list(usual))
            raise OptionError(f"space: weights: there is no adapter {adapter!r}; {known}")
        if isinstance(own, Mapping) and not is_range(own):
            for pattern, values in own.items():
                if adapter in layers:
                    resolve([{ALL: 1.0, str(pattern): 1.0}], [layers[adapter]], [adapter])  # or it matches none
                weight = numbers(f"weights of {adapter}, {pattern}", values)
                found.append(Searched(f"{adapter} {pattern}", adapter, "", str(pattern), weight))
            continue
        weight = numbers(f"weights of {adapter}", own)
        there = {groups.of(layer) for layer in layers.get(adapter, ())}
        its = [group for group in groups.names if group in there or len(groups.names) == 1]
        for group in its:
            name = adapter if len(its) == 1 else f"{adapter} {group}"
            found.append(Searched(name, adapter, group, "", weight))
    return tuple(found)
