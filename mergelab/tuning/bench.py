"""Where candidates are measured, as a search sees it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import pandas as pd

from mergelab.evaluation.metrics.metric import Description
from mergelab.tuning.candidate import Candidate, Scene

COLUMNS = ("candidate", "prompt", "calls", "seed", "metric", "reference", "value")
"""Of what is measured; `calls` as "ghost+day", in the order of the adapters."""


class Bench(Protocol):
    """Draws candidates and scores their images. What it has drawn once, in an earlier run too, it does not draw again.

    A candidate that cannot be merged, or an image that cannot be drawn or scored, has no rows; `failures` tells why.
    """

    def measure(self, candidates: Sequence[Candidate], scenes: Sequence[Scene]) -> pd.DataFrame:
        """The scores of every candidate on every scene, with `COLUMNS`."""
        ...

    def description(self, metric: str) -> Description:
        """What a metric says of itself; of the user's own, in the light of what was measured."""
        ...

    def image(self, candidate: Candidate, scene: Scene) -> Path:
        """Where an image lies, if it was drawn."""
        ...

    def bytes(self, candidate: Candidate) -> int | None:
        """The size of the file, merged as it would be written; None where it cannot be."""
        ...

    def failure(self, candidate: Candidate) -> str:
        """Why a candidate has no rows, in words; empty where nothing failed."""
        ...
