"""The page of a search: of both engines, whole, and true to what was found."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from mergelab.evaluation.report import plots
from mergelab.tuning import tune
from mergelab.tuning.candidate import Candidate
from mergelab.tuning.report.figures import fronts, history
from mergelab.tuning.report.gallery import COMPOSED, OTHERS
from mergelab.tuning.report.page import render
from mergelab.tuning.report.tables import contrast_rows, trials_table, weights_table
from mergelab.tuning.report.words import sentences
from mergelab.tuning.result import Tuned
from mergelab.tuning.scoring import Scored
from mergelab.tuning.trial import Found, Trial

SMALL: dict[str, Any] = {
    "pipeline": "miniature/sdxl",
    "loras": ["miniature/sdxl/ghost", "miniature/sdxl/day"],
    "prompts": [
        "a large sks in szn style", "a small sks in szn style", "a large sks", "a small sks", "a red star in szn style",
        "a blue ring in szn style", "a red <star>", "a blue ring",
    ],
    "seeds": 1, "images": 1, "generation": {"steps": 2, "batch": 4},
}  # fmt: skip
SPACE = {"weights": [0.5, 1.3], "method": ["svd", "ties"], "density": {"low": 0.3, "high": 0.9}, "rank": [4, 8]}


class Tags(HTMLParser):
    """What a page refers to, which tags stay open, and how many images and rows it has."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.references: list[str] = []
        self.images = 0
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Remember it."""
        self.images += tag == "img"
        self.references += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag not in ("meta", "link", "img", "br", "line", "circle", "rect", "path", "polyline", "option"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        """It has to be the last."""
        if self.open and self.open[-1] == tag:
            self.open.pop()


@pytest.fixture(scope="module")
def blocks(tmp_path_factory: pytest.TempPathFactory) -> Tuned:
    """A small search by halving."""
    return tune(SMALL | {"settings": 3, "keep": 2, "more": 1}, tmp_path_factory.mktemp("blocks"), progress=False)


@pytest.fixture(scope="module")
def trials(tmp_path_factory: pytest.TempPathFactory) -> Tuned:
    """A small search with Optuna, for two objectives."""
    keys = {"search": "optuna", "groups": "none", "trials": 5, "space": SPACE, "objectives": ["score", "bytes"]}
    return tune(SMALL | keys, tmp_path_factory.mktemp("optuna"), progress=False)


def page_of(tuned: Tuned) -> str:
    """As it lies in the folder."""
    assert tuned.report is not None
    return tuned.report.read_text(encoding="utf-8")


@pytest.mark.parametrize("which", ["blocks", "trials"])
def test_the_page_is_whole_and_stands_alone(which: str, request: pytest.FixtureRequest) -> None:
    """It refers to nothing but files of the run, which are there, and shows scenes of the search and held-out ones."""
    tuned: Tuned = request.getfixturevalue(which)
    tags = Tags(page_of(tuned))
    assert tags.open == []
    files = {one for one in tags.references if not one.startswith("data:")}
    assert files and all((tuned.folder / one).is_file() for one in files), files
    assert {"tuned.safetensors", "held-out/report.html"} <= files
    columns = 3 + len({"sum", tuned.best_sum.candidate.label if tuned.best_sum else "sum"}) + 1
    scenes = min(1, COMPOSED) + 3 * OTHERS
    assert tags.images == 2 * scenes * columns


@pytest.mark.parametrize("which", ["blocks", "trials"])
def test_the_page_says_what_was_found(which: str, request: pytest.FixtureRequest) -> None:
    """The winner, its weights, what it keeps, each trial; prompts are text and no tags."""
    tuned: Tuned = request.getfixturevalue(which)
    page = page_of(tuned)
    assert "a red &lt;star&gt;" in page and "<star>" not in page
    for line in sentences(tuned):
        assert line.split(" (")[0].replace("'", "&#39;") in page
    assert page.count("<tr") >= len(tuned.found.trials)
    assert all(f">{trial.candidate.label}</td>" in page for trial in tuned.found.trials)
    assert f"All {len(tuned.found.trials)} trials" in page
    assert "selection bias" in page


def test_each_engine_has_its_sections(blocks: Tuned, trials: Tuned) -> None:
    """Importance and a front where there are several objectives; rounds of halving."""
    first, second = page_of(blocks), page_of(trials)
    assert "went on to the second" in first and "What mattered" not in first and "Pareto" not in first
    assert "Pareto front" in second and "went on to the second" not in second
    assert "What mattered" not in second, "five trials do not tell"
    told = render(_with(trials, replace(trials.found, importance={"score": {"ghost": 0.75, "day <x>": 0.25}})))
    assert "What mattered" in told and "day &lt;x&gt;" in told and "width: 75%" in told
    assert len(re.findall("<figure>", second)) == 3, "the history of each objective, and one against the other"


def test_weights_stand_by_group(blocks: Tuned) -> None:
    """In the order of the model; an adapter with one weight spans them all."""
    weights = {"ghost": {"*": 1.0, "unet.down_blocks": 0.8, "unet.up_blocks": 1.2}, "day": 0.9}
    parameters = {"ghost down": 0.8, "ghost up": 1.2, "day": 0.9}
    won = Trial(0, Candidate("setting 0", weights), "complete", blocks.found.winner.scored, parameters=parameters)
    table = weights_table(_with(blocks, Found((won,), (0,), ("score",))))
    assert table["heads"] == ["down", "up", "other layers"]
    ghost, day = ([(cell["text"], cell["kind"], cell["span"]) for cell in row["cells"]] for row in table["rows"])
    assert ghost == [("0.8", "cold", 1), ("1.2", "warm", 1), ("1", "cold", 1)]
    assert day == [("0.9", "cold", 3)]


def test_the_contrasts_are_those_of_the_evaluation(blocks: Tuned) -> None:
    """The winner less each plain sum, by each score of the metric."""
    rows = contrast_rows(blocks)
    assert rows[0]["name"] == "joint score by judge"
    assert all(len(row["cells"]) == 2 for row in rows)


def test_a_trial_that_failed_is_told_with_its_reason(blocks: Tuned) -> None:
    """And stands in no figure."""
    known = blocks.found.trials[0]
    failed = Trial(1, Candidate("trial 1", {"ghost": 1.0}), "failed", None, error="OptionError: <no>")
    tuned = _with(blocks, Found((known, failed), (0,), ("score",)))
    assert trials_table(tuned)["rows"][1]["error"] == "OptionError: <no>"
    assert "OptionError: &lt;no&gt;" in render(tuned)
    assert history(tuned.found, "score", math.nan, running=True).count("<circle") == 2, "a dot and the ring around it"


def test_a_history_marks_what_was_stopped() -> None:
    """With a cross, which the line of the best so far leaves out."""
    kept = [_trial(number, value, state) for number, (value, state) in enumerate(
        [(0.5, "complete"), (0.9, "stopped"), (0.4, "complete"), (0.7, "complete")])]  # fmt: skip
    svg = history(Found(tuple(kept), (3,), ("score",)), "score", 0.6, running=True)
    assert svg.count('class="cross"') == 1 and svg.count('class="dot on"') == 3 and svg.count('class="ring"') == 1
    best = re.search(r'class="best" d="([^"]*)"', svg)
    assert best is not None and best[1].count("V") == 1
    assert "the plain sum at its best strength" in svg
    assert history(Found((), (), ("score",)), "score", math.nan, running=True) == ""


def test_a_front_is_drawn_for_two_objectives() -> None:
    """Names stand beside those that are on it, as long as these are few."""
    kept = tuple(_trial(number, number / 10, "complete", 1000 * number) for number in range(1, 5))
    kept = tuple(
        Trial(n, *[getattr(t, f) for f in ("candidate", "state", "scored", "bytes")]) for n, t in enumerate(kept)
    )
    (svg,) = fronts(Found(kept, (3, 2), ("score", "bytes")))
    assert svg.count('class="dot on"') == 2 and svg.count('class="name"') == 2
    assert fronts(Found(kept, (3,), ("score",))) == []
    every = plots.scatter({"a": (0.0, 0.0), "b": (1.0, 1.0)}, {"a"}, ("x", "y"))
    assert every.count('class="name"') == 2


def _trial(number: int, value: float, state: Any, size: int | None = None) -> Trial:
    scored = Scored(value, value, value, value, {}, 4)
    return Trial(number, Candidate(f"trial {number}", {}), state, scored, size)


def _with(tuned: Tuned, found: Found) -> Tuned:
    return replace(tuned, found=found)


def test_the_style_of_the_page_is_in_the_package() -> None:
    """A template that is no part of a wheel would be missed by users alone."""
    declared = (Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8")
    assert '"tuning/**/*.html.j2"' in declared
