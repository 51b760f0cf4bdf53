"""results.json: the layout of lm-evaluation-harness, read by the rules of those who read it there."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

import mergelab as ml
from mergelab.evaluation.results import results_of

Result = ml.evaluation.Result


@pytest.fixture(scope="module")
def results(run: Result) -> dict[str, Any]:
    """As it lies in the run folder, without anything that JSON does not know."""
    text = (run.folder / "results.json").read_text()
    return dict(json.loads(text, parse_constant=lambda name: pytest.fail(name)))


def test_every_finding_is_there(run: Result, results: dict[str, Any]) -> None:
    """A key for the value and one for its standard error; a table is made of them by splitting at the first comma."""
    values = [key for task in results["results"].values() for key in task if key != "alias" and "_stderr," not in key]
    assert len(values) == len(run.findings)
    for task, entries in results["results"].items():
        assert "/" not in task and "," not in task
        for key in entries.keys() - {"alias"}:
            what, _, about = key.partition(",")
            assert what and about and "," not in about and "/" not in key
            error = entries[f"{what.removesuffix('_stderr')}_stderr,{about}"]
            assert error == "N/A" or error >= 0
    task = results["results"]["merge-ties-rank-8"]
    assert task["alias"] == "ties rank=8"
    assert all(results[key].keys() == results["results"].keys() for key in ("versions", "n-shot", "configs"))


def test_values_intervals_and_directions(run: Result, results: dict[str, Any]) -> None:
    """Of one finding by hand; plus and minus 1.96 standard errors are as wide as the interval."""
    of = ("similarity", "merge:ties rank=8", "lpips", "stack")
    row = next(f for f in run.findings if (f.quantity, f.variant, f.metric, f.reference) == of)
    task, bounds = (results[key]["merge-ties-rank-8"] for key in ("results", "intervals"))
    key = next(key for key in task if key.startswith("similarity.lpips,stack"))
    assert task[key] == row.interval.estimate and bounds[key] == [row.interval.low, row.interval.high]
    error = task[key.replace(",", "_stderr,")]
    assert 2 * 1.959964 * error == pytest.approx(row.interval.high - row.interval.low)
    better = results["higher_is_better"]["merge-cat"]
    assert better["recovery.judge"] and not better["similarity.lpips"] and better["similarity.clip_image"]
    assert "preservation.judge" not in better and not better["preservation.lpips"]
    assert results["n-samples"]["merge-cat"] == {"original": 10, "effective": 10}
    assert results["config"]["model_args"] == "pretrained=miniature/sdxl"


def test_what_has_no_number(run: Result) -> None:
    """No interval is "N/A", as there; two variants that are spelt alike are two tasks."""
    nothing = {"estimate": math.nan, "low": math.nan, "high": None}
    row = {"quantity": "score", "metric": "mine", "reference": "", "prompts": "every", "interval": nothing}
    rows = [row | {"variant": name} for name in ("merge:a b", "merge:a=b")]
    found = results_of(run, {"findings": rows, "versions": {"mergelab": "1"}, "seconds": {"a": 1.5, "b": 2}})
    assert list(found["results"]) == ["merge-a-b", "merge-a-b-2"]
    assert found["results"]["merge-a-b"]["score.mine_stderr,every"] == "N/A"
    assert found["higher_is_better"]["merge-a-b"] == {} and found["total_evaluation_time_seconds"] == "3.5"
