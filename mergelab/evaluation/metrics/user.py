"""Metrics of the user's own: functions, registered under a name."""

from __future__ import annotations

import inspect
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd
from torch import Tensor

from mergelab.evaluation.metrics.metric import Asked, Description, Metric, Picture
from mergelab.evaluation.names import VariantName

MetricFunction = Callable[[Tensor, str, Mapping[str, Tensor]], "float | Mapping[str, float]"]


def source_of(function: MetricFunction) -> str:
    """Its text; the present moment where there is none, so that it is scored again."""
    try:
        return inspect.getsource(function)
    except (OSError, TypeError):  # typed at a prompt, or no function
        return str(time.time_ns())


@dataclass(frozen=True)
class UserMetric(Metric):
    """A user's function as a metric.

    Attributes:
        function: of an image, its prompt and the images it is compared with.
        description: what was declared. Where `compares_with` was not, images are handed over, and the values tell.
        declared: whether `compares_with` was.
        source: the function's own text, or a moment where it has none.
        version: what the user says of other things that the function relies on.
    """

    function: MetricFunction
    description: Description
    declared: bool
    source: str
    version: str

    @property
    def settings(self) -> Mapping[str, Any]:
        """The function's text, and the version."""
        return {"source": self.source, "version": self.version}

    def described(self, scores: pd.DataFrame) -> Description:
        """Undeclared: between images if a variant is among its references, and a distance from 0 if lower is better."""
        known = self.description
        if not self.declared:
            between = any(VariantName.parse(reference) for reference in scores["reference"].unique())
            known = replace(known, compares_with="images" if between else "nothing")
        if not known.higher_is_better and known.range[0] == -math.inf and scores["value"].min() >= 0:
            known = replace(known, range=(0.0, known.range[1]))
        return known

    def score(self, picture: Picture, asked: Asked) -> dict[str, float]:
        """A bare number has no reference."""
        references = {key: other.pixels for key, other in asked.images.items()}
        value = self.function(picture.pixels, asked.prompt, references)
        return {key: float(v) for key, v in value.items()} if isinstance(value, Mapping) else {"": float(value)}
