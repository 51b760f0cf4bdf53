"""The merges that the axes of a configuration span, checked before anything is computed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from numbers import Integral
from typing import Any

from mergelab.checks import did_you_mean, is_number, short_repr
from mergelab.errors import OptionError
from mergelab.evaluation.config import Config, Weight
from mergelab.evaluation.sets import AdapterSet
from mergelab.methods.registry import method_names, strategy_of
from mergelab.pipelines.combinations.registry import COMBINATIONS, combination_of
from mergelab.pipelines.combinations.schedule import Schedule
from mergelab.ranks import check_rank, rank_text

WEIGHTS, LABEL = "weights", "label"


@dataclass(frozen=True)
class Recipe:
    """One merge of a set.

    Attributes:
        label: the method and every option that is given, "ties density=0.3 rank=16"; or what its entry calls it.
        keywords: of `mergelab.merge`, or of a combination at run time.
        weights: of the adapters, where they are others than under `loras`.
        family: the number of its entry under `merges`.
        strengths: role -> weight.
    """

    label: str
    keywords: dict[str, Any]
    weights: tuple[Weight, ...] | None
    family: int
    strengths: Mapping[str, Weight]


def recipes(config: Config, of: AdapterSet) -> list[Recipe]:
    """One for every point of the grid.

    A list is an axis, but for the `factors` of a schedule, which are a list: there a list of such lists is one.

    `weights` of an entry are a list, a number for each adapter, or a list of such lists; or a mapping of roles or names
    to a weight or a list of them. The weight of an adapter under `loras` may be a list, too. `label` of an entry
    without axes is what the merge is called, in place of its options.

    Raises:
        OptionError: a method or an option that does not exist, a value that it cannot have, or two merges that are the
            same.
    """
    found: dict[str, Recipe] = {}
    for family, entry in enumerate(config.merges):
        if "method" not in entry:
            raise OptionError(f"merges: {entry!r} has no method")
        own = _own_label(entry)
        axes = [(key, _points(key, value)) for key, value in entry.items() if key not in (WEIGHTS, LABEL)]
        for point in product(*(values for _, values in axes)):
            keywords = _checked(dict(zip((key for key, _ in axes), point)), len(of.adapters))
            options = {k: rank_text(v) if k == "rank" else v for k, v in keywords.items() if k != "method"}
            for shown, weights in _weighted(entry.get(WEIGHTS), of):
                label = " ".join([str(keywords["method"]), *(f"{k}={v}" for k, v in (options | shown).items())])
                label = own or label
                if label in found:
                    several = "; a label is of one merge, and this entry spans several" if own else ""
                    raise OptionError(f"merges: {label!r} is given twice{several}")
                strengths = dict(zip(of.adapters, weights))
                found[label] = Recipe(label, keywords, weights if shown else None, family, strengths)
    return list(found.values())


def _own_label(entry: Mapping[str, Any]) -> str:
    label = entry.get(LABEL, "")
    if not isinstance(label, str) or (LABEL in entry and not label.strip()):
        raise OptionError(f"merges: label: expected a text, found {short_repr(label)}")
    return label


def _weighted(given: Any, of: AdapterSet) -> Iterator[tuple[dict[str, str], tuple[Weight, ...]]]:
    """What a label says of the weights, and the weights, for every point of their axes."""
    usual: dict[str, Any] = {role: lora.weight for role, lora in of.adapters.items()}
    if isinstance(given, list):
        if not given:
            raise OptionError("merges: weights: expected at least one value")
        for vector in given if any(isinstance(one, list) for one in given) else [given]:
            if not isinstance(vector, list) or len(vector) != len(usual):
                raise OptionError(
                    f"merges: weights: expected {len(usual)} numbers, one for each adapter, or a list of such lists, "
                    f"found {short_repr(vector)}"
                )
            yield {WEIGHTS: ",".join(map(_weight_text, vector))}, tuple(map(_weight, vector))
        return
    if given is not None and not isinstance(given, dict):
        raise OptionError(f"merges: weights: expected a list or a mapping, found {short_repr(given)}")
    names = of.aliases
    asked: dict[str, Any] = {}
    for name, value in (given or {}).items():
        if name not in names:
            raise OptionError(f"merges: weights: there is no {name!r}; {did_you_mean(str(name), list(names))}")
        if isinstance(value, list) and not value:
            raise OptionError(f"merges: weights: {name}: expected at least one value")
        asked[names[name]] = value
    values = {role: value if isinstance(value, list) else [value] for role, value in (usual | asked).items()}
    shown = [role for role in usual if role in asked or len(values[role]) > 1]
    for point in product(*values.values()):
        weights = dict(zip(values, map(_weight, point)))
        yield {role: _weight_text(weights[role]) for role in shown}, tuple(weights.values())


def _weight(value: Any) -> Weight:
    fits = is_number(value) or (isinstance(value, dict) and all(map(is_number, value.values())))
    if not fits:
        raise OptionError(f"merges: weights: expected a number, or one for each component, found {short_repr(value)}")
    return value if isinstance(value, dict) else float(value)


def _weight_text(value: Any) -> str:
    """As a label has it: 1.0 and 1 are the same."""
    return ",".join(f"{k}:{v:g}" for k, v in value.items()) if isinstance(value, dict) else f"{value:g}"


def _points(key: str, value: Any) -> list[Any]:
    """The values along an axis.

    Example:
        >>> _points("rank", [8, 16]), _points("every", 2), _points("factors", [[1, 0], [0, 1]])
        ([8, 16], [2], [[[1, 0], [0, 1]]])
        >>> _points("factors", [[[1, 0], 1], [1, 0.5]])
        [[[1, 0], 1], [1, 0.5]]
    """
    if key == "factors":
        many = isinstance(value, list) and any(
            isinstance(v, list) and any(isinstance(w, list) for w in v) for v in value
        )
        return list(value) if many else [value]
    if isinstance(value, list) and not value:
        raise OptionError(f"merges: {key}: expected at least one value")
    return value if isinstance(value, list) else [value]


def _checked(keywords: Mapping[str, Any], adapters: int) -> dict[str, Any]:
    """Keywords of `mergelab.merge` or of a combination that will not be refused."""
    for key in ("weight", "loras"):
        if key in keywords:
            raise OptionError(
                f"merges: {key!r} is no option of a merge; every adapter under loras has a weight of its own, and an "
                "entry may have weights"
            )
    if keywords["method"] in COMBINATIONS:
        for key, value in keywords.items():
            if callable(value) or (isinstance(value, (list, tuple)) and any(map(callable, value))):
                raise OptionError(
                    f"merges: {key}: a function has no place in a configuration; give points of its course"
                )
        rule = combination_of(keywords["method"], {k: v for k, v in keywords.items() if k != "method"})
        if isinstance(rule, Schedule) and len(rule.factors) != adapters:
            raise OptionError(
                f"merges: schedule: {len(rule.factors)} factors for {adapters} adapters; give one for each"
            )
        return dict(keywords)
    if keywords["method"] not in method_names():
        said = did_you_mean(str(keywords["method"]), [*method_names(), *COMBINATIONS])
        own = "one of your own: --import FILE.py that registers it"
        raise OptionError(f"merges: there is no method {keywords['method']!r}; {said}; {own}")
    options = {k: v for k, v in keywords.items() if k not in ("method", "rank", "seed")}
    strategy = strategy_of(str(keywords["method"]), options)
    seed = keywords.get("seed", 0)
    if not isinstance(seed, Integral) or isinstance(seed, bool):
        raise OptionError(f"merges: seed={short_repr(seed)}: expected an integer")
    rank = {"rank": strategy.checked_rank(check_rank(keywords["rank"]))} if "rank" in keywords else {}
    return {**keywords, **rank}
