"""The report and the verdict."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

import mergelab as ml
from mergelab.evaluation.report import plots
from mergelab.evaluation.run import CONFIG
from tests.evaluation.small import PROMPTS, SMALL
from tests.serving import Page, serving


def test_recovery_rises_with_strength(pipeline: Any, tmp_path: Path) -> None:
    """A single adapter at 0, 1/3, 2/3 and 1: from nothing to everything."""
    fish = {"path": "miniature/sdxl/fish"}
    small = SMALL | {
        "loras": [fish | {"name": f"at {weight:.2f}", "weight": weight} for weight in (1.0, 2 / 3, 1 / 3, 0.0)],
        "merges": [],
        "prompts": ["a qrv on a gray background", "a small qrv on a white background"],
        "metrics": ["judge"],
        "generation": {"steps": 12, "batch": 4},
    }
    result = ml.evaluate(small, tmp_path, pipeline=pipeline)
    kept = {f.variant: f.interval.estimate for f in result.findings
            if (f.quantity, f.reference) == ("recovery", "single:at 1.00")}  # fmt: skip
    assert kept["base"] == kept["single:at 0.00"] == 0 and kept["single:at 1.00"] == 1
    assert 0 <= kept["single:at 0.33"] <= kept["single:at 0.67"] <= 1
    assert kept["single:at 0.67"] > 0.2


def test_prompts_that_call_nobody(pipeline: Any, tmp_path: Path) -> None:
    """The verdict says so, and terminal and report agree on what was changed."""
    small = SMALL | {"seeds": 1, "prompts": ["a blue circle on a white background"], "metrics": ["judge", "lpips"]}
    result = ml.evaluate(small, tmp_path, pipeline=pipeline)
    assert result.verdict[0] == "No recovery: no prompt calls any adapter."
    change = next(f for f in result.findings if (f.quantity, f.metric, f.variant) == ("preservation", "judge", "stack"))
    shown = (tmp_path / "report.html").read_text().partition("<h2>Pictures")[0]
    assert f"{change.interval.estimate:+.3f}" in str(result) and f"{change.interval.estimate:.3f}" in shown
    bounds = [f.interval for f in result.findings if f.metric == "lpips" and f.quantity == "similarity"]
    assert all(not interval.low < 0 for interval in bounds)


class _Page(HTMLParser):
    """Collects what a page refers to."""

    def __init__(self) -> None:
        super().__init__()
        self.sources: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Images, scripts, style sheets; links to other files."""
        known = dict(attrs)
        if tag in ("img", "script", "link", "iframe") and (known.get("src") or known.get("href")):
            self.sources.append(str(known.get("src") or known.get("href")))
        if tag == "a":
            self.links.append(str(known["href"]))


def test_the_report_is_one_file(run: ml.evaluation.Result) -> None:
    """Nothing is fetched from anywhere; every image is inside; what it links to is in the folder."""
    text = (run.folder / "report.html").read_text()
    page = _Page()
    page.feed(text)
    images = [source for source in page.sources if source.startswith("data:image/")]
    assert len(images) == 6 * len(PROMPTS) * 2
    assert all(source.startswith("data:") for source in page.sources)
    assert page.links and all((run.folder / link).exists() for link in page.links)
    for part in (*run.verdict[:1], "recovery of fish", "fish alone", "ties rank=8", "lpips (miniature)", PROMPTS[0]):
        assert part in text
    assert text.index(run.verdict[0]) < text.index("<table")
    assert "2 prompts give no intervals: below five, what a difference is worth cannot be said." in run.verdict
    assert len(run.verdict) <= 8 and "lpips (miniature) to fish" in text and "lpips (miniature)" in run.table


def test_names_in_the_scatter_are_readable() -> None:
    """Eight points almost in one place: every name is within the frame, and none covers another or a point."""
    points = {f"ties density=0.{i} rank=16": (560.0 + i, 60.0 + i) for i in range(8)}
    boxes = [(a - 6, a + 6, b - 6, b + 6) for a, b in points.values()]
    for name, (left, middle) in plots._beside(points, points).items():
        box = (left, left + plots.LETTER * len(name), middle - plots.LINE / 2, middle + plots.LINE / 2)
        assert box[0] > plots.LEFT and box[1] < plots.WIDTH - plots.EDGE
        assert box[2] > plots.EDGE and box[3] < plots.HEIGHT - plots.BOTTOM
        assert not any(plots._covers(box, other) for other in boxes)
        boxes.append(box)


def test_of_very_many_points_those_of_the_front_are_named() -> None:
    """The others have a circle with a name for the pointer; of few, all have names."""
    points = {f"point {i}": (i / 100, 1 - i / 100) for i in range(plots.NAMED + 1)}
    front = {"point 3", "point 40"}
    many = plots.scatter(points, front, ("across", "up"))
    assert many.count("<circle") == len(points) and many.count('<text class="name"') == 2
    few = plots.scatter(dict(list(points.items())[1:]), front, ("across", "up"))
    assert few.count('<text class="name"') == plots.NAMED


def test_text_of_the_user(pipeline: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A prompt may hold any sign; an address may hold a token, which is in the run's configuration alone."""
    prompt = 'a "red" <script>alert(1)</script> & more'
    small = SMALL | {"seeds": 1, "prompts": [prompt], "merges": [], "metrics": ["judge"]}
    monkeypatch.setenv("MERGELAB_CACHE", str(tmp_path / "cache"))
    with serving() as site:
        site.pages["/fish.safetensors"] = Page(ml.load("miniature/sdxl/fish").inputs[0].read_bytes())
        url = f"{site.address}/fish.safetensors"
        loras = [{"path": f"{url}?token=secret", "concept": "a qrv"}]
        ml.evaluate(small | {"loras": loras}, tmp_path / "run", pipeline=pipeline)
    text = (tmp_path / "run" / "report.html").read_text()
    assert url in text and "secret" not in text and f"{url}?token=secret" in (tmp_path / "run" / CONFIG).read_text()
    assert "<script>alert" not in text and "&lt;script&gt;alert(1)" in text
