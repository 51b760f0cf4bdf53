"""Which scenes a search draws, in which order, and which prompts and seeds are kept for the winner."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil

from mergelab.errors import OptionError
from mergelab.evaluation.sets import Called
from mergelab.tuning.candidate import Part, Scene
from mergelab.tuning.config import Balance


@dataclass(frozen=True)
class Asked:
    """A prompt, and the names of the adapters that it calls."""

    text: str
    calls: frozenset[str]

    @classmethod
    def of(cls, prompt: Called) -> Asked:
        """As a set of adapters without roles has it."""
        return cls(prompt.text, prompt.calls)


def halves(prompts: Sequence[Asked]) -> tuple[list[Asked], list[Asked]]:
    """The prompts to search on and those that are kept for the winner: of each kind every second one.

    A kind that has one prompt alone has it in both.

    Example:
        >>> kinds = [Asked("a sks in szn style", frozenset({"ghost", "day"})), Asked("a red star", frozenset())]
        >>> first, second = halves([*kinds, Asked("a blue star", frozenset())])
        >>> [one.text for one in first], [one.text for one in second]
        (['a sks in szn style', 'a red star'], ['a sks in szn style', 'a blue star'])
    """
    first, second = list[Asked](), list[Asked]()
    for kind in dict.fromkeys(prompt.calls for prompt in prompts):
        own = [prompt for prompt in prompts if prompt.calls == kind]
        first += own[::2]
        second += own[1::2] or own
    return first, second


def in_order(prompts: Sequence[Asked], seeds: Sequence[int]) -> list[Scene]:
    """All scenes of some prompts and seeds, so that the first ones differ in as much as they can.

    Prompts vary fastest, those that call different adapters in turn, each with another seed than the one before.

    Example:
        >>> asked = [Asked(text, frozenset()) for text in ("a red star", "a blue star")]
        >>> [(scene.prompt, scene.seed) for scene in in_order(asked, [0, 1])]
        [('a red star', 0), ('a blue star', 1), ('a red star', 1), ('a blue star', 0)]
    """
    kinds = list(dict.fromkeys(prompt.calls for prompt in prompts))
    of_kind = [[prompt for prompt in prompts if prompt.calls == kind] for kind in kinds]
    longest = max(map(len, of_kind), default=0)
    turns = [own[place] for place in range(longest) for own in of_kind if place < len(own)]
    return [
        Scene(prompt.text, prompt.calls, seeds[(turn + place) % len(seeds)])
        for turn in range(len(seeds))
        for place, prompt in enumerate(turns)
    ]


def rounds(
    prompts: Sequence[Asked], seeds: Sequence[int], images: int, more: int, balance: Balance
) -> tuple[list[Scene], list[Scene]]:
    """The scenes of the first round, and of the second.

    Beside the composed scenes stand as many of each other part as the balance gives it; of scenes that call one adapter
    at least one for each, since a score without them is none. A part that counts nothing is not drawn.

    Args:
        prompts: to search on.
        seeds: of their noise.
        images: composed scenes of the first round.
        more: of the second.
        balance: of the parts.

    Raises:
        OptionError: no prompt calls two adapters; a part counts and has no prompt.
    """
    check_parts(prompts, balance)
    first, second = list[Scene](), list[Scene]()
    parts: tuple[Part, ...] = ("joint", "own", "plain")
    for part in parts:
        asked = [prompt for prompt in prompts if Scene(prompt.text, prompt.calls, 0).part == part]
        share = getattr(balance, part) / balance.joint if balance.joint else 1.0
        kinds = len({prompt.calls for prompt in asked})
        counts = [max(kinds, ceil(images * share)), ceil(more * share)] if share else [0, 0]
        scenes = in_order(asked, seeds)
        first += scenes[: counts[0]]
        second += scenes[counts[0] : sum(counts)]
    return first, second


def check_parts(prompts: Sequence[Asked], balance: Balance) -> None:
    """Raises where a part of the score has no prompts.

    Raises:
        OptionError: it has none.
    """
    words = {"joint": "calls two adapters", "own": "calls one adapter alone", "plain": "calls no adapter"}
    there = {Scene(prompt.text, prompt.calls, 0).part for prompt in prompts}
    if not any(getattr(balance, part) for part in words):
        raise OptionError("balance: expected at least one part above 0")
    for part, says in words.items():
        if getattr(balance, part) and part not in there:
            raise OptionError(
                f"prompts: none {says}, and balance.{part} is {getattr(balance, part):g}; add such prompts, with their "
                f"trigger words or with calls, or set balance.{part} to 0"
            )
