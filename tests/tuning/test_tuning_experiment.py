"""The experiment on the search: its pairs, its prompts, its tables."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from experiments.tuning.pairs import BUDGETS, DESIGN, METRICS, config, pairs
from experiments.tuning.tables import tables
from mergelab import miniature
from mergelab.tuning.reading import prompts_of, read_tuning, seeds_of


@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("pipeline", miniature.PIPELINES)
def test_pairs_and_prompts(pipeline: str, budget: str) -> None:
    """Every subject and every style twice, none of the design's; nothing that is searched on is held out."""
    reported = pairs(pipeline, BUDGETS[budget].offsets)
    assert len(reported) == 16 and not set(reported) & set(pairs(pipeline, DESIGN))
    assert set(Counter(one.name for pair in reported for one in pair).values()) == {2}
    for pair in reported[:2]:
        settings = read_tuning(config(pipeline, *pair, "judge", budget))
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

        searched = {"blocks": {"total": 0.9}, "best sum": {"total": 0.8}}
        return {"pipeline": "sdxl", "subject": f"s{number}", "style": "t", "score": "judge", "strength": 0.85,
                "setting": number, "seconds of the search": 1.0, "searched": searched,
                "held out": {"sum": parts(0.5), "best sum": parts(0.5), "blocks": parts(0.5 + gain)}}  # fmt: skip

    text = tables([row(number, gain) for number, gain in enumerate((0.1, 0.2, 0.15, 0.1, 0.2, 0.15))], "usual")
    assert "### Usual budget, score judge, sdxl: 6 pairs" in text and "+0.100 while searching, +0.150 held out" in text
    line = next(line for line in text.splitlines() if line.startswith("| blocks - best sum | judge"))
    assert "**+0.150 [" in line and "+0.000 [" in line and "| - |" in line
