"""Results that were never drawn, for tests of what the report makes of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from mergelab.evaluation.concluding import concluded
from mergelab.evaluation.config import Config
from mergelab.evaluation.failures import Failures
from mergelab.evaluation.grid import Grid
from mergelab.evaluation.metrics.metric import Asked, Description, Metric, Picture
from mergelab.evaluation.report.tables import plain_table
from mergelab.evaluation.report.verdict import sentences
from mergelab.evaluation.result import Result
from mergelab.evaluation.sets import AdapterSet
from mergelab.evaluation.store import Store
from mergelab.evaluation.variants import Variant
from tests.evaluation.frames import JUDGE, Value, frame

MERGES: list[dict[str, Any]] = [{"method": "cat"}, {"method": "ties", "density": [0.3, 0.5], "rank": 8}]
LABELS = ("cat", "ties density=0.3 rank=8", "ties density=0.5 rank=8")
VARIANTS = ("base", "single:subject", "single:style", "stack", *(f"merge:{label}" for label in LABELS))


class Said(Metric):
    """A metric that is there by its description alone."""

    def __init__(self, description: Description) -> None:
        self.description = description

    def score(self, picture: Picture, asked: Asked) -> dict[str, float]:
        """Never asked."""
        raise NotImplementedError


def worth(**merges: float) -> Value:
    """Scores of an adapter: alone .9, in the base model .1, in others what is given (`low` and `high` are of the
    two densities), up and down a little with the prompt and the set."""
    known = {"stack": "stack", "merge:cat": "cat", f"merge:{LABELS[1]}": "low", f"merge:{LABELS[2]}": "high"}

    def value(name: str, variant: str, prompt: str, seed: int, role: str) -> float:
        number = int(prompt.split()[1])
        if variant == "base" or variant.startswith("single:"):
            return 0.9 if role and variant.endswith(role) else 0.1
        bump = 0.01 * ((3 * number + len(variant)) % 4) + 0.005 * (sum(map(ord, name)) % 7)
        return merges.get(known[variant], 0.5) + bump + (0.05 if role == "style" else 0.0)

    return value


def result_of(
    folder: Path,
    sets: Sequence[AdapterSet],
    value: Value,
    metrics: Sequence[Description] = (JUDGE,),
    variants: Sequence[str] = VARIANTS,
    drawn: Sequence[Variant] = (),
    **settings: Any,
) -> Result:
    """What is found in scores that were made by hand."""
    asked: dict[str, Any] = {"merges": MERGES, "prompts": ["prompt"], "seeds": 1} | settings
    loras = {lora.name: lora for one in sets for lora in one.adapters.values()}
    several = [{role: lora.name for role, lora in one.adapters.items()} for one in sets] if len(sets) > 1 else []
    config = Config(pipeline="miniature/sdxl", loras=list(loras.values()), sets=several, **asked)
    grid = Grid(config, Store(folder), list(sets), list(drawn), {}, False, Failures())
    scores = pd.concat([frame(sets, variants, metric, value, len(config.seeds)) for metric in metrics])
    result = concluded(grid, scores, [Said(metric) for metric in metrics])
    return replace(result, verdict=sentences(result), table=plain_table(result))
