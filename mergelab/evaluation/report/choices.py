"""How options were chosen, in words: on other images, or on those that they are judged by."""

from __future__ import annotations

from collections import Counter

from mergelab.errors import MergelabError
from mergelab.evaluation.names import VariantName
from mergelab.evaluation.recipes import recipes
from mergelab.evaluation.report.lookup import some_of
from mergelab.evaluation.result import Result
from mergelab.evaluation.selection import Choice
from mergelab.tables import counted

CHANCE = 0.01
"""A merge that was chosen at a score below this was chosen among those that show nothing."""


def how_chosen(result: Result, best: str, names: dict[str, str]) -> list[str]:
    """What was chosen on other images; or, of a best merge that is one of several of its entry, that it was not.

    Args:
        result: what was found.
        best: the best merge, as files have it.
        names: what people call each variant.
    """
    if result.choices and all(choice.set for choice in result.choices):
        counts = Counter(choice.label for choice in result.choices).most_common()
        said = some_of([f"{_name(label, names)} in {number}" for label, number in counts])
        sets = len({choice.set for choice in result.choices})
        chance = sum(abs(choice.score) < CHANCE for choice in result.choices)
        most = f"; in {counted(chance, 'set')} at a score of 0.00, which is chance" if chance else ""
        return [f"Options were chosen on other images, by each of {counted(sets, 'set')} for itself: {said}{most}."]
    if result.choices:
        said = "; ".join(f"{_name(one.label, names)} among {one.among} ({_there(one)})" for one in result.choices)
        return [f"Options were chosen on other images: {said}."]
    alike = _alike(result, best)
    if alike < 2 or result.config.select is not None:
        return []
    return [
        f"{names[best]} is the best of {alike} of its entry, chosen on the images it is judged by: `select` would "
        "choose on others."
    ]


def _name(label: str, names: dict[str, str]) -> str:
    return names.get(str(VariantName("merge", label)), label)


def _there(one: Choice) -> str:
    """The score on which it was chosen, where there was one."""
    return "0.00 there, which is chance" if abs(one.score) < CHANCE else f"{one.score:.2f} there"


def _alike(result: Result, best: str) -> int:
    """How many merges the entry of this one spans."""
    try:
        families = {f"merge:{one.label}": one.family for one in recipes(result.config, result.sets[0])}
    except MergelabError:  # a method of the user's own that is registered no more
        return 0
    return sum(family == families.get(best) for family in families.values()) if best in families else 0
