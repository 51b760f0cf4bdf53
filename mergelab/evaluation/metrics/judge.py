"""The analytic judge of the miniature world: what an image shows, read from its pixels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mergelab import miniature
from mergelab.evaluation.metrics.metric import Description, Metric, Picture, Setup
from mergelab.evaluation.names import single
from mergelab.miniature.world import BACKGROUNDS, COLORS, SHAPES, STYLES, TRIGGERS


@dataclass
class Judge(Metric):
    """Probabilities of what is seen.

    For each adapter the probability that its subject or style is shown; under "" the mean probability of the shape,
    colour and ground that the prompt names.
    """

    concepts: Mapping[str, str]
    description = Description("judge", "words", range=(0.0, 1.0), miniature_only=True)

    @classmethod
    def open(cls, setup: Setup) -> Judge:
        """It needs no model."""
        return cls(setup.concepts)

    @property
    def settings(self) -> Mapping[str, Any]:
        """The concepts."""
        return {"concepts": dict(self.concepts)}

    def score(self, picture: Picture, prompt: str, references: Mapping[str, Picture]) -> dict[str, float]:
        """One value for each adapter that the world knows, one for the prompt if it names anything."""
        verdict = miniature.judge(picture.pixels.unsqueeze(0))
        values = {}
        for name, concept in self.concepts.items():
            for thing, word in TRIGGERS.items():
                if word in concept.split():
                    kind = "style" if thing in STYLES else "object"
                    values[single(name)] = float(verdict.probability(kind, thing))
        words = prompt.lower().split()
        named = [
            float(verdict.probability(kind, word))
            for kind, names in (("object", SHAPES), ("color", COLORS), ("background", BACKGROUNDS))
            for word in names
            if word in words
        ]
        return values | ({"": sum(named) / len(named)} if named else {})
