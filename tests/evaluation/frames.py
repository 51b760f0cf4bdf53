"""Scores that were never drawn, for tests of what is computed from them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pandas as pd

from mergelab.evaluation.config import Lora
from mergelab.evaluation.metrics.metric import Description
from mergelab.evaluation.scoring import COLUMNS
from mergelab.evaluation.sets import AdapterSet, Called

JUDGE = Description("judge", "words", range=(0.0, 1.0), miniature_only=True)
NEARNESS = Description("nearness", "words", range=(0.0, 1.0), own_scale=True, miniature_only=True)
COSINE = Description("clip_text", "words", range=(-1.0, 1.0))
LIKENESS = Description("dino", "images", range=(-1.0, 1.0), photographs=True)

Value = Callable[[str, str, str, int, str], float]
"""Of (set, variant, prompt, seed, reference)."""


def a_set(name: str, together: int = 6, alone: int = 2, free: int = 2, **weights: float) -> AdapterSet:
    """A subject and a style, and prompts that call both, either and none."""
    subject, style = name.split("+")
    loras = {
        role: Lora(path=f"{own}.safetensors", name=own, concept=f"a {own}", weight=weights.get(role, 1.0))
        for role, own in (("subject", subject), ("style", style))
    }
    both = frozenset(loras)
    calls = [both] * together + [frozenset({"subject"})] * alone + [frozenset({"style"})] * alone + [frozenset()] * free
    prompts = tuple(Called(f"prompt {i}", called, i) for i, called in enumerate(calls))
    return AdapterSet(name, loras, prompts)


def frame(
    sets: Sequence[AdapterSet], variants: Sequence[str], metric: Description, value: Value, seeds: int = 1
) -> pd.DataFrame:
    """A row for each concept in each image, and one for the prompt; `single:subject` in a variant is made the name."""
    rows = []
    for one in sets:
        for prompt in one.prompts:
            for seed in range(seeds):
                for variant in variants:
                    for role in (*one.adapters, ""):
                        name = one.adapters[role].name if role else ""
                        about = f"single:{name}" if role else ""
                        kind, _, label = variant.partition(":")
                        shown = f"single:{one.adapters[label].name}" if kind == "single" else variant
                        cell = [one.name, shown, prompt.index, prompt.text, "", seed, metric.name, about, seed]
                        rows.append([*cell, value(one.name, variant, prompt.text, seed, role), "x.png"])
    return pd.DataFrame(rows, columns=list(COLUMNS))
