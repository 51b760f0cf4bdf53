"""Several sets of adapters in one run, drawn: pooled under their roles, chosen on some prompts, planned before."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

import mergelab as ml
from mergelab import cli
from mergelab.evaluation import plan
from tests.evaluation.small import counted

TOGETHER = [f"a {{subject.trigger}} on a {ground} background {{style.concept}}" for ground in ("gray", "white", "navy")]
SETS: dict[str, Any] = {
    "pipeline": "miniature/sdxl",
    "pairs": {"subjects": ["miniature/sdxl/fish", "miniature/sdxl/ghost"], "styles": ["miniature/sdxl/stripes"]},
    "merges": [{"method": "cat", "weights": {"subject": [0.7, 1.0]}}, {"method": "ties", "rank": 8}],
    "prompts": [*TOGETHER, "a {subject.trigger}", "a red square"],
    "seeds": 1,
    "metrics": ["judge"],
    "generation": {"steps": 2, "batch": 5},
}


@pytest.fixture(scope="module")
def two(pipeline: Any, tmp_path_factory: pytest.TempPathFactory) -> ml.evaluation.Result:
    """Two subjects with one style."""
    return ml.evaluate(SETS, tmp_path_factory.mktemp("two"), pipeline=pipeline)


def test_sets_share_what_they_have_in_common(
    two: ml.evaluation.Result, pipeline: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The base model's image of a prompt is drawn once; a second run draws nothing; names stay in the scores."""
    frame = two.scores
    assert set(frame["set"]) == {"fish+stripes", "ghost+stripes"}
    free = frame[(frame.prompt == "a red square") & (frame.variant == "base")]
    assert len(free) and free["image"].nunique() == 1
    assert set(frame["variant"]) >= {"single:fish", "single:ghost", "single:stripes", "merge:cat subject=0.7"}
    assert set(frame[frame.set == "fish+stripes"]["reference"]) == {"", "single:fish", "single:stripes"}
    assert {"fish+stripes", "fish", ""} <= set(frame["calls"])
    drawn = counted(monkeypatch)
    again = ml.evaluate(two.config, two.folder, pipeline=pipeline)
    assert not drawn and again.verdict == two.verdict
    assert (two.folder / "adapters" / "ghost-stripes" / "ties-rank-8.safetensors").exists()


def test_findings_are_by_role(two: ml.evaluation.Result) -> None:
    """And so are contrasts; the summary tells which adapter plays which."""
    assert two.roles == ["subject", "style"]
    assert {f.reference for f in two.findings if f.quantity == "leakage"} == {"single:subject", "single:style"}
    assert two.design.unit == "prompts of these sets" and two.design.clusters == 6
    summary = json.loads((two.folder / "summary.json").read_text())
    assert summary["sets"][0] == {"name": "fish+stripes", "adapters": {"subject": "fish", "style": "stripes"}}
    assert summary["contrasts"] and summary["design"]["family"] == 3
    assert set(summary["costs"]) == {"fish+stripes", "ghost+stripes"}
    if two.primary:
        one = two.contrast("merge:ties rank=8", "stack")
        assert one is not None and one.clusters == 6


def test_weights_of_an_entry_are_those_of_the_merge(two: ml.evaluation.Result) -> None:
    """At (1, 1) the merge is the plain sum, at (.7, 1) the subject is weaker."""
    folder = two.folder / "adapters" / "fish-stripes"
    fish, stripes = (ml.load(f"miniature/sdxl/{name}") for name in ("fish", "stripes"))
    for weight, name in ((1.0, "cat-subject-1"), (0.7, "cat-subject-0.7")):
        found, expected = ml.load(folder / f"{name}.safetensors"), weight * fish + stripes
        assert (found - expected).norm() < 1e-3 * expected.norm()


def test_options_are_chosen_on_other_prompts(two: ml.evaluation.Result, pipeline: Any) -> None:
    """The folder has all scores, the findings those of the chosen merge on the prompts that are reported."""
    config = SETS | {"select": {"on": {"prompts": TOGETHER[:2]}}}
    result = ml.evaluate(config, two.folder, pipeline=pipeline)
    assert len(result.scores) == len(two.scores)
    labels = {f.variant for f in result.findings if f.variant.startswith("merge:")}
    assert len(labels) == 2 and "merge:ties rank=8" in labels and result.design.family == 2
    drawn = {prompt for _, prompt in result.calling}
    assert all("gray" not in prompt and "white" not in prompt for prompt in drawn)
    if result.choices:
        assert result.choices[0].among == 2 and result.choices[0].label in labels


def test_a_plan_counts_what_is_drawn(two: ml.evaluation.Result, pipeline: Any) -> None:
    """Images, merges, prompts; seconds from the run; what the design can reach; and nothing is written."""
    before = sorted(two.folder.rglob("*"))
    asked = plan(SETS, two.folder, pipeline=pipeline)
    assert sum(asked.images.values()) == len(list((two.folder / "images").iterdir()))
    assert (asked.sets, asked.merges, asked.prompts["call several"]) == (2, 6, 6)
    assert asked.seconds > 0 and "of this run" in asked.measured
    assert "reach p = 0.094 at best" in str(asked)
    assert sorted(two.folder.rglob("*")) == before
    measured = plan(SETS, pipeline=pipeline)
    assert measured.seconds > 0 and "drawn now" in measured.measured


def test_the_command_plans(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without a run folder, which stays away."""
    file = tmp_path / "config.yaml"
    file.write_text(json.dumps(SETS), encoding="utf-8")
    assert cli.run(["evaluate", str(file), "-o", str(tmp_path / "run"), "--dry-run"]) == 0
    assert "2 sets of adapters, 6 merges" in capsys.readouterr().out and not (tmp_path / "run").exists()


def test_a_failed_merge_is_told_by_the_exit_code(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The rest is done, and shown."""

    @ml.register_method("fails")
    def fails(changes: Any, weights: Any) -> Any:
        raise RuntimeError("out of luck")

    small = SETS | {"pairs": None, "loras": ["miniature/sdxl/fish", "miniature/sdxl/stripes"]}
    small |= {"merges": [{"method": "fails"}, {"method": "cat"}], "prompts": ["a qrv in vtx style"]}
    (tmp_path / "config.yaml").write_text(json.dumps(small), encoding="utf-8")
    assert cli.run(["evaluate", str(tmp_path / "config.yaml"), "-o", str(tmp_path / "run")]) == 2
    told = capsys.readouterr()
    assert "the run is done, but 1 variant failed" in told.err and "report.html" in told.out


def test_a_metric_of_ones_own_gets_tests_and_wins(two: ml.evaluation.Result, pipeline: Any) -> None:
    """In its direction, like any other."""

    @ml.register_metric("darkness", higher_is_better=False)
    def darkness(image: Any, prompt: str, references: Mapping[str, Any]) -> float:
        return 1 - float(image.mean())

    result = ml.evaluate(SETS | {"metrics": ["judge", "darkness"]}, two.folder, pipeline=pipeline)
    found = [c for c in result.contrasts if c.metric == "darkness"]
    assert {c.quantity for c in found} == {"score"} and all(0 <= c.wins <= 1 and c.corrected is None for c in found)
    frame = result.scores[result.scores.metric == "darkness"].pivot_table(
        index=["set", "prompt"], columns="variant", values="value"
    )
    one = next(c for c in found if (c.first, c.second) == ("merge:ties rank=8", "stack"))
    assert one.wins == pytest.approx(
        ((frame["merge:ties rank=8"] < frame["stack"]) + 0.5 * (frame["merge:ties rank=8"] == frame["stack"])).mean()
    )
