"""The analytic judge of the miniature world: what an image shows, read from its pixels."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from statistics import fmean

from mergelab import miniature
from mergelab.evaluation.metrics.metric import Asked, Description, Metric, Picture
from mergelab.evaluation.names import single
from mergelab.miniature.judge import Verdict
from mergelab.miniature.world import BACKGROUNDS, COLORS, SHAPES, STYLES, TRIGGERS


class Judge(Metric):
    """Probabilities of what is seen.

    For each adapter the probability that its subject or style is shown; under "" the mean probability of the shape,
    colour and ground that the prompt names.
    """

    description = Description("judge", "words", range=(0.0, 1.0), miniature_only=True)

    def score(self, picture: Picture, asked: Asked) -> dict[str, float]:
        """One value for each adapter with a concept that the world knows, one for the prompt if it names anything."""
        verdict = miniature.judge(picture.pixels.unsqueeze(0))
        values = {}
        for name, concepts in asked.concepts.items():
            named = [_mean(verdict, things) for concept in concepts if (things := _things(concept))]
            if named:
                values[single(name)] = fmean(named)
        seen = _words(asked.prompt.lower(), {"object": SHAPES, "color": COLORS, "background": BACKGROUNDS})
        return values | ({"": _mean(verdict, seen)} if seen else {})


def _things(concept: str) -> list[tuple[str, str]]:
    """The subjects and styles whose trigger is in a concept, each with its kind."""
    words = concept.split()
    return [("style" if thing in STYLES else "object", thing) for thing, word in TRIGGERS.items() if word in words]


def _words(prompt: str, known: Mapping[str, Iterable[str]]) -> list[tuple[str, str]]:
    """What a prompt names, each with its kind."""
    words = prompt.split()
    return [(kind, word) for kind, names in known.items() for word in names if word in words]


def _mean(verdict: Verdict, things: Iterable[tuple[str, str]]) -> float:
    return fmean(float(verdict.probability(kind, thing)) for kind, thing in things)
