"""The experiment on the search: its pairs, its prompts, its tables."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from experiments.tuning.pairs import DESIGN, METRICS, REPORTED, SCORES, config, pairs
from experiments.tuning.tables import tables
from mergelab import miniature
from mergelab.tuning.reading import prompts_of, read_tuning, seeds_of


@pytest.mark.parametrize("pipeline", miniature.PIPELINES)
def test_pairs_and_prompts(pipeline: str) -> None:
    """Every subject and every style twice, none of the design's; nothing that is searched on is held out."""
    reported = pairs(pipeline, REPORTED)
    assert len(reported) == 16 and not set(reported) & set(pairs(pipeline, DESIGN))
    assert set(Counter(one.name for pair in reported for one in pair).values()) == {2}
    for pair in reported[:2]:
        settings = read_tuning(config(pipeline, *pair, "judge"))
        searched, kept = prompts_of(settings)
        assert not {one.text for one in searched} & {one.text for one in kept}
        assert (
            Counter(len(one.calls) for one in searched) == Counter(len(one.calls) for one in kept) == {2: 6, 1: 6, 0: 4}
        )
        assert not set(seeds_of(settings)[0]) & set(seeds_of(settings)[1])


def test_tables() -> None:
    """Differences are of pairs; a part that a metric cannot tell of some pairs says of how many it is."""

    def row(number: int, gain: float) -> dict[str, Any]:
        def parts(value: float) -> dict[str, dict[str, float | None]]:
            known = {"joint": value, "own": None if number else 0.5, "plain": 1.0, "total": value}
            return {metric: dict(known) for metric in METRICS}

        roles = ["sum", *(f"{kind} by {score}" for score in SCORES for kind in ("sum", "blocks"))]
        held = {role: parts(0.5 + (gain if role.startswith("blocks") else 0.0)) for role in roles}
        searched = {"strength": 0.85, "number": number, "seconds": 1.0, "blocks": {"total": 0.9}}
        return {"pipeline": "sdxl", "subject": f"s{number}", "style": "t", "searched": dict.fromkeys(SCORES, searched),
                "held out": held}  # fmt: skip

    text = tables([row(number, gain) for number, gain in enumerate((0.1, 0.2, 0.15, 0.1, 0.2, 0.15))])
    assert "### sdxl: 6 pairs" in text and "mean 0.85" in text
    line = next(line for line in text.splitlines() if line.startswith("| blocks by judge - sum by judge | judge"))
    assert "**+0.150 [" in line and "+0.000 [" in line and "| - |" in line
