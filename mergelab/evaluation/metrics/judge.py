"""The analytic judge of the miniature world: what an image shows, read from its pixels."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from torch import Tensor

from mergelab import miniature
from mergelab.evaluation.metrics.metric import Asked, Description, Metric, Picture, Setup
from mergelab.evaluation.names import single
from mergelab.miniature.judge import OBJECTS, Verdict
from mergelab.miniature.world import BACKGROUNDS, CLASSES, COLORS, SHAPES, STYLES, TRIGGERS


class Verdicts(dict[str, Verdict]):
    """What is read from each picture, once for all metrics that want it."""

    def of(self, picture: Picture) -> Verdict:
        """The verdict on a picture."""
        if picture.key not in self:
            self[picture.key] = miniature.judge(picture.pixels.unsqueeze(0))
        return self[picture.key]


@dataclass
class Judge(Metric):
    """Probabilities of what is seen.

    For each adapter the probability that its subject or style is shown; under "" the mean probability of the shape,
    colour and ground that the prompt names.
    """

    verdicts: Verdicts
    description = Description("judge", "words", range=(0.0, 1.0), miniature_only=True)

    @classmethod
    def open(cls, setup: Setup) -> Judge:
        """With the verdicts of all metrics that read them."""
        return cls(setup.shared(Verdicts))

    @property
    def settings(self) -> Mapping[str, Any]:
        """The world that it knows: a larger one scores anew."""
        return {"objects": len(OBJECTS), "styles": len(STYLES)}

    def score(self, picture: Picture, asked: Asked) -> dict[str, float]:
        """One value for each adapter with a concept that the world knows, one for the prompt if it names anything."""
        verdict = self.verdicts.of(picture)
        seen = _words(asked.prompt.lower(), {"object": SHAPES, "color": COLORS, "background": BACKGROUNDS})
        return _of_concepts(verdict.probability, asked) | ({"": _mean(verdict.probability, seen)} if seen else {})


class Nearness(Judge):
    """How near a picture with each adapter's subject or style is, against one without it: the judge's soft score.

    See `mergelab.miniature.judge.Verdict.nearness`; near misses count, and few images are at an end of it.
    """

    description = Description("nearness", "words", range=(0.0, 1.0), own_scale=True, miniature_only=True)

    def score(self, picture: Picture, asked: Asked) -> dict[str, float]:
        """One value for each adapter with a concept that the world knows."""
        return _of_concepts(self.verdicts.of(picture).nearness, asked)


def _of_concepts(score: Callable[[str, str], Tensor], asked: Asked) -> dict[str, float]:
    values = {}
    for name, concepts in asked.concepts.items():
        if named := [_mean(score, things) for concept in concepts if (things := _things(concept))]:
            values[single(name)] = fmean(named)
    return values


def _things(concept: str) -> list[tuple[str, str]]:
    """The subjects and styles whose trigger is in a concept, each with its kind."""
    words = concept.split()
    return [("style" if thing in STYLES else "object", thing) for thing, word in TRIGGERS.items() if word in words]


def _words(prompt: str, known: Mapping[str, Iterable[str]]) -> list[tuple[str, str]]:
    """What a prompt names, each with its kind; the star of "a cfw star" is none."""
    words = prompt.split()
    taken = {CLASSES[thing] for _, thing in _things(prompt) if thing in CLASSES}
    return [(kind, word) for kind, names in known.items() for word in names if word in words and word not in taken]


def _mean(score: Callable[[str, str], Tensor], things: Iterable[tuple[str, str]]) -> float:
    return fmean(float(score(kind, thing)) for kind, thing in things)
