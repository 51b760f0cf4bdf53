"""What a search tries, a way to merge the adapters, and what it is tried on, a scene."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from mergelab.evaluation.config import Weight

Part = Literal["joint", "own", "plain"]
"""Scenes that call several adapters, one alone, or none."""
BASE = "base"
"""The label of the base model."""


@dataclass(frozen=True)
class Candidate:
    """One way to merge the adapters.

    Attributes:
        label: unique within a run: "base", "ghost alone", "sum", "sum 0.9", "setting 7", "trial 12".
        weights: name of an adapter -> its weight, one number or layer patterns with numbers; one that is not named is
            absent.
        merge: keywords of `mergelab.merge` beside the weights; None: the plain sum, which is drawn without a merge
            since it loses nothing.
    """

    label: str
    weights: Mapping[str, Weight]
    merge: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Scene:
    """A prompt with the noise from which it is drawn.

    Attributes:
        prompt: what is drawn.
        calls: names of the adapters that it calls.
        seed: of the noise.
    """

    prompt: str
    calls: frozenset[str]
    seed: int

    @property
    def part(self) -> Part:
        """The part of the score that it belongs to."""
        return "joint" if len(self.calls) > 1 else "own" if self.calls else "plain"


def alone(adapter: str) -> str:
    """The label of an adapter alone."""
    return f"{adapter} alone"
