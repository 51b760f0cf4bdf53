"""The pairs, their prompts, and the budgets: all that was written down before the first result."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mergelab import miniature
from mergelab.miniature import MiniatureAdapter
from mergelab.miniature.world import BACKGROUNDS

DESIGN = (1,)
"""Subject i with style i + offset, modulo eight. These pairs were for looking at while the search was written."""
SCORES = ("judge", "clip_text")
METRICS = ("judge", "clip_text", "nearness")
THINGS = ("red square", "large green star", "small blue circle", "yellow ring", "large purple cross", "red triangle")
STEPS, BATCH = 6, 16


@dataclass(frozen=True)
class Budget:
    """What a search may draw, and the pairs on which it is reported: every subject and every style twice.

    Attributes:
        offsets: of the pairs.
        seeds: to search with.
        held_out: further seeds, for prompts that call both; the others are drawn with the first of them.
        keys: of its configuration.
    """

    offsets: tuple[int, ...]
    seeds: int
    held_out: int
    keys: Mapping[str, int]


BUDGETS = {
    "small": Budget((0, 3), 2, 2, {"settings": 24, "images": 3, "keep": 4, "more": 6}),
    "medium": Budget((5, 6), 4, 2, {"settings": 24, "images": 8, "keep": 4, "more": 12}),
    "usual": Budget((2, 4), 4, 4, {"settings": 40, "images": 8, "keep": 4, "more": 12}),
}


def pairs(pipeline: str, offsets: tuple[int, ...]) -> list[tuple[MiniatureAdapter, MiniatureAdapter]]:
    """The pairs of a pipeline, in the order in which they are run."""
    known = [adapter for adapter in miniature.adapters(pipeline) if adapter.strength == 1]
    subjects, styles = ([adapter for adapter in known if adapter.kind == kind] for kind in ("subject", "style"))
    return [(subjects[i], styles[(i + offset) % len(styles)]) for offset in offsets for i in range(len(subjects))]


def prompts(subject: MiniatureAdapter, style: MiniatureAdapter) -> tuple[list[str], list[str]]:
    """Prompts to search on, and prompts that are held out: six that call both, three for each alone, four for none.

    Grounds and sizes are crossed, so that none is of one half alone.
    """
    grounds = list(BACKGROUNDS)
    sizes = ("large ", "small ")
    half = (
        [(sizes[i % 2], ground) for i, ground in enumerate(grounds)],
        [(sizes[(i + 1) % 2], ground) for i, ground in enumerate(grounds)],
    )
    return _prompts(subject, style, half[0], THINGS), _prompts(subject, style, half[1], THINGS[::-1])


def _prompts(
    subject: MiniatureAdapter, style: MiniatureAdapter, places: list[tuple[str, str]], things: tuple[str, ...]
) -> list[str]:
    shown = [f"a {size}{subject.trigger} on a {ground} background" for size, ground in places]
    plain = [f"a {thing} on a {ground} background" for thing, (_, ground) in zip(things, places)]
    both = [f"{text} {style.prompt}" for text in shown]
    return [*both, *shown[:3], *(f"{text} {style.prompt}" for text in plain[:3]), *plain[2:]]


def config(
    pipeline: str, subject: MiniatureAdapter, style: MiniatureAdapter, score: str, budget: str
) -> dict[str, Any]:
    """The configuration of one search."""
    (searched, kept), asked = prompts(subject, style), BUDGETS[budget]
    return {
        "pipeline": f"miniature/{pipeline}",
        "loras": [f"miniature/{pipeline}/{subject.name}", f"miniature/{pipeline}/{style.name}"],
        "prompts": searched,
        "seeds": list(range(asked.seeds)),
        "held_out": {"prompts": kept, "seeds": list(range(asked.seeds, asked.seeds + asked.held_out))},
        "score": score,
        **asked.keys,
        "generation": {"steps": STEPS, "batch": BATCH},
    }
