"""Alphas that stand in the strings of a header alone: which strings state one, and for which layers it counts."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from mergelab.checks import is_number, short_repr
from mergelab.tables import counted

# In the order of trust; kohya's describes a training whose alphas stand in tensors, so that a file without them has
# been converted, usually with the alpha folded in: it is never more than named.
_ALPHAS = ("lora_alpha", "network_alpha", "alpha")
_DESCRIBED = "ss_network_alpha"
_RANKS = ("r", "rank", "lora_rank", "network_rank", "network_dim", "lora_dim")
_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?", re.ASCII)


@dataclass
class Ranks:
    """The layers of one component: the ranks of those without an alpha of their own, and whether others have one."""

    without_alpha: list[int] = field(default_factory=list)
    some_have_one: bool = False


@dataclass(frozen=True)
class HeaderAlphas:
    """What a header's strings say of alphas.

    Attributes:
        scalings: component -> rank -> scaling, where they say it.
        notes: which string counts for how many layers, or does not and why.
    """

    scalings: Mapping[str, Mapping[int, float]]
    notes: tuple[str, ...]

    def scaling_of(self, component: str, path: str, rank: int) -> float | None:
        """The scaling of a layer; None: the header says nothing of it."""
        return self.scalings.get(component, {}).get(rank)


def header_alphas(metadata: Mapping[str, str], components: Mapping[str, Ranks]) -> HeaderAlphas:
    """Apply the alphas in a header's strings to layers that have none.

    A string is named `lora_alpha`, `network_alpha` or `alpha`, after "unet." and the like where it is for one
    component. It counts for a component of which no layer has an alpha, at `alpha / rank` (`alpha / sqrt(rank)` with
    `use_rslora`), where all such strings agree and a rank beside them is one that the layers have.

    Example:
        >>> said = header_alphas({"alpha": "8", "rank": "16"}, {"unet": Ranks([16, 16])})
        >>> said.scaling_of("unet", "conv_in", 16), said.notes
        (0.5, ("alpha = 8 for 2 layers from the header's 'alpha'",))
    """
    scalings: dict[str, dict[int, float]] = {}
    notes: list[str] = []
    for component, ranks in components.items():
        stated = _stated(metadata, component)
        if not stated or not ranks.without_alpha or _only_describes(stated, ranks):
            continue
        count = len(ranks.without_alpha)
        key, alpha = next(iter(stated.items()))
        if reason := _why_not(metadata, component, stated, ranks):
            notes.append(
                f"the header's {key!r}, {short_repr(metadata[key])}, does not count for {counted(count, 'layer')} "
                f"without an alpha: {reason}; their alpha is their rank"
            )
            continue
        root = metadata.get(f"{_prefix(key)}use_rslora", "").strip().lower() in ("true", "1")
        scalings[component] = {r: alpha / (math.sqrt(r) if root else r) for r in set(ranks.without_alpha)}
        notes.append(f"alpha = {alpha:g} for {counted(count, 'layer')} from the header's {key!r}")
    return HeaderAlphas(scalings, tuple(dict.fromkeys(notes)))


def stale_fields(metadata: Mapping[str, str]) -> set[str]:
    """The strings that state an alpha, and ranks beside them: not true of a file that is written anew."""
    alphas = {key for key in metadata if key.rpartition(".")[2] in _ALPHAS}
    beside = {f"{_prefix(key)}{name}" for key in alphas for name in (*_RANKS, "use_rslora")}
    return alphas | (beside & set(metadata))


def _prefix(key: str) -> str:
    return key[: key.rfind(".") + 1]


def _stated(metadata: Mapping[str, str], component: str) -> dict[str, float]:
    """The alphas that a header states for a component, NaN where it is no number; its own before those for all."""
    for prefix in (f"{component}.", ""):
        if stated := _numbers(metadata, (f"{prefix}{name}" for name in _ALPHAS)):
            return stated
    return _numbers(metadata, (_DESCRIBED,))


def _numbers(metadata: Mapping[str, str], keys: Iterable[str]) -> dict[str, float]:
    given = {key: metadata[key].strip() for key in keys if metadata.get(key, "").strip().lower() not in ("", "none")}
    return {key: float(text) if _NUMBER.fullmatch(text) else math.nan for key, text in given.items()}


def _only_describes(stated: Mapping[str, float], ranks: Ranks) -> bool:
    """Whether all that a header states is kohya's description of alphas that are there, or are the ranks."""
    return _DESCRIBED in stated and (ranks.some_have_one or set(ranks.without_alpha) == set(stated.values()))


def _why_not(metadata: Mapping[str, str], component: str, stated: Mapping[str, float], ranks: Ranks) -> str | None:
    """Why the alphas of a header do not count; None where they do."""
    if ranks.some_have_one:
        return "other layers have one of their own"
    if _DESCRIBED in stated:
        return "it describes the training, and tools that remove alphas fold them in"
    if not all(is_number(alpha) and alpha > 0 for alpha in stated.values()):
        return "it is no positive number"
    if len(set(stated.values())) > 1:
        return f"{' and '.join(map(repr, stated))} differ"
    prefix = _prefix(next(iter(stated)))
    known = _numbers(metadata, (f"{p}{name}" for p in dict.fromkeys((prefix, f"{component}.")) for name in _RANKS))
    odd = [key for key, rank in known.items() if rank not in ranks.without_alpha]
    return f"no layer has the rank of the header's {odd[0]!r}" if odd else None
