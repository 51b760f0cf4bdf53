"""Scores made by hand, and a bench that gives them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import pandas as pd

from mergelab.evaluation.metrics.metric import Description
from mergelab.tuning.bench import COLUMNS
from mergelab.tuning.candidate import Candidate, Scene

SHARE = Description("judge", "words", range=(0.0, 1.0))
COSINE = Description("clip_text", "words", range=(-1.0, 1.0))
BOTH, GHOST, DAY, PLAIN = (
    Scene("a sks in szn style", frozenset({"ghost", "day"}), 0),
    Scene("a sks", frozenset({"ghost"}), 0),
    Scene("a star in szn style", frozenset({"day"}), 0),
    Scene("a star", frozenset(), 0),
)
SCENES = [BOTH, GHOST, DAY, PLAIN]

Values = Mapping[str, float]
"""Reference -> value: "ghost" and "day" are concepts, "" is the own prompt."""


def frame_of(metric: str, values: Mapping[tuple[str, Scene], Values]) -> pd.DataFrame:
    """Scores as a bench has them: (candidate, scene) -> reference -> value."""
    rows = [
        (
            label,
            scene.prompt,
            "+".join(sorted(scene.calls)),
            scene.seed,
            metric,
            f"single:{about}" if about else "",
            value,
        )
        for (label, scene), own in values.items()
        for about, value in own.items()
    ]
    return pd.DataFrame(rows, columns=list(COLUMNS))


@dataclass
class HandBench:
    """A bench whose scores are a function of the weights: the judge's, the same for every scene of a part.

    Attributes:
        quality: of a candidate, from 0 to 1; NaN: it fails.
        asked: every candidate and how many scenes, as they were asked for.
    """

    quality: Callable[[Candidate], float]
    asked: list[tuple[str, int]] = field(default_factory=list)

    def measure(self, candidates: Sequence[Candidate], scenes: Sequence[Scene]) -> pd.DataFrame:
        """All concepts have the quality; the own prompt is whole."""
        self.asked += [(candidate.label, len(scenes)) for candidate in candidates]
        values = {
            (candidate.label, scene): dict.fromkeys(scene.calls, self.quality(candidate)) | {"": 1.0}
            for candidate in candidates
            for scene in scenes
            if self.quality(candidate) == self.quality(candidate)
        }
        return frame_of("judge", values)

    def description(self, metric: str) -> Description:
        """The judge's."""
        return SHARE

    def bytes(self, candidate: Candidate) -> int | None:
        """Nothing is written."""
        return None

    def failure(self, candidate: Candidate) -> str:
        """The same for all that fail."""
        return "" if self.quality(candidate) == self.quality(candidate) else "LayerError: no such layer"
