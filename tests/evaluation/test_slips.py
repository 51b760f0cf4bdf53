"""Slips in what is asked of several adapters: each is one sentence, before anything is drawn."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import mergelab as ml
from mergelab.evaluation import plan, read
from mergelab.evaluation.reading import read_config
from tests.evaluation.small import SMALL

PAIR = ["miniature/sdxl/ghost", "miniature/sdxl/day"]
BOTH = "a sks in szn style"
PLAIN: dict[str, Any] = {
    "pipeline": "miniature/sdxl",
    "loras": PAIR,
    "prompts": [BOTH, "a red star"],
    "metrics": ["judge"],
}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"prompts": ["a {ghost.triger}"]}, r"there is no field '\{ghost.triger\}'"),
        ({"prompts": ["a {}"]}, "there is no field"),
        ({"prompts": ["a {trigger"]}, "there is no field"),
        ({"merges": [{"method": "ties", "density": []}]}, "density: expected at least one value"),
        ({"merges": [{"method": "cat", "weights": {"ghost": []}}]}, "ghost: expected at least one value"),
        ({"merges": [{"method": "cat", "weights": []}]}, "weights: expected at least one value"),
        ({"sets": [{}]}, "sets: expected at least one adapter in each"),
        ({"sets": [[]]}, "sets: expected at least one adapter in each"),
        ({"pairs": {}}, "pairs: expected a list of adapters for each role"),
        ({"pairs": {"name": PAIR, "styles": PAIR}}, "pairs: expected a list of adapters for each role"),
        ({"loras": [{"path": one, "role": "subject"} for one in PAIR]}, "two have the role 'subject'"),
        ({"select": {"on": {"prompts": ["a red star"]}}}, "no prompt to choose on calls any adapter"),
    ],
)
def test_slips(changed: dict[str, Any], message: str) -> None:
    """What it is, and where."""
    with pytest.raises(ml.OptionError, match=message):
        read(PLAIN | changed)


def test_on_is_a_key(tmp_path: Path) -> None:
    """Not a truth value, as it was in YAML 1.1."""
    (tmp_path / "config.yaml").write_text(
        f"pipeline: miniature/sdxl\nloras: [{', '.join(PAIR)}]\nprompts: [{BOTH}, a sks]\nmerges: [{{method: cat}}]\n"
        f"select:\n  on: {{prompts: [{BOTH}]}}\nmemory: {{vae_tiling: true}}\n"
    )
    config = read_config(tmp_path / "config.yaml")
    assert config.select is not None and config.select.on.prompts == [BOTH] and config.memory.vae_tiling


def test_a_plan_finds_what_a_run_would(tmp_path: Path) -> None:
    """Photographs, trackers; and it counts what is reported."""
    photos = [{"path": PAIR[0], "references": str(tmp_path / "nobody")}, PAIR[1]]
    with pytest.raises(ml.SourceError, match="expected a folder of photographs"):
        plan(PLAIN | {"loras": photos}, measure=False)
    with pytest.raises(ml.OptionError, match="there is no tracker 'wnadb'"):
        plan(PLAIN | {"log_with": "wnadb"}, measure=False)
    prompts = [f"a sks on a {ground} background in szn style" for ground in ("gray", "white", "navy", "sand", "black")]
    config = PLAIN | {"prompts": prompts, "seeds": 1, "merges": [{"method": "cat", "weights": {"ghost": [0.5, 1.0]}}]}
    assert plan(config, measure=False).design.clusters == 5
    chosen = plan(config | {"select": {"on": {"prompts": prompts[:2]}}}, measure=False)
    assert (chosen.design.clusters, chosen.design.family) == (3, 1)


def test_an_option_that_the_pipeline_does_not_take(pipeline: Any, tmp_path: Path) -> None:
    """Many take any keyword, and make nothing of it."""
    wrong = SMALL | {"generation": {"steps": 1, "options": {"guidance_rescal": 0.5}}}
    with pytest.raises(ml.OptionError, match="takes no 'guidance_rescal'; did you mean 'guidance_rescale'"):
        ml.evaluate(wrong, tmp_path / "run", pipeline=pipeline)
    assert not (tmp_path / "run").exists()


def test_nothing_to_choose_by_is_said(pipeline: Any, tmp_path: Path) -> None:
    """A metric that sees no adapter chooses nothing, and the run ends all the same."""
    config = SMALL | {"prompts": SMALL["prompts"][:2], "seeds": 1, "metrics": ["lpips"], "generation": {"steps": 1}}
    config |= {
        "merges": [{"method": "cat", "weights": [[1, 1], [0.5, 1]]}],
        "select": {"on": {"prompts": config["prompts"][:1]}},
    }
    result = ml.evaluate(config, tmp_path, pipeline=pipeline)
    assert not result.choices and {f.variant for f in result.findings} >= {
        "merge:cat weights=1,1",
        "merge:cat weights=0.5,1",
    }
    assert "nothing was chosen" in (tmp_path / "report.html").read_text()
