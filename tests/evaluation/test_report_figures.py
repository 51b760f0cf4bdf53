"""The matrix, the forest plot, other figures, the strength sheets and the pictures: from what was made by hand."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mergelab.evaluation.acting import Acting
from mergelab.evaluation.names import BASE, STACK, VariantName
from mergelab.evaluation.recipes import recipes
from mergelab.evaluation.report import pictures as pictures_module
from mergelab.evaluation.report import plots
from mergelab.evaluation.report.columns import columns
from mergelab.evaluation.report.forest import forest
from mergelab.evaluation.report.lookup import names_of
from mergelab.evaluation.report.matrix import forests, matrices
from mergelab.evaluation.report.page import render
from mergelab.evaluation.report.pictures import pictures
from mergelab.evaluation.report.strengths import strength_sheets
from mergelab.evaluation.result import Result
from mergelab.evaluation.sets import AdapterSet
from mergelab.evaluation.statistics import Interval
from mergelab.evaluation.variants import Variant
from tests.evaluation.frames import JUDGE, LIKENESS, a_set
from tests.evaluation.reported import result_of, worth

VALUE = worth(stack=0.4, cat=0.42, low=0.3, high=0.7)
SUMMARY: Mapping[str, Any] = {"anchors": [], "notes": [], "versions": {}, "seconds": {}}


def test_the_matrix_is_of_rows_minus_columns(tmp_path: Path) -> None:
    """Best first; its two halves are each other's negatives; the signs are marks, and p and its family are there."""
    result = result_of(tmp_path, [a_set("ghost+day", 8)], VALUE, [JUDGE, LIKENESS])
    first, *others = matrices(result, names_of(result))
    assert first["title"] == "joint score by judge" and first["primary"] and first["units"] == "8 prompts"
    assert first["heads"] == ["ties density=0.5", "cat", "stack", "ties density=0.3"]
    cells = [[cell["text"] for cell in row["cells"]] for row in first["rows"]]
    for i, j in ((0, 1), (0, 2), (1, 3)):
        one = result.contrast(*(name for k in (i, j) for name in _variants(first["heads"][k])))
        assert one is not None and cells[i][j] == f"{one.interval.estimate:+.2f} ▲"
        assert cells[j][i] == f"{-one.interval.estimate:+.2f} ▼"
    assert [cells[i][i] for i in range(4)] == [""] * 4
    title = first["rows"][0]["cells"][2]["title"]
    assert title.startswith("ties density=0.5 minus stack: p = 0.023 (Holm over 3 tests); better in 100% of the images")
    assert "exploratory" in first["rows"][0]["cells"][1]["title"]
    assert others and not any(one["primary"] for one in others)
    assert {"subject by judge", "dino to subject, where it alone is called"} <= {one["title"] for one in others}


def _variants(short: str) -> list[str]:
    known = {"ties density=0.5": "merge:ties density=0.5 rank=8", "ties density=0.3": "merge:ties density=0.3 rank=8"}
    return [known.get(short, str(STACK) if short == "stack" else f"merge:{short}")]


def test_a_difference_that_is_corrected_away_has_no_mark(tmp_path: Path) -> None:
    """Six clusters and three tests cannot reach .05: the interval leaves out zero, and the cell is not marked."""
    result = result_of(tmp_path, [a_set("ghost+day", 6)], VALUE)
    first = matrices(result, names_of(result))[0]
    assert first["rows"][0]["cells"][first["heads"].index("stack")]["kind"] == "even"
    assert first["rows"][0]["cells"][first["heads"].index("ties density=0.3")]["kind"] == "better"


def test_the_forest_has_every_set(tmp_path: Path) -> None:
    """Best merge first; a square for each set at its mean difference, and the pooled diamond below."""
    sets = [a_set(f"s{number}+t{number}", 4) for number in range(6)]
    result = result_of(tmp_path, sets, VALUE)
    found = forests(result, names_of(result))
    assert [one["name"] for one in found] == ["ties density=0.5", "cat", "ties density=0.3"]
    svg = found[0]["svg"]
    assert svg.count("<rect") == 6 and svg.count("<polygon") == 1 and "joint score by judge" in svg
    assert all(one.name in svg for one in sets)
    assert forests(result_of(tmp_path, sets[:1], VALUE), {}) == []


def test_a_forest_is_to_scale() -> None:
    """Squares stand where their estimates are; without bounds there is no line."""
    rows = [("a", Interval(0.1, 0.0, 0.2)), ("b", Interval(0.3, math.nan, math.nan))]
    svg = forest(rows, Interval(0.2, 0.1, 0.3), "x minus the stack", "score")
    middles = [float(x) + 3 for x in re.findall(r'<rect class="dot on" x="([\d.]+)"', svg)]
    diamond = float(re.findall(r'points="[\d.]+,[\d.]+ ([\d.]+),', svg)[0])
    assert diamond == pytest.approx(sum(middles) / 2, abs=0.2) and middles[0] < middles[1]
    lines = re.findall(r'class="reach" x1="([\d.]+)" x2="([\d.]+)"', svg)
    assert float(lines[0][0]) < float(lines[0][1]) and lines[1][0] == lines[1][1]


def test_axes_fit_the_data() -> None:
    """Data from .4 to .6 fill the frame; 0 and 1 are lines where they are in view."""
    near = plots.scatter({"a": (0.4, 0.5), "b": (0.6, 0.52)}, {"a"}, ("x", "y"))
    across = [float(x) for x in re.findall(r'<circle class="[^"]*" cx="([\d.]+)"', near)]
    assert across[1] - across[0] > 0.8 * plots.WIDE and "guide" not in near
    far = plots.scatter({"a": (-0.1, 0.5), "b": (1.1, 0.52)}, {"a"}, ("x", "y"))
    assert far.count('class="guide"') == 2


def test_many_lines_are_told_apart() -> None:
    """By colour and dashes: each of thirty has its own, in the drawing and in the legend."""
    drawing = plots.lines({f"line {i}": [0.1 * i, 0.2] for i in range(30)}, ("layer", "y"))
    for looks in (drawing.partition("</svg>")[0], drawing.partition("</svg>")[2]):
        found = re.findall(r'<path class="line (c\d)" (stroke-dasharray="[^"]*")?', looks)
        assert len(found) == len(set(found)) == 30


def drawn(folder: Path, of: AdapterSet, result: Result, size: int = 8) -> list[Variant]:
    """Variants of a set whose images lie in the folder."""
    (folder / "images").mkdir(exist_ok=True)
    names = [BASE, *(VariantName("single", lora.name) for lora in of.adapters.values()), STACK]
    known = [Variant(name, of.name, Acting("")) for name in names]
    known += [
        Variant(VariantName("merge", one.label), of.name, Acting(""), recipe=one) for one in recipes(result.config, of)
    ]
    for number, variant in enumerate(known):
        for prompt in of.prompts:
            for seed in result.config.seeds:
                key = f"{of.name}-{number}-{prompt.index}-{seed}"
                pixels = np.random.default_rng(number).integers(255, size=(size, size, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / "images" / f"{key}.png")
                variant.requests[prompt.text, seed] = key
    return known


def test_strengths_are_a_sheet(tmp_path: Path) -> None:
    """One adapter down, the other across; base and singles where a weight is 0; of the first prompt and seed."""
    weights = {"subject": [0.5, 1.0], "style": [0.5, 1.5]}
    merges = [{"method": "cat", "weights": weights}, {"method": "cat"}, {"method": "ties", "rank": 8}]
    one = replace(a_set("ghost+day", 5, style=0.5), aliases={"subject": "subject", "style": "style"})
    result = result_of(tmp_path, [one], VALUE, merges=merges, seeds=[3, 4], variants=["base", "stack"])
    (sheet,) = strength_sheets(result, drawn(tmp_path, one, result))
    assert (sheet["method"], sheet["down"], sheet["across"]) == ("cat", "subject", "style")
    assert sheet["heads"] == ["0", "0.5", "1.5"] and [row["weight"] for row in sheet["rows"]] == ["0", "0.5", "1"]
    assert (sheet["prompt"], sheet["seed"]) == ("prompt 0", 3)
    labels = [[image and image["label"].partition(" · ")[0] for image in row["images"]] for row in sheet["rows"]]
    assert labels == [
        ["base", "day alone", None],
        [None, "cat subject=0.5 style=0.5", "cat subject=0.5 style=1.5"],
        ["ghost alone", "cat", "cat subject=1 style=1.5"],
    ]
    alone = result_of(tmp_path, [one], VALUE, merges=merges[1:], variants=["base", "stack"])
    assert strength_sheets(alone, drawn(tmp_path, one, alone)) == []


def test_pictures_of_many_sets_have_their_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every set has its first prompt in the page; what no longer fits is linked; titles say set, prompt and seed."""
    sets = [a_set(f"s{number}+t{number}", 4) for number in range(3)]
    result = result_of(tmp_path, sets, VALUE)
    variants = [variant for one in sets for variant in drawn(tmp_path, one, result, size=32)]
    whole = pictures(result, variants)
    assert all(prompt["inside"] for one in whole for prompt in one["prompts"])
    label = whole[1]["prompts"][2]["rows"][0]["images"][0]["label"]
    assert label == "base · s1+t1 · prompt 2 · seed 0"
    size = sum(len(image["source"]) for row in whole[0]["prompts"][0]["rows"] for image in row["images"])
    monkeypatch.setattr(pictures_module, "ROOM", 3 * 1.5 * size)
    cut = pictures(result, variants)
    assert [prompt["inside"] for prompt in cut[2]["prompts"]] == [True, True] + [False] * 8
    linked = cut[2]["prompts"][3]["rows"][0]["images"][0]
    assert linked["source"] == "" and (tmp_path / linked["full"]).exists()
    page = render(result, variants, None, SUMMARY)
    assert page.count("<details><summary>s") == 3 and 'class="linked"' in page
    assert page.count('<tr class="single">') == 2, "the rows are those of the roles"
    assert "<span>cost</span>" not in page, "nothing is known of what they cost"
    variants[-1].cost = {"bytes": 2e6}
    assert ">2.00</td>" in (page := render(result, variants, None, SUMMARY)) and "seconds to merge" not in page


def test_columns_stand_in_groups_of_prompts(tmp_path: Path) -> None:
    """Together, each alone, none; suppression is nowhere, unless a weight is below zero."""
    result = result_of(tmp_path, [a_set("ghost+day", 6)], VALUE, [JUDGE, LIKENESS])
    groups = [one.group for one in columns(result)]
    assert list(dict.fromkeys(groups)) == [
        "prompts that call both",
        "only subject",
        "only style",
        "none called",
        "every prompt",
    ]
    assert [one.short for one in columns(result) if one.group == "only style"] == ["recovery", "dino"]
    assert all(groups[i] == groups[i - 1] or groups[i] not in groups[:i] for i in range(1, len(groups)))
    below = result_of(tmp_path, [a_set("ghost+day", 6, style=-1.0)], VALUE)
    heads = [one.head for one in columns(below)]
    assert "suppression of style" in heads and "recovery of style" not in heads
    page = render(replace(result, failures=[]), [], None, SUMMARY)
    assert re.search(r'<th class="top" colspan="3" scope="colgroup"><span>prompts that call both</span>', page)


def test_one_weight_runs_across(tmp_path: Path) -> None:
    """From the other adapter alone, where it is 0."""
    merges = [{"method": "cat", "weights": {"subject": [0.5, 1.0]}}]
    one = replace(a_set("ghost+day", 5), aliases={"subject": "subject"})
    result = result_of(tmp_path, [one], VALUE, merges=merges, variants=["base", "stack"])
    (sheet,) = strength_sheets(result, drawn(tmp_path, one, result))
    assert (sheet["down"], sheet["across"], sheet["heads"]) == ("", "subject", ["0", "0.5", "1"])
    labels = [image["label"].partition(" · ")[0] for image in sheet["rows"][0]["images"]]
    assert labels == ["day alone", "cat subject=0.5", "cat subject=1"] and len(sheet["rows"]) == 1
