"""From the scores of images to the score of a candidate: what it keeps of every adapter, and of the base model.

One scale for all: 0 as the base model, 1 as each adapter alone.

- `joint`: the mean, over the scenes that call several adapters, of the least of their concepts.
- `own`: the mean over adapters of its concept on the scenes that call it alone.
- `plain`: what scenes that call none keep: 1, less what their own prompt lost against the base model, less the
  concept that leaks most.

A concept's score of a metric that is a share, such as the judge's probabilities, is taken as it is. Others, such as
cosines, are put on each adapter's own scale: 0 is the mean of the base model, 1 that of the adapter alone, both on the
scenes that call it. A loss of the own prompt is told in the mean unit of those scales: a cosine is worth as much here
as there. A metric that gives one number for an image has neither floor nor ceiling; each part is its mean.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from mergelab.evaluation.metrics.metric import Description
from mergelab.tuning.candidate import Scene
from mergelab.tuning.config import Balance


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
    """Where scores begin and end.

    Attributes:
        floor, unit: of each adapter's concept: its 0, and what is worth 1.
        prompt: what the base model scores on its own prompts, where the metric sees them.
    """

    floor: Mapping[str, float]
    unit: Mapping[str, float]
    prompt: float = math.nan


def scored(
    frame: pd.DataFrame, anchors: pd.DataFrame, scenes: Sequence[Scene], metric: Description, balance: Balance
) -> dict[str, Scored]:
    """Candidate -> what it keeps on these scenes.

    Args:
        frame: scores as `Bench.measure` gives them.
        anchors: those of "base" and of each "NAME alone", on these scenes and perhaps others.
        scenes: which count.
        metric: which counts.
        balance: of the parts.
    """
    raise NotImplementedError
