"""From the scores of images to the score of a candidate: what it keeps of every adapter, and of the base model.

One scale for all: 0 as the base model, 1 as each adapter alone.

- `joint`: the mean, over the scenes that call several adapters, of the least of their concepts.
- `own`: the mean over adapters of its concept on the scenes that call it alone.
- `plain`: what scenes that call none keep: 1, less what their own prompt lost against the base model, less the
  concept that leaks most.

A concept's score of a metric that is a share, such as the judge's probabilities, is taken as it is. Others, such as
cosines, are put on each adapter's own scale: 0 is the mean of the base model, 1 that of the adapter alone, both on the
scenes that call it, those that call others too and those that do not apart; where it gains next to nothing on the one
kind, half of what it gains on the other is worth 1. A loss of the own prompt is told in the mean unit of those scales:
a cosine is worth as much here as there. A metric that gives one number for an image has neither floor nor ceiling; each
part is its mean.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mergelab.evaluation.analysis.quantities import concept_reference
from mergelab.evaluation.metrics.metric import Description
from mergelab.evaluation.names import BASE as BASE_VARIANT
from mergelab.evaluation.names import role_of
from mergelab.evaluation.statistics import Units, is_blind
from mergelab.tuning.bench import COLUMNS
from mergelab.tuning.candidate import BASE, Part, Scene, alone
from mergelab.tuning.config import Balance

PARTS: tuple[Part, ...] = ("joint", "own", "plain")


@dataclass(frozen=True)
class Scored:
    """What a candidate keeps, on some scenes; more is better. A part without scenes is NaN.

    Attributes:
        joint, own, plain: the parts, as the module says.
        total: their mean, weighted by the balance; of the parts that have scenes.
        recovery: adapter -> the mean of its concept on the scenes that call several.
        images: how many were scored.
    """

    joint: float
    own: float
    plain: float
    total: float
    recovery: Mapping[str, float]
    images: int


@dataclass(frozen=True)
class Scale:
    """Where the scores of a metric begin and end, more being better.

    Attributes:
        ends: adapter and part -> its 0, and what is worth 1; of the adapters that the metric sees.
        blind: adapters with a concept that the metric does not tell from the base model.
    """

    ends: Mapping[tuple[str, Part], tuple[float, float]]
    blind: tuple[str, ...] = ()

    @property
    def adapters(self) -> list[str]:
        """Those that the metric sees."""
        return list(dict.fromkeys(name for name, _ in self.ends))

    def put(self, value: float, adapter: str, part: Part) -> float:
        """A score on the scale; NaN where that has no ends for such scenes."""
        floor, unit = self.ends.get((adapter, part), (math.nan, math.nan))
        return (value - floor) / unit

    def unit(self, adapter: str) -> float:
        """What is worth 1 where it is not called: as where it is called alone, or with others."""
        return next(self.ends[adapter, part][1] for part in PARTS[1::-1] if (adapter, part) in self.ends)


Score = Callable[[pd.DataFrame, Sequence[Scene]], Mapping[str, Scored]]
"""From measured scores to what each candidate keeps, on these scenes: `scored` with all else given."""


def anchors_needed(adapters: Iterable[str], scenes: Sequence[Scene], metric: Description) -> dict[str, list[Scene]]:
    """Label of the base model, or of an adapter alone -> the scenes on which it has to be measured for a scale."""
    if metric.compares_with == "nothing":
        return {}
    if metric.is_share:
        needed = {BASE: [scene for scene in scenes if scene.part == "plain"]}
    else:
        called = {alone(name): [scene for scene in scenes if name in scene.calls] for name in adapters}
        needed = {BASE: list(scenes)} | called
    return {label: own for label, own in needed.items() if own}


def scale_of(anchors: pd.DataFrame, metric: Description) -> Scale:
    """The scale of a metric, from the scores that `anchors_needed` asks for; of shares there is nothing to measure."""
    known = _Values(anchors, metric)
    if metric.is_share:
        return _of_shares(known.adapters)
    ends, blind = dict[tuple[str, Part], tuple[float, float]](), list[str]()
    for name in known.adapters:
        about = concept_reference(metric, name)
        drawn = [key[1:3] for key in known.values if key[0] == alone(name) and key[3] == about]
        scenes = [scene for scene in drawn if f"+{name}+" in f"+{known.calls[scene]}+"]
        pairs = [(known.get(BASE, *scene, about), known.get(alone(name), *scene, about)) for scene in scenes]
        low, high = np.array(pairs, dtype=float).reshape(-1, 2).T
        both = np.isfinite(low + high)
        prompts = [prompt for (prompt, _), kept in zip(scenes, both) if kept]
        if not prompts or is_blind(low[both], high[both], Units(prompts)):
            blind.append(name)
            continue
        only = np.array([known.calls[scene] == name for scene in scenes], dtype=bool)
        kinds: tuple[tuple[Part, NDArray[np.bool_]], ...] = (("joint", both & ~only), ("own", both & only))
        gains = {part: (rows, float((high - low)[rows].mean())) for part, rows in kinds if rows.any()}
        least = max(gain for _, gain in gains.values()) / 2  # a few scenes may say that there is nothing to gain
        for part, (rows, gain) in gains.items():
            ends[name, part] = float(low[rows].mean()), max(gain, least)
    return Scale(ends, tuple(blind))


def scored(
    frame: pd.DataFrame, anchors: pd.DataFrame, scenes: Sequence[Scene], metric: Description, balance: Balance
) -> dict[str, Scored]:
    """Candidate -> what it keeps on these scenes; one that has no score there is not in it.

    Args:
        frame: scores as `Bench.measure` gives them.
        anchors: those of "base" and of each "NAME alone" that `anchors_needed` asks for, on these scenes or on more;
            the scale is that of all of them.
        scenes: which count.
        metric: which counts.
        balance: of the parts.
    """
    values, known = _Values(frame, metric), _Values(anchors, metric)
    scale = _of_shares([*known.adapters, *values.adapters]) if metric.is_share else scale_of(anchors, metric)
    own, found = _Scoring(values, known, scale, metric), dict[str, Scored]()
    for label in own.values.candidates:
        drawn = [scene for scene in scenes if own.values.has(label, scene)]
        if drawn:
            found[label] = own.of(label, drawn, balance)
    return found


def _of_shares(adapters: Iterable[str]) -> Scale:
    return Scale({(name, part): (0.0, 1.0) for name in adapters for part in PARTS})


class _Values:
    """The scores of one metric by candidate, prompt, seed and reference; more is better."""

    def __init__(self, frame: pd.DataFrame, metric: Description) -> None:
        rows = frame[frame["metric"] == metric.name] if len(frame) else pd.DataFrame(columns=list(COLUMNS))
        columns = (rows[column] for column in ("candidate", "prompt", "seed", "reference", "value"))
        self.values: dict[tuple[str, str, int, str], float] = {
            (candidate, prompt, int(seed), reference): metric.sign * float(value)
            for candidate, prompt, seed, reference, value in zip(*columns)
        }
        self.calls = {
            (prompt, int(seed)): calls for prompt, seed, calls in zip(rows["prompt"], rows["seed"], rows["calls"])
        }
        """Prompt and seed -> the adapters that are called, as "ghost+day"."""
        self.candidates = list(dict.fromkeys(key[0] for key in self.values))
        references = dict.fromkeys(key[3] for key in self.values)
        self.adapters = [name for reference in references
                         if (name := role_of(reference)) and concept_reference(metric, name) == reference]  # fmt: skip
        self.drawn = {key[:3] for key in self.values}

    def get(self, candidate: str, prompt: str, seed: int, reference: str) -> float:
        return self.values.get((candidate, prompt, seed, reference), math.nan)

    def of(self, candidate: str, scene: Scene, reference: str) -> float:
        return self.get(candidate, scene.prompt, scene.seed, reference)

    def has(self, candidate: str, scene: Scene) -> bool:
        return (candidate, scene.prompt, scene.seed) in self.drawn


@dataclass(frozen=True)
class _Scoring:
    """What the scoring of all candidates shares."""

    values: _Values
    anchors: _Values
    scale: Scale
    metric: Description

    def of(self, label: str, scenes: Sequence[Scene], balance: Balance) -> Scored:
        """One candidate on the scenes that were drawn of it."""
        parts = {part: [scene for scene in scenes if scene.part == part] for part in PARTS}
        means: dict[Part, float] = {
            part: _mean(self.values.of(label, scene, "") for scene in parts[part]) for part in PARTS
        }
        if self.metric.compares_with == "nothing":
            return _summed(means, balance, {}, len(scenes))
        concepts = {name: partial(self._concept, label, name) for name in self.scale.adapters}
        called = {name: [scene for scene in scenes if name in scene.calls] for name in concepts}
        means["joint"] = _mean(
            _least(concepts[n](scene) for n in concepts if n in scene.calls) for scene in parts["joint"]
        )
        means["own"] = _mean(_mean(concepts[n](s) for s in own if s.part == "own") for n, own in called.items())
        means["plain"] = self._plain(label, parts["plain"])
        recovery = {n: _mean(concepts[n](s) for s in own if s.part == "joint") for n, own in called.items()}
        return _summed(means, balance, recovery, len(scenes))

    def _concept(self, label: str, name: str, scene: Scene) -> float:
        value = self.values.of(label, scene, concept_reference(self.metric, name))
        return self.scale.put(value, name, scene.part)

    def _plain(self, label: str, scenes: Sequence[Scene]) -> float:
        """Means over scenes that the base model was drawn on, too."""
        unit = _mean(map(self.scale.unit, self.scale.adapters))
        lost = _mean(self._kept(scene) - self.values.of(label, scene, self._kept_by) for scene in scenes) / unit
        leaks = [self._leak(label, scenes, name) for name in self.scale.adapters]
        terms = [lost, max([0.0, *(leak for leak in leaks if math.isfinite(leak))]) if leaks else math.nan]
        known = [term for term in terms if math.isfinite(term)]
        return 1 - sum(known) if known and scenes else math.nan

    def _leak(self, label: str, scenes: Sequence[Scene], name: str) -> float:
        about = concept_reference(self.metric, name)
        gains = (self.values.of(label, scene, about) - self.anchors.of(BASE, scene, about) for scene in scenes)
        return _mean(gains) / self.scale.unit(name)

    @property
    def _kept_by(self) -> str:
        """What tells whether a picture is still the base model's: its own prompt, or the base model's picture."""
        return str(BASE_VARIANT) if self.metric.compares_with == "images" else ""

    def _kept(self, scene: Scene) -> float:
        """What the base model itself has of that."""
        if self.metric.compares_with == "images":
            return self.metric.sign * self.metric.best
        return self.anchors.of(BASE, scene, "")


def _summed(means: Mapping[Part, float], balance: Balance, recovery: Mapping[str, float], images: int) -> Scored:
    shares = {part: getattr(balance, part) for part in PARTS if math.isfinite(means[part])}
    weight = sum(shares.values())
    total = sum(share * means[part] for part, share in shares.items()) / weight if weight else math.nan
    return Scored(means["joint"], means["own"], means["plain"], total, recovery, images)


def _mean(values: Iterable[float]) -> float:
    """Of those that are there."""
    known = [value for value in values if math.isfinite(value)]
    return math.fsum(known) / len(known) if known else math.nan


def _least(values: Iterable[float]) -> float:
    """NaN where one is missing, or all."""
    known = list(values)
    return min(known) if known and all(map(math.isfinite, known)) else math.nan
