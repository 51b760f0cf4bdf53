"""A rank as it is given: in Python, as text, in a recipe."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, fields
from numbers import Integral
from typing import Any

from mergelab.checks import did_you_mean, plain_number, short_repr
from mergelab.errors import OptionError
from mergelab.ranks.budget import RankBudget
from mergelab.ranks.dynamic import SvCumulative, SvFro, SvRatio

Rule = RankBudget | SvRatio | SvFro | SvCumulative
Rank = int | float | str | Rule

# By the name of their number, which stands first in each, with an example of it.
_RULES: dict[str, tuple[type[Rule], str]] = {
    "mean": (RankBudget, "32"),
    "sv_ratio": (SvRatio, "2"),
    "sv_fro": (SvFro, "0.9"),
    "sv_cumulative": (SvCumulative, "0.8"),
}
_MAX = "max"


def check_rank(rank: object) -> Rank:
    """Return a valid rank, or raise `OptionError` with what is expected.

    A mapping is a rule as `rank_record` writes it.

    Example:
        >>> check_rank("sum"), check_rank(8), check_rank(0.9), check_rank("mean=16")
        ('sum', 8, 0.9, RankBudget(mean=16, max=None))
        >>> check_rank({"mean": 8, "max": None}), check_rank("sv_ratio=2,max=32")
        (RankBudget(mean=8, max=None), SvRatio(sv_ratio=2.0, max=32))
    """
    if isinstance(rank, Rule) or (isinstance(rank, str) and rank in ("max", "sum")):
        return rank
    if isinstance(rank, Mapping):
        return _recorded(rank)
    if isinstance(rank, str) and rank.partition("=")[0] in _RULES and "=" in rank:
        return _rule_of(rank)
    if isinstance(rank, float) and 0 < rank < 1:
        return float(rank)
    if isinstance(rank, Integral) and not isinstance(rank, bool) and int(rank) >= 1:
        return int(rank)
    raise OptionError(
        f"rank={short_repr(rank)}: expected an integer of at least 1, 'max', 'sum', a share of the energy strictly "
        "between 0 and 1, a budget, RankBudget(mean=32) or 'mean=32', or one of kohya's rules, 'sv_ratio=2', "
        "'sv_fro=0.9' or 'sv_cumulative=0.8'"
    )


def own_rank(rank: object) -> Rank:
    """Return a valid rank where there are no inputs whose ranks count, or raise `OptionError`.

    Example:
        >>> own_rank(8), own_rank("sv_ratio=2")
        (8, SvRatio(sv_ratio=2.0, max=None))
    """
    checked = check_rank(rank)
    if isinstance(checked, str):
        raise OptionError(
            f"rank={checked!r}: expected a number such as 16, 0.9 (share of energy), mean=16 (a budget) or sv_ratio=2"
        )
    return checked


def parse_rank(text: str) -> Rank:
    """A rank from a command line: "32", "0.9", "max", "sum", "mean=32", or "sv_ratio=2,max=32".

    Raises:
        OptionError: it is none of these.

    Example:
        >>> parse_rank("32"), parse_rank("0.9"), parse_rank("mean=4").mean, parse_rank("sv_fro=0.9").sv_fro
        (32, 0.9, 4, 0.9)
    """
    if text in ("max", "sum") or "=" in text:
        return check_rank(text)
    try:
        plain_number(text)
        number = int(text) if text.lstrip("+-").isdecimal() else float(text)
    except ValueError:
        raise OptionError(
            f"rank={short_repr(text)}: expected a number such as 32, max, sum, 0.9, mean=32 or sv_ratio=2"
        ) from None
    return check_rank(number)


def rank_record(rank: Rank) -> Any:
    """A rank as a recipe keeps it, JSON-ready.

    Example:
        >>> rank_record(8), rank_record(RankBudget(mean=8)), rank_record(SvRatio(2, max=16))
        (8, {'mean': 8, 'max': None}, {'sv_ratio': 2.0, 'max': 16})
    """
    return asdict(rank) if isinstance(rank, Rule) else rank


def rank_text(rank: Rank) -> str:
    """A rank as a label shows it, and as a command line takes it.

    Example:
        >>> rank_text(8), rank_text(RankBudget(mean=8)), rank_text(SvRatio(2, max=16))
        ('8', 'mean=8', 'sv_ratio=2,max=16')
    """
    if not isinstance(rank, Rule):
        return str(rank)
    name = fields(rank)[0].name
    number = getattr(rank, name)
    return f"{name}={int(number) if number == int(number) else number}" + (
        f",{_MAX}={rank.max}" if rank.max is not None else ""
    )


def rank_repr(rank: Rank) -> str:
    """A rank as one writes it in Python.

    Example:
        >>> rank_repr(8), rank_repr("sum"), rank_repr(RankBudget(mean=8))
        ('8', "'sum'", "'mean=8'")
    """
    return rank_text(rank) if isinstance(rank, (int, float)) else repr(rank_text(rank))


def _rule_of(text: str) -> Rule:
    """A rule with its number, and a cap where there is one: "sv_ratio=2,max=32"."""
    first, comma, second = text.partition(",")
    name, _, number = first.partition("=")
    key, _, cap = second.partition("=")
    kind, example = _RULES[name]
    try:
        value = _whole(number) if kind is RankBudget else plain_number(number)
        most = _whole(cap if key == _MAX else "") if comma else None
    except ValueError:
        what = "an integer of at least 1" if kind is RankBudget else "a number"
        raise OptionError(
            f"rank={short_repr(text)}: expected {what}, as in '{name}={example}' or '{name}={example},max=64'"
        ) from None
    return kind(value, most)  # type: ignore[arg-type]


def _whole(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and int(text) >= 1):
        raise ValueError
    return int(text)


def _recorded(record: Mapping[str, Any]) -> Rule:
    name = next((key for key in record if key in _RULES), "mean")
    known = [name, _MAX]
    what = "a budget" if name == "mean" else name
    if unknown := [key for key in record if key not in known]:
        found = f"{what} has no {short_repr(unknown[0])}"
        raise OptionError(f"rank={short_repr(record)}: {found}; {did_you_mean(str(unknown[0]), known)}")
    if name not in record:
        raise OptionError(f"rank={short_repr(record)}: a budget needs its mean, as in {{mean: 32}}")
    return _RULES[name][0](record[name], record.get(_MAX))
