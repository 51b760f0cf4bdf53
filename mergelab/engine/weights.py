"""The weight of every adapter in every layer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase

from mergelab.checks import EXPECTED_NUMBER, is_number, short_repr
from mergelab.engine.block_weights import BlockWeights
from mergelab.errors import OptionError
from mergelab.tables import counted

Weight = float | Mapping[str, float]


def resolve(
    weights: Sequence[Weight] | None,
    layers: Sequence[Iterable[str]],
    names: Sequence[str],
    architectures: Sequence[str | None] | None = None,
    others: Sequence[Iterable[str]] | None = None,
) -> list[dict[str, float]]:
    """Layer name -> weight, for every adapter.

    Args:
        weights: one entry per adapter: a number, or a mapping from component names or `fnmatch` patterns of layer
            names to numbers, of which the last that matches wins. None: 1.0 each.
        layers: the layer names of each adapter.
        names: the adapters' names, for messages.
        architectures: of their base models, which block weights have to be for.
        others: names of what else each adapter has: one has a weight where an entry matches it, and need not have one.

    Raises:
        OptionError: a list of the wrong length, NaN, a pattern that matches nothing, a layer without a weight.
        ArchitectureError: block weights for another base model.

    Example:
        >>> resolve([{"unet": 0.8, "unet.up*": 1.0}], [["unet.down.q", "unet.up.q"]], ["style"])
        [{'unet.down.q': 0.8, 'unet.up.q': 1.0}]
    """
    if weights is None:
        weights = [1.0] * len(names)
    if isinstance(weights, (str, Mapping)) or not isinstance(weights, Iterable):
        raise OptionError(f"weights={weights!r}: expected a list of {len(names)}, one entry for each adapter")
    given = list(weights)
    if len(given) != len(names):
        raise OptionError(
            f"weights has {counted(len(given), 'value')} for {counted(len(names), 'adapter')} ({', '.join(names)}): "
            "expected one for each"
        )
    for weight, name, architecture in zip(given, names, architectures or ()):
        if isinstance(weight, BlockWeights):
            weight.check(name, architecture)
    beside = others or [()] * len(names)
    return [_of_adapter(w, list(own), list(more), name) for w, own, more, name in zip(given, layers, beside, names)]


def weight_record(weight: Weight, resolved: Mapping[str, float]) -> float | dict[str, float]:
    """A weight as a recipe has it, its keys in alphabetical order, and as `merge` takes it again.

    Block weights, which know blocks that the adapter has not, and mappings that depend on the order of their entries
    become the fewest beginnings of names that tell its layers apart.

    Args:
        weight: as it was given.
        resolved: what became of it.

    Example:
        >>> layers = ["unet.down.q", "unet.down.k", "unet.mid.q", "unet.up.q"]
        >>> weight_record({"unet.up": 1.0, "*": 0.5}, dict.fromkeys(layers, 0.5))
        0.5
        >>> weight_record({"unet.*": 0.0, "*.down.*": 0.5, "*.d*": 1.0}, dict(zip(layers, (1.0, 1.0, 0.0, 0.0))))
        {'*': 1.0, 'unet.mid': 0.0, 'unet.up': 0.0}
    """
    if not isinstance(weight, Mapping):
        return float(weight)
    given = {key: float(weight[key]) for key in sorted(weight)}
    if not isinstance(weight, BlockWeights) and _matched(given, resolved) == resolved:
        return given
    folded = _folded(resolved)
    return folded["*"] if folded.keys() == {"*"} else folded


def _matched(weights: Mapping[str, float], names: Iterable[str]) -> dict[str, float]:
    """Name -> weight, where an entry matches."""
    found = ((name, [weights[pattern] for pattern in weights if _matches(pattern, name)]) for name in names)
    return {name: values[-1] for name, values in found if values}


def _matches(pattern: str, name: str) -> bool:
    return name.startswith(f"{pattern}.") or fnmatchcase(name, pattern)


def _folded(weights: Mapping[str, float], start: str = "", around: float | None = None) -> dict[str, float]:
    """Beginnings of names -> weight, the shorter first; what is below `start` has the weight `around` already."""
    common = Counter(weights.values()).most_common(1)[0][0]
    entries = {} if common == around else {start or "*": common}
    below: dict[str, dict[str, float]] = {}
    for name, weight in weights.items():
        end = name.find(".", len(start) + 1)
        below.setdefault(name if end < 0 else name[:end], {})[name] = weight
    for longer, own in below.items():
        if any(weight != common for weight in own.values()):
            entries |= _folded(own, longer, common)
    return entries


def _of_adapter(weight: Weight, layers: list[str], others: list[str], adapter: str) -> dict[str, float]:
    if not isinstance(weight, Mapping):
        return dict.fromkeys([*layers, *others], _number(weight, adapter))
    resolved: dict[str, float] = {}
    for pattern, value in weight.items():
        number = _number(value, f"{adapter}, {pattern!r}")
        if not isinstance(pattern, str):
            raise OptionError(f"{adapter}: {short_repr(pattern)} has a weight, expected the name or pattern of layers")
        matched = [name for name in (*layers, *others) if _matches(pattern, name)]
        if not matched and not isinstance(weight, BlockWeights):
            components = ", ".join(sorted({name.split(".", 1)[0] for name in layers}))
            raise OptionError(
                f"{adapter}: the weight for {pattern!r} matches no layer; its components are {components}, and a "
                "pattern is matched against whole layer names ('unet.up_blocks.*')"
            )
        resolved.update(dict.fromkeys(matched, number))
    missing = [name for name in layers if name not in resolved]
    if missing and isinstance(weight, BlockWeights):
        raise OptionError(weight.without(adapter, missing))
    if missing:
        raise OptionError(
            f"{adapter}: no weight for {counted(len(missing), 'layer')}, {missing[0]} the first; begin the mapping "
            "with '*': 1.0 to give every layer one"
        )
    return resolved


def _number(value: object, where: str) -> float:
    if not is_number(value):
        raise OptionError(f"{where}: weight {short_repr(value)}: {EXPECTED_NUMBER}")
    return float(value)  # type: ignore[arg-type]
