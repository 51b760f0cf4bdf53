"""The report in a real browser, headless: no script errors, every image shown, sorting, choosing and scrolling work, no
wider than a phone."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html import escape, unescape
from pathlib import Path
from typing import Any

import pytest

import mergelab as ml

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
QUIET = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
QUIET += "--disable-component-update --disable-sync --hide-scrollbars --virtual-time-budget=600000 --dump-dom"

EARLY = (
    "<script>window.found = {errors: []}; addEventListener('error', e => found.errors.push(e.message), true);</script>"
)
FRAME = """
<!doctype html><body><iframe width="{width}" height="{height}" style="border: 0" srcdoc="{text}"
  onload="const timer = setInterval(() => {{
    const found = this.contentDocument.body.dataset.found;
    if (found) {{ document.body.dataset.found = found; clearInterval(timer); }}
  }}, 5)"></iframe></body>
"""  # a window of Chromium is never narrower than 500 pixels; its clock runs ahead of what decodes the images
LATE = """
<script>
const order = () => [...document.querySelectorAll("#numbers tbody tr")].map(row => row.cells[0].dataset.value);
const values = () => [...document.querySelectorAll("#numbers tbody tr")].map(row => row.cells[1].dataset.value);
const box = element => element.getBoundingClientRect();
addEventListener("load", async () => {
  const heads = document.querySelectorAll("#numbers th button");
  document.querySelectorAll("img").forEach(image => image.loading = "eager");
  await Promise.all([...document.images].map(image => image.decode().catch(() => 0)));
  found.images = document.images.length;
  found.shown = [...document.images].filter(image => image.complete && image.naturalWidth > 0).length;
  found.start = order();
  heads[1].click(); found.down = values();
  heads[1].click(); found.up = values();
  found.sorted = heads[1].closest("th").getAttribute("aria-sort");
  heads[0].click(); heads[0].click(); found.names = order();
  // The first column stays where it is, and a shade says that there is more.
  const edge = document.getElementById("numbers").closest(".edge"), inner = edge.firstElementChild;
  const cells = document.querySelector("#numbers tbody tr").cells;
  found.hint = edge.classList.contains("more"); found.wide = inner.scrollWidth > inner.clientWidth + 2;
  found.columns = [...cells].filter(cell => box(cell).right <= box(inner).right + 1).length - 1;
  const before = [box(cells[0]).left, box(cells[1]).left];
  inner.scrollLeft = 40; inner.dispatchEvent(new Event("scroll"));
  found.fixed = box(cells[0]).left === before[0]; found.moved = before[1] - box(cells[1]).left;
  found.from = edge.classList.contains("from");
  // Another score for the matrix.
  const select = document.getElementById("score"), parts = [...document.querySelectorAll('[data-in="matrix"]')];
  const shown = () => parts.map((part, i) => [part, i]).filter(([part]) => part.offsetHeight > 0).map(([, i]) => i);
  found.first = shown(); select.selectedIndex = 2; select.dispatchEvent(new Event("change")); found.chosen = shown();
  found.options = select.options.length; found.parts = parts.length; found.exploratory = select.options[2].text;
  found.width = document.documentElement.scrollWidth; found.window = innerWidth;
  document.body.dataset.found = JSON.stringify(found);
});
</script>
"""
CONFIG: dict[str, Any] = {
    "pipeline": "miniature/flux",
    "loras": [{"path": "miniature/flux/fish"}, {"path": "miniature/flux/stripes"}],
    "merges": [{"method": "cat"}, {"method": "ties", "rank": 8, "space": ["delta", "core"]}],
    "prompts": ["a qrv on a gray background in vtx style", "a red square on a white background"],
    "seeds": 2,
    "metrics": ["judge", "lpips", "clip_image"],
    "generation": {"steps": 4, "batch": 4},
}


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of a small run."""
    return ml.evaluate(CONFIG, tmp_path_factory.mktemp("run")).folder / "report.html"


@pytest.mark.skipif(BROWSER is None, reason="needs Chromium or Chrome")
@pytest.mark.parametrize("size", [(1280, 900), (390, 844)], ids=["desk", "phone"])
def test_in_a_browser(report: Path, size: tuple[int, int], tmp_path: Path) -> None:
    """What a person does with the page, at a desk and on a phone."""
    text = report.read_text().replace("<head>", f"<head>{EARLY}").replace("</body>", f"{LATE}</body>")
    page = tmp_path / "page.html"
    page.write_text(FRAME.format(width=size[0], height=size[1], text=escape(text)))
    command = [str(BROWSER), *QUIET.split(), f"--user-data-dir={tmp_path / 'profile'}", page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    match = re.search(r'<body data-found="([^"]*)"', done.stdout)
    assert match, done.stderr[-2000:]
    found = json.loads(unescape(match.group(1)))
    assert found["errors"] == []
    assert found["shown"] == found["images"] == 7 * 2 * 2
    known = [float(value) for value in found["down"] if value]
    assert known == sorted(known, reverse=True) and len(known) > 2
    assert [float(value) for value in found["up"] if value] == sorted(known) and found["sorted"] == "ascending"
    assert found["names"] == sorted(found["start"], key=str.lower)
    assert found["window"] == size[0] and found["width"] <= found["window"], "the page is wider than the screen"
    assert found["hint"] == found["wide"] and found["fixed"]
    if size[0] < 500:
        assert found["wide"] and found["moved"] == 40 and found["from"]
    assert found["columns"] >= 2, "two columns of numbers are seen"
    assert found["first"] == [0] and found["chosen"] == [2] and found["options"] == found["parts"] > 2
    assert found["exploratory"].endswith(" (exploratory)")
