"""Scenes in waves, each of which is like the whole: after each, one can tell whether a trial is worth the next."""

from __future__ import annotations

from collections.abc import Sequence

from mergelab.tuning.candidate import Scene


def waves_of(scenes: Sequence[Scene], composed: int) -> list[list[Scene]]:
    """The scenes dealt in waves, so that each has its share of what calls several adapters, each one, or none.

    Args:
        scenes: of a search.
        composed: about how many of a wave call several adapters. There are no more waves than the rarest kind of scene
            has members, so that none lacks a part of the score.

    Example:
        >>> both, none = frozenset({"ghost", "day"}), frozenset[str]()
        >>> scenes = [*(Scene("both", both, seed) for seed in range(6)), *(Scene("none", none, s) for s in range(2))]
        >>> [len(wave) for wave in waves_of(scenes, 3)]
        [4, 4]
    """
    kinds: dict[frozenset[str], list[Scene]] = {}
    for scene in scenes:
        kinds.setdefault(scene.calls, []).append(scene)
    several = sum(len(scene.calls) > 1 for scene in scenes)
    count = max(1, min(-(-several // composed), *map(len, kinds.values())))
    # Scenes of one prompt lie side by side: dealt one by one, each wave has as many prompts as it can.
    waves: list[list[Scene]] = [[] for _ in range(count)]
    for own in kinds.values():
        for place, scene in enumerate(own):
            waves[place % count].append(scene)
    return waves
