"""A card with what an evaluation showed: pictures and scores of the very adapter, in a browser too."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt

import mergelab as ml
from mergelab import cli
from mergelab.layer import BIAS_SUFFIX
from mergelab.publishing.card import CARD
from tests.evaluation.small import PROMPTS, SMALL
from tests.evaluation.test_report_browser import BROWSER, QUIET


@pytest.fixture
def folder(run: ml.evaluation.Result, tmp_path: Path) -> Path:
    """What would be pushed of the run's TIES."""
    ml.load(run.folder / "adapters" / "ties-rank-8.safetensors").push_to_hub(
        "user/x", folder=tmp_path / "x", run=run.folder
    )
    return tmp_path / "x"


def test_pictures(run: ml.evaluation.Result, folder: Path) -> None:
    """One a prompt, those that the merge drew, under the names that the front matter has."""
    widget = ModelCard.load(folder / CARD).data.to_dict()["widget"]
    assert [entry["text"] for entry in widget] == PROMPTS
    drawn = run.scores[(run.scores["variant"] == "merge:ties rank=8") & (run.scores["seed"] == 0)]
    for entry in widget:
        (image,) = set(drawn["image"][drawn["prompt"] == entry["text"]])
        assert entry["output"]["url"] == f"images/{image}"
        assert (folder / "images" / image).read_bytes() == (run.folder / "images" / image).read_bytes()


def test_scores(run: ml.evaluation.Result, folder: Path) -> None:
    """The table is that of the report, beside floor, ceiling and stack; the front matter has the estimates."""
    text = (folder / CARD).read_text()
    head, line, *_ = (row for row in text.splitlines() if row.startswith(("| | ", "| recovery of fish")))
    assert head == "| | base | fish alone | stripes alone | stack | this merge |"
    found = run.to_frame()
    of_fish = found[
        (found["quantity"] == "recovery")
        & (found["reference"] == "single:fish")
        & (found["metric"] == "judge")
        & (found["prompts"] == "together")
    ]
    estimate = of_fish.set_index("variant")["estimate"]
    shown = [float(value) / 100 for value in re.findall(r"\| \**(-?\d+)%", line)]
    expected = [estimate[name] for name in ("base", "single:fish", "single:stripes", "stack", "merge:ties rank=8")]
    assert shown == pytest.approx(expected, abs=0.006)
    card = ModelCard.load(folder / CARD)
    results = {known.metric_name: known.metric_value for known in card.data.eval_results or []}
    assert results["recovery of fish"] == pytest.approx(estimate["merge:ties rank=8"], abs=1e-4)
    assert 'pipe.load_lora_weights("user/x", weight_name="ties-rank-8.safetensors")' in card.text
    assert PROMPTS[0] in card.text and "5 prompts, 2 seeds each" in card.text


def test_of_the_very_adapter(run: ml.evaluation.Result, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In any format and dtype; another is refused, and so is a folder without exhibits."""
    ties = ml.load(run.folder / "adapters" / "ties-rank-8.safetensors")
    same = ties.save(tmp_path / "same", "peft", "bfloat16")
    other = (0.9 * ties).save(tmp_path / "other.safetensors")
    push = ["push", "user/x", "--run", str(run.folder)]
    assert cli.run([push[0], str(same), *push[1:], "--folder", str(tmp_path / "x")]) == 0
    assert len(ModelCard.load(tmp_path / "x" / CARD).data.to_dict()["widget"]) == len(PROMPTS)
    capsys.readouterr()
    assert cli.run([push[0], str(other), *push[1:], "--folder", str(tmp_path / "y")]) == 2
    assert "none of its merges is" in capsys.readouterr().err
    for factor, fits in ((1.0, True), (0.999, False)):
        exact = (factor * ties).save(tmp_path / f"{factor}.safetensors")
        code = cli.run([push[0], str(exact), *push[1:], "--folder", str(tmp_path / f"{factor}")])
        assert code == (0 if fits else 2), "nothing was cast"
    old = tmp_path / "old"
    old.mkdir()
    summary = json.loads((run.folder / "summary.json").read_text())
    (old / "summary.json").write_text(json.dumps({k: v for k, v in summary.items() if k != "exhibits"}))
    with pytest.raises(ml.SourceError, match="earlier mergelab"):
        ties.push_to_hub("user/x", run=old, folder=tmp_path / "z")
    (old / "summary.json").write_text(json.dumps({**summary, "exhibits": {"merges": summary["exhibits"]["merges"]}}))
    (old / "adapters").symlink_to(run.folder / "adapters")
    with pytest.raises(ml.SourceError, match=r"damaged \(KeyError"):
        ties.push_to_hub("user/x", run=old, folder=tmp_path / "z")


def cell(text: str) -> dict[str, Any]:
    return {"text": text, "bounds": "", "value": 0.9}


def test_scores_are_those_of_the_file_beside_them(tmp_path: Path) -> None:
    """Not where a tool has no place for a part of what was drawn; zeros that a tool needs beside it change nothing."""
    block, text = "transformer.transformer_blocks.0", "text_encoder.text_model.encoder.layers.0.self_attn.q_proj"

    def layer() -> ml.LoraLayer:
        return ml.LoraLayer(torch.randn(2, 32), torch.randn(32, 2))

    run = tmp_path / "run"
    exhibits: dict[str, Any] = {
        "pipeline": "user/base",
        "generation": {},
        "design": "1 prompt, 1 seed each",
        "columns": [{"head": "judge", "help": "what it sees"}],
        "rows": [{"name": "base", "cells": [cell("0.1")]}, {"name": "m", "cells": [cell("0.9")]}],
        "merges": [{"row": "m", "file": "adapters/m.safetensors", "pictures": []}],
    }
    (run / "adapters").mkdir(parents=True)
    (run / "summary.json").write_text(json.dumps({"triggers": {}, "exhibits": exhibits}))
    bias = {f"{block}.attn.to_q{BIAS_SUFFIX}": torch.ones(32)}
    for i, (beside, extras, fits) in enumerate((({}, {}, True), ({text: layer()}, {}, False), ({}, bias, True))):
        drawn = ml.Adapter({f"{block}.attn.to_q": layer(), **beside}, extras, architecture="flux")
        drawn.save(run / "adapters" / "m.safetensors")
        folder = tmp_path / str(i)
        if fits:
            drawn.push_to_hub("user/x", folder=folder, for_="nunchaku", run=run)
            assert set(ml.load(folder, architecture="flux").layers) == {f"{block}.attn.to_{x}" for x in "qkv"}
            assert "## What it keeps" in (folder / CARD).read_text()
        else:
            with pytest.raises(ml.OptionError, match="as it is to be pushed"):
                drawn.push_to_hub("user/x", folder=folder, for_="nunchaku", run=run)
            assert not folder.exists()
    with pytest.raises(ml.OptionError, match="as it is to be pushed"):
        drawn.without_extras().push_to_hub("user/x", folder=tmp_path / "x", run=run)


def test_no_other_file_becomes_a_picture(run: ml.evaluation.Result, tmp_path: Path) -> None:
    """A run folder of somebody else may name one outside of it."""
    summary = json.loads((run.folder / "summary.json").read_text())
    (tmp_path / "secret.png").write_text("secret")
    for merge in summary["exhibits"]["merges"]:
        merge["pictures"] = [{"prompt": "x", "seed": 0, "image": name} for name in ("../secret.png", "images/link.png")]
    theirs = tmp_path / "run"
    (theirs / "images").mkdir(parents=True)
    (theirs / "images" / "link.png").symlink_to(tmp_path / "secret.png")
    (theirs / "adapters").symlink_to(run.folder / "adapters")
    (theirs / "summary.json").write_text(json.dumps(summary))
    adapter = ml.load(run.folder / "adapters" / "cat.safetensors")
    assert list(adapter.push_to_hub("user/x", run=theirs, folder=tmp_path / "x").files) == ["cat.safetensors", CARD]


FOUND = """<script>addEventListener("load", () => {
  const found = {rows: document.querySelectorAll("tr").length, code: document.querySelectorAll("pre").length};
  document.querySelectorAll("pre").forEach(block => block.remove());
  found.images = [...document.images].map(image => image.complete && image.naturalWidth);
  found.heads = [...document.querySelectorAll("h2")].map(head => head.textContent);
  found.broken = document.body.innerText.match(/[|]|[*][*]|```/g);
  document.body.dataset.found = JSON.stringify(found);
});</script>"""


def page_of(folder: Path) -> str:
    """The card as the Hub shows it: Markdown, and the pictures of the front matter where the gallery stands."""
    card = ModelCard.load(folder / CARD)
    figures = "".join(
        f'<figure style="display: inline-block; width: 30%"><img width="100%" src="{entry["output"]["url"]}">'
        f"<figcaption>{entry['text']}</figcaption></figure>"
        for entry in card.data.to_dict()["widget"]
    )
    html = MarkdownIt("commonmark", {"html": True}).enable("table").render(card.text)
    return f'<!doctype html><meta charset="utf-8"><body>{html.replace("<Gallery />", figures)}{FOUND}'


@pytest.mark.skipif(BROWSER is None, reason="needs Chromium or Chrome")
def test_in_a_browser(folder: Path, tmp_path: Path) -> None:
    """Every picture is shown, tables are tables, and no mark of Markdown is left."""
    (folder / "page.html").write_text(page_of(folder))
    command = [str(BROWSER), *QUIET.split(), f"--user-data-dir={tmp_path / 'profile'}", (folder / "page.html").as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    match = re.search(r'<body data-found="([^"]*)"', done.stdout)
    assert match, done.stderr[-2000:]
    found: dict[str, Any] = json.loads(match[1].replace("&quot;", '"'))
    assert found["images"] == [48] * len(PROMPTS) and found["broken"] is None
    assert found["heads"] == ["Trigger words", "How to use it", "How it was made", "What it keeps"]
    assert found["rows"] == 2 + 3 + 13 and found["code"] == 1


def test_of_several_sets(pipeline: Any, tmp_path: Path) -> None:
    """Each merge of each set has its file; the scores are those over all sets, beside the roles alone."""
    config = SMALL | {
        "loras": [],
        "pairs": {"subjects": ["miniature/sdxl/fish", "miniature/sdxl/ghost"], "styles": ["miniature/sdxl/stripes"]},
        "prompts": ["a {subject.trigger} {style.concept}", "a large {subject.trigger} {style.concept}", "a red square"],
        "metrics": ["judge"], "seeds": 1, "generation": {"steps": 1, "batch": 5},
    }  # fmt: skip
    result = ml.evaluate(config, tmp_path / "run", pipeline=pipeline)
    shown = json.loads((result.folder / "summary.json").read_text())["exhibits"]
    assert [merge["file"] for merge in shown["merges"]] == [
        f"adapters/{pair}/{name}.safetensors"
        for pair in ("fish-stripes", "ghost-stripes")
        for name in ("cat", "ties-rank-8")
    ]
    names = [row["name"] for row in shown["rows"]]
    assert names == ["base", "subject alone", "style alone", "stack", "cat", "ties rank=8"]
    assert shown["design"] == "2 sets of adapters, 3 prompts, 1 seed each"
    ghost = ml.load(result.folder / "adapters" / "ghost-stripes" / "cat.safetensors")
    ghost.push_to_hub("user/x", run=result.folder, folder=tmp_path / "x")
    card = ModelCard.load(tmp_path / "x" / CARD)
    assert "2 sets of adapters" in card.text and "a sks in vtx style" in card.text and "a qrv" not in card.text
