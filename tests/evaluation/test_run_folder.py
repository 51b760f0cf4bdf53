"""The harness on the miniature SDXL: every promise of the run folder, the metrics and the report."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from collections.abc import Mapping
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
import yaml
from torch import Tensor

import mergelab as ml
from mergelab import cli, miniature
from mergelab.evaluation import demo, plots
from mergelab.evaluation import metrics as metric_table
from mergelab.evaluation.analysis import calls, triggers_of
from mergelab.evaluation.config import read
from mergelab.evaluation.fingerprints import fingerprint, weights_hash
from mergelab.evaluation.generation import check_adapters, draw, swap
from mergelab.evaluation.scorers import ClipModel, ClipText, Picture
from mergelab.evaluation.store import Store
from mergelab.miniature.world import Scene, caption
from mergelab.miniature.world import draw as draw_scenes

PROMPTS = ["a qrv on a gray background in vtx style", "a large qrv in vtx style", "a red square on a white background"]
SMALL: dict[str, Any] = {
    "pipeline": "miniature/sdxl",
    "loras": [{"path": "miniature/sdxl/fish"}, {"path": "miniature/sdxl/stripes"}],
    "merges": [{"method": "cat"}, {"method": "ties", "rank": 8}],
    "prompts": PROMPTS,
    "seeds": 2,
    "metrics": ["judge", "clip_text", "clip_image", "lpips"],
    "generation": {"steps": 4},
}


@pytest.fixture(scope="module")
def pipeline() -> Any:
    """One loaded pipeline for all tests."""
    pipe = miniature.pipeline("sdxl")
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def run(pipeline: Any, tmp_path_factory: pytest.TempPathFactory) -> ml.evaluation.Result:
    """One small run that many tests look at."""
    return ml.evaluate(SMALL, tmp_path_factory.mktemp("run"), pipeline=pipeline)


def counted(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """Records every image that is drawn from now on."""
    from mergelab.evaluation import cells as run_module

    drawn: list[tuple[str, int]] = []

    def counting(pipe: Any, prompt: str, seed: int, keywords: Mapping[str, Any]) -> Tensor:
        drawn.append((prompt, seed))
        return draw(pipe, prompt, seed, keywords)

    monkeypatch.setattr(run_module, "draw", counting)
    return drawn


# --- the run folder --------------------------------------------------------------------------------------------------


def test_the_run_folder(run: ml.evaluation.Result) -> None:
    """Everything that is promised is there, under its name."""
    names = {path.name for path in run.folder.iterdir()}
    assert names >= {"config.yaml", "images", "adapters", "scores.parquet", "summary.json", "report.html"}
    assert read(run.folder / "config.yaml") == run.config
    frame = pd.read_parquet(run.folder / "scores.parquet")
    assert {"variant", "prompt_id", "prompt", "seed", "metric", "reference", "value"} <= set(frame.columns)
    assert set(frame["variant"]) == {"base", "single:fish", "single:stripes", "stack", "merge:cat", "merge:ties rank=8"}
    assert set(frame["reference"]) == {"", "base", "single:fish", "single:stripes", "stack"}
    assert frame["value"].notna().all() and not run.failures
    assert all((run.folder / "images" / name).exists() for name in frame["image"])
    for label in ("cat", "ties-rank-8"):
        assert ml.load(run.folder / "adapters" / f"{label}.safetensors").layers
    summary = json.loads((run.folder / "summary.json").read_text())
    assert summary["versions"]["diffusers"] and summary["triggers"] == {"fish": ["qrv"], "stripes": ["vtx"]}


def test_the_stack_is_what_a_merge_by_cat_is(run: ml.evaluation.Result) -> None:
    """Their images differ by less than the noise between seeds, by far."""
    frame = run.scores
    between = frame[(frame.variant == "merge:cat") & (frame.reference == "stack") & (frame.metric == "lpips")]
    noise = frame[(frame.variant == "stack") & (frame.reference == "stack") & (frame.metric == "lpips")]
    assert between.value.max() < 0.05 * noise.value.mean()


def test_the_pipeline_is_handed_back_unchanged(pipeline: Any, tmp_path: Path) -> None:
    """The base model's images before and after are identical, and so are its weights."""
    keywords = miniature.settings("sdxl") | {"num_inference_steps": 4}
    before, identity = draw(pipeline, PROMPTS[0], 0, keywords), fingerprint(pipeline)
    ml.evaluate(SMALL | {"seeds": 1, "prompts": PROMPTS[:1], "metrics": ["judge"]}, tmp_path, pipeline=pipeline)
    assert torch.equal(before, draw(pipeline, PROMPTS[0], 0, keywords))
    assert fingerprint(pipeline) == identity


def test_an_image_is_made_from_its_own_seed_alone(pipeline: Any, run: ml.evaluation.Result) -> None:
    """The image in the folder is the one that the pipeline draws when called by hand."""
    row = run.scores[(run.scores.variant == "base") & (run.scores.prompt == PROMPTS[1]) & (run.scores.seed == 1)].iloc[
        0
    ]
    settings = miniature.settings("sdxl") | {"num_inference_steps": 4}
    generator = torch.Generator().manual_seed(1)
    image = pipeline(PROMPTS[1], generator=generator, output_type="pt", **settings).images[0]
    kept = Store(run.folder).load_image(row.image.removesuffix(".png"))
    assert (image - kept).abs().max() <= 0.5 / 255 + 1e-6


def test_the_same_configuration_gives_the_same_scores(pipeline: Any, run: ml.evaluation.Result, tmp_path: Path) -> None:
    """To the last bit, in another folder."""
    ml.evaluate(SMALL, tmp_path, pipeline=pipeline)
    first, second = ((folder / "scores.parquet").read_bytes() for folder in (run.folder, tmp_path))
    assert first == second


def test_an_edited_configuration_computes_what_is_new(
    pipeline: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A third seed draws one image for each variant and prompt; a new metric scores old images; nothing twice."""
    small = SMALL | {"prompts": PROMPTS[:2], "metrics": ["judge"]}
    drawn = counted(monkeypatch)
    ml.evaluate(small, tmp_path, pipeline=pipeline)
    assert len(drawn) == 6 * 2 * 2
    drawn.clear()
    ml.evaluate(small, tmp_path, pipeline=pipeline)
    assert not drawn
    ml.evaluate(small | {"seeds": 3}, tmp_path, pipeline=pipeline)
    assert drawn == [(prompt, 2) for _ in range(6) for prompt in PROMPTS[:2]]
    drawn.clear()
    result = ml.evaluate(small | {"metrics": ["judge", "lpips"]}, tmp_path, pipeline=pipeline)
    assert not drawn and "lpips" in set(result.scores.metric)
    ml.evaluate(small | {"merges": [{"method": "svd", "rank": 4}]}, tmp_path, pipeline=pipeline)
    assert len(drawn) == 2 * 2


def test_what_fails_is_recorded_and_the_rest_goes_on(
    pipeline: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One image, one metric; the report names them, and the next run tries again."""
    from mergelab.evaluation import cells as run_module

    def failing(pipe: Any, prompt: str, seed: int, keywords: Mapping[str, Any]) -> Tensor:
        if prompt == PROMPTS[1]:
            raise RuntimeError("out of memory")
        return draw(pipe, prompt, seed, keywords)

    small = SMALL | {"seeds": 1, "prompts": PROMPTS[:2], "metrics": ["judge"], "merges": [{"method": "cat"}]}
    with monkeypatch.context() as patch:
        patch.setattr(run_module, "draw", failing)
        result = ml.evaluate(small, tmp_path, pipeline=pipeline)
    assert len(result.failures) == 5 and result.failures[0]["error"] == "RuntimeError: out of memory"
    assert "out of memory" in (tmp_path / "report.html").read_text()
    assert "5 cells failed" in str(result)
    assert not ml.evaluate(small, tmp_path, pipeline=pipeline).failures
    with monkeypatch.context() as patch:
        patch.setattr(run_module, "draw", lambda *arguments: 1 / 0)
        with pytest.raises(ml.OutputError, match="every cell failed, the first with: ZeroDivisionError"):
            ml.evaluate(small, tmp_path / "other", pipeline=pipeline)


def test_an_adapter_of_another_base_model_is_refused_before_anything_is_drawn(
    pipeline: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a transformer on a UNet, alone and beside one that fits; of another UNet, by what it says of itself."""
    drawn = counted(monkeypatch)
    flux, sdxl = {"path": "miniature/flux/ghost"}, {"path": "miniature/sdxl/stripes"}
    for loras, sentence in (
        ([flux], "ghost is for flux, and the pipeline is sdxl"),
        ([flux, sdxl], "stripes changes a UNet"),
    ):
        with pytest.raises(ml.ArchitectureError, match=sentence):
            ml.evaluate(SMALL | {"loras": loras}, tmp_path / "new", pipeline=pipeline)
        assert not (tmp_path / "new").exists()
    old = replace(ml.load(miniature.adapters("sdxl")[0].path), architecture="sd15")
    with pytest.raises(ml.ArchitectureError, match="old is for sd15, and the pipeline is sdxl"):
        check_adapters(pipeline, {"old": old})
    text = replace(old, architecture=None, layers={"model.layers.0.q_proj": next(iter(old.layers.values()))})
    with pytest.raises(ml.ArchitectureError, match="text is for another base model: StableDiffusionXLPipeline has"):
        check_adapters(pipeline, {"text": text})
    assert not drawn


def test_two_runs_into_one_folder_are_refused(tmp_path: Path) -> None:
    """The second says so at once; a file is no folder."""
    with Store(tmp_path).open(), pytest.raises(ml.OutputError, match="another run is writing into this folder"):
        ml.evaluate(SMALL, tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(ml.OutputError, match="expected a folder"):
        ml.evaluate(SMALL, tmp_path / "file")


def test_half_a_line_of_a_killed_run_does_not_count(tmp_path: Path) -> None:
    """Neither it nor the line after it is lost or misread."""
    with Store(tmp_path).open() as store:
        store.keep("a", {"": 1.0})
    with (tmp_path / "journal.jsonl").open("a") as journal:
        journal.write('\n["b", {"": 0.')
    with Store(tmp_path).open() as store:
        assert store.recall("a") == {"": 1.0} and store.recall("b") is None
        store.keep("c", {"": 2.0})
    with Store(tmp_path).open() as store:
        assert store.recall("c") == {"": 2.0}


KILLER = """
import os, random, signal, sys, time
import lpips, open_clip  # once, for every run
from diffusers import StableDiffusionXLPipeline
from mergelab import cli, evaluation
random.seed(0)
for moment in range(int(sys.argv[1])):
    run = os.fork()
    if not run:
        os._exit(cli.run(["evaluate", *sys.argv[2:]]))
    time.sleep(random.uniform(0, 5))
    os.kill(run, signal.SIGKILL)
    os.waitpid(run, 0)
"""
"""Runs `mergelab evaluate` again and again and kills it at random moments; all but the first go on where it was."""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills forked processes")
def test_kill_and_resume(run: ml.evaluation.Result, tmp_path: Path) -> None:
    """kill -9 at twenty random moments, then a run to the end: what was there is kept, and the scores are the same."""
    file, out = tmp_path / "config.yaml", tmp_path / "run"
    file.write_text(yaml.safe_dump(SMALL))
    options = [str(file), "-o", str(out)]
    environment = os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    subprocess.run([sys.executable, "-c", KILLER, "20", *options], env=environment, check=True, capture_output=True)
    kept = {path.name: path.stat().st_mtime_ns for path in (out / "images").glob("*.png")}
    assert kept
    command = [sys.executable, "-m", "mergelab", "evaluate", *options]
    subprocess.run(command, env=environment, check=True, capture_output=True)
    assert kept.items() <= {path.name: path.stat().st_mtime_ns for path in (out / "images").glob("*.png")}.items()
    assert (out / "scores.parquet").read_bytes() == (run.folder / "scores.parquet").read_bytes()


# --- the metrics -----------------------------------------------------------------------------------------------------


def pictures() -> list[Picture]:
    """Two drawn images."""
    images = draw_scenes([Scene("star", "red", "white"), Scene("ring", "blue", "black")])
    return [Picture(str(i), (image * 255).round() / 255) for i, image in enumerate(images)]


def built(*names: str, **changes: Any) -> list[metric_table.Metric]:
    """Metrics of a configuration."""
    return metric_table.build(read(SMALL | {"metrics": list(names)} | changes), {"fish": "a qrv"})


def test_clip_is_open_clips() -> None:
    """Both similarities equal open_clip called by hand, to 1e-5."""
    import open_clip
    from torchvision.transforms.functional import to_pil_image

    a, b = pictures()
    model, preprocess = open_clip.create_model_from_pretrained(miniature.clip())
    tokenizer = open_clip.get_tokenizer(miniature.clip())
    model.eval()
    with torch.no_grad():
        images = model.encode_image(torch.stack([preprocess(to_pil_image(p.pixels)) for p in (a, b)]), normalize=True)
        texts = model.encode_text(tokenizer(["a red star", "a qrv"]), normalize=True)
    text, image = built("clip_text", "clip_image")
    scores = text.score(a, "a red star", {})
    assert scores[""] == pytest.approx((images[0] @ texts[0]).item(), abs=1e-5)
    assert scores["single:fish"] == pytest.approx((images[0] @ texts[1]).item(), abs=1e-5)
    compared = image.score(a, "", {"stack": b, "base": a})
    assert compared == {"stack": pytest.approx((images[0] @ images[1]).item(), abs=1e-5), "base": pytest.approx(1)}


def test_lpips_is_lpips() -> None:
    """Called by hand with images in [-1, 1], to 1e-5; 0 for the image itself."""
    a, b = pictures()
    with torch.no_grad():
        by_hand = miniature.perceptual()(a.pixels[None] * 2 - 1, b.pixels[None] * 2 - 1).item()
    scores = built("lpips")[0].score(a, "", {"stack": b, "base": a})
    assert scores["stack"] == pytest.approx(by_hand, abs=1e-5) and scores["base"] == 0


def test_the_judge_sees_concept_and_prompt() -> None:
    """Of a drawn fish on gray: certain of both; a prompt that names nothing has no score."""
    (judge,) = built("judge")
    scene = Scene("fish", background="gray")
    picture = Picture("", draw_scenes(scene)[0].clamp(0, 1))
    scores = judge.score(picture, caption(scene), {})
    assert scores["single:fish"] > 0.99 and scores[""] > 0.99
    assert "" not in judge.score(picture, "a qrv", {})
    assert judge.score(picture, "a blue star on a white background", {})[""] < 0.4


def test_a_metric_of_ones_own(pipeline: Any, tmp_path: Path) -> None:
    """A function and one line; it may give one number or one for each reference."""

    @ml.register_metric("brightness")
    def brightness(image: Tensor, prompt: str, references: Mapping[str, Tensor]) -> float:
        return float(image.mean())

    @ml.register_metric("distance", higher_is_better=False)
    def distance(image: Tensor, prompt: str, references: Mapping[str, Tensor]) -> dict[str, float]:
        return {key: float((image - other).abs().mean()) for key, other in references.items()}

    small = SMALL | {"seeds": 1, "prompts": PROMPTS[:1], "merges": [], "metrics": ["brightness", "distance"]}
    result = ml.evaluate(small, tmp_path, pipeline=pipeline)
    scores = result.scores
    assert "brightness" in str(result)
    assert '<button type="button">brightness</button>' in (tmp_path / "report.html").read_text()
    means = scores[scores.metric == "brightness"].groupby("variant").value.mean()
    found = {f.variant: f.interval.estimate for f in result.findings if f.metric == "brightness"}
    assert found == pytest.approx(means.to_dict())
    assert scores[scores.metric == "brightness"].value.between(0, 1).all()
    assert set(scores[scores.metric == "distance"].reference) == {"base", "single:fish", "single:stripes", "stack"}
    for name in ("brightness", "distance"):
        del metric_table._REGISTERED[name]
    with pytest.raises(ml.OptionError, match="comes with mergelab"):
        ml.register_metric("lpips")(brightness)


def test_a_metric_is_scored_again_when_its_version_changes(pipeline: Any, tmp_path: Path) -> None:
    """What the function relies on is not in its own text."""
    factor = 1.0

    def register(version: str) -> float:
        @ml.register_metric("scaled", version=version)
        def scaled(image: Tensor, prompt: str, references: Mapping[str, Tensor]) -> float:
            return factor * float(image.mean())

        small = SMALL | {"seeds": 1, "prompts": PROMPTS[:1], "merges": [], "metrics": ["scaled"]}
        return float(ml.evaluate(small, tmp_path, pipeline=pipeline).scores.value.iloc[0])

    first, factor = register("1"), 2.0
    assert register("1") == first and register("2") == pytest.approx(2 * first)
    del metric_table._REGISTERED["scaled"]


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


def test_an_unknown_metric_is_found_before_anything_is_computed(tmp_path: Path) -> None:
    """With the nearest that exists."""
    with pytest.raises(ml.OptionError, match="there is no 'lpipz'; did you mean 'lpips'"):
        ml.evaluate(SMALL | {"metrics": ["lpipz"]}, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    with pytest.raises(ml.OptionError, match="open_clip cannot load 'local-dir:/nowhere'"):
        built("clip_text", clip={"model": "local-dir:/nowhere", "pretrained": None})


def test_scores_of_another_model_do_not_count() -> None:
    """A CLIP of the same name with other weights has other settings, so images are scored again; an LPIPS too."""
    (text,) = built("clip_text")
    other = ClipModel(miniature.clip(), None, "cpu")
    assert text.settings == ClipText(other, {"fish": "a qrv"}).settings
    with torch.no_grad():
        next(other._model.parameters()).add_(1)
    assert weights_hash(other._model) != text.settings["weights"]
    assert built("lpips")[0].settings["weights"]


def test_noise_is_that_of_the_prompts_that_call(run: ml.evaluation.Result) -> None:
    """Between seeds of the adapter alone, on the same prompts as floor and ceiling."""
    (anchor,) = [a for a in run.anchors if (a.metric, a.reference) == ("lpips", "single:fish")]
    frame = run.scores
    rows = frame[(frame.variant == "single:fish") & (frame.metric == "lpips") & (frame.reference == "single:fish")]
    assert anchor.noise == pytest.approx(rows[rows.prompt.isin(PROMPTS[:2])].value.mean())


# --- recovery --------------------------------------------------------------------------------------------------------


def test_recovery_rises_with_strength(pipeline: Any, tmp_path: Path) -> None:
    """A single adapter at 0, 1/3, 2/3 and 1: from nothing to everything."""
    fish = {"path": "miniature/sdxl/fish"}
    small = SMALL | {
        "loras": [fish | {"name": f"at {weight:.2f}", "weight": weight} for weight in (1.0, 2 / 3, 1 / 3, 0.0)],
        "merges": [],
        "prompts": ["a qrv on a gray background", "a small qrv on a white background"],
        "metrics": ["judge"],
        "generation": {"steps": 12},
    }
    result = ml.evaluate(small, tmp_path, pipeline=pipeline)
    kept = {f.variant: f.interval.estimate for f in result.findings
            if (f.quantity, f.reference) == ("recovery", "single:at 1.00")}  # fmt: skip
    assert kept["base"] == kept["single:at 0.00"] == 0 and kept["single:at 1.00"] == 1
    assert 0 <= kept["single:at 0.33"] <= kept["single:at 0.67"] <= 1
    assert kept["single:at 0.67"] > 0.2


def test_weights_are_strengths_everywhere(pipeline: Any) -> None:
    """A weight of zero is the base model; a layer that a pipeline does not have is said, none at all is an error."""
    keywords = miniature.settings("sdxl") | {"num_inference_steps": 3}
    fish = ml.load(miniature.adapters("sdxl")[3].path)
    base = draw(pipeline, PROMPTS[0], 0, keywords)
    swap(pipeline, {"fish": 0.0 * fish})
    assert torch.equal(base, draw(pipeline, PROMPTS[0], 0, keywords))
    stranger = ml.load({"unet.nowhere.lora_A.weight": torch.ones(2, 3), "unet.nowhere.lora_B.weight": torch.ones(4, 2)})
    with pytest.raises(ValueError, match=r"none of its layers|not found in the base model"):
        swap(pipeline, {"stranger": stranger})
    key = "text_encoder.text_model.nowhere.lora_{}.weight"
    partly = fish + ml.load({key.format("A"): torch.ones(2, 3), key.format("B"): torch.ones(4, 2)})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT's, about the same layer
        notes = swap(pipeline, {"partly": partly})
    assert len(notes) == 1 and f"does not load 1 of {len(partly.layers)} layers" in notes[0]
    swap(pipeline, {})
    assert torch.equal(base, draw(pipeline, PROMPTS[0], 0, keywords))


# --- the report ------------------------------------------------------------------------------------------------------


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
    for part in (*run.verdict[:1], "recovery of fish", "fish alone", "ties rank=8", PROMPTS[0]):
        assert part in text
    assert text.index(run.verdict[0]) < text.index("<table")
    assert "One prompt is free of triggers: the change on it has no interval." in run.verdict


def test_names_in_the_scatter_are_readable() -> None:
    """Eight points almost in one place: every name is within the frame, and none covers another or a point."""
    points = {f"ties density=0.{i} rank=16": (560.0 + i, 60.0 + i) for i in range(8)}
    boxes = [(a - 6, a + 6, b - 6, b + 6) for a, b in points.values()]
    for name, (left, middle) in plots._beside(points).items():
        box = (left, left + plots.LETTER * len(name), middle - plots.LINE / 2, middle + plots.LINE / 2)
        assert box[0] > plots.LEFT and box[1] < plots.WIDTH - plots.EDGE
        assert box[2] > plots.EDGE and box[3] < plots.HEIGHT - plots.BOTTOM
        assert not any(plots._covers(box, other) for other in boxes)
        boxes.append(box)


def test_text_of_the_user_is_escaped(pipeline: Any, tmp_path: Path) -> None:
    """A prompt may hold any sign."""
    prompt = 'a "red" <script>alert(1)</script> & more'
    small = SMALL | {"seeds": 1, "prompts": [prompt], "merges": [], "metrics": ["judge"]}
    ml.evaluate(small, tmp_path, pipeline=pipeline)
    text = (tmp_path / "report.html").read_text()
    assert "<script>alert" not in text and "&lt;script&gt;alert(1)" in text


@pytest.mark.parametrize("name", miniature.PIPELINES)
def test_the_demo(name: str, tmp_path: Path) -> None:
    """With few steps: base, both alone, stack and five merges for three prompts and four seeds or more."""
    config = demo.config(name)
    assert len(config["prompts"]) >= 3 and config["seeds"] >= 4
    result = ml.evaluate(config | {"generation": {"steps": 2}, "seeds": 1}, tmp_path)
    assert len(set(result.scores.variant)) == 4 + 5 and not result.failures
    assert "report.html" in str(result) and "adapters" in str(result)


def test_the_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The verdict and where the report is; what is wrong is one line and exit code 2."""
    small = SMALL | {"seeds": 1, "prompts": PROMPTS[:1], "metrics": ["judge"], "merges": [{"method": "cat"}]}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(small))
    command = ["evaluate", str(tmp_path / "config.yaml"), "-o", str(tmp_path / "run")]
    assert cli.run([*command, "--set", "generation.steps=2"]) == 0
    assert str(tmp_path / "run" / "report.html") in capsys.readouterr().out
    assert cli.run([*command, "--set", "sedes=2"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("mergelab: error: ") and "did you mean 'seeds'" in error and error.count("\n") == 1
    elsewhere = ["evaluate", str(tmp_path / "config.yaml"), "-o", str(tmp_path / "elsewhere"), "--set", "device=gpuu"]
    assert cli.run(elsewhere) == 2 and not (tmp_path / "elsewhere").exists()
    assert "device='gpuu' cannot be used here" in capsys.readouterr().err
    assert cli.run(["demo", "--pipeline", "sd3", "-o", str(tmp_path / "demo")]) == 2
    assert "unknown miniature pipeline 'sd3'" in capsys.readouterr().err


@pytest.mark.parametrize("path", sorted((Path(__file__).parent.parent / "experiments" / "evaluation").glob("*.yaml")))
def test_configurations_for_the_real_models(path: Path) -> None:
    """They are valid, and their prompts call each adapter alone, both and none."""
    config = read(path)
    concepts, given = ({lora.name: getattr(lora, key) for lora in config.loras} for key in ("concept", "trigger"))
    triggers = triggers_of(concepts, given)
    counts = {len(called) for called in calls(config.prompts, triggers).values()}
    assert counts == {0, 1, 2}


ON_GPU = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]


@pytest.mark.parametrize(
    "memory",
    [
        {"vae_tiling": True},
        {"compile": True},
        pytest.param({"offload": "model"}, marks=ON_GPU),
        pytest.param({"offload": "sequential"}, marks=ON_GPU),
    ],
)
def test_memory_options(memory: dict[str, Any], tmp_path: Path) -> None:
    """Each draws the same picture as without it, up to rounding."""
    small = SMALL | {"seeds": 1, "prompts": PROMPTS[:1], "metrics": ["judge"], "merges": [], "generation": {"steps": 2}}
    plain = ml.evaluate(small, tmp_path / "plain")
    other = ml.evaluate(small | {"memory": memory}, tmp_path / "other")
    assert not other.failures
    stores = [Store(result.folder) for result in (plain, other)]
    for a, b in zip(plain.scores.image.unique(), other.scores.image.unique()):
        images = [store.load_image(name.removesuffix(".png")) for store, name in zip(stores, (a, b))]
        assert (images[0] - images[1]).abs().max() <= 2 / 255


def test_offload_needs_a_gpu(tmp_path: Path) -> None:
    """It says so instead of failing somewhere in accelerate."""
    with pytest.raises(ml.OptionError, match="moves layers to a GPU, and device is 'cpu'"):
        ml.evaluate(SMALL | {"memory": {"offload": "model"}, "device": "cpu"}, tmp_path)


def test_what_cannot_work_leaves_no_folder(tmp_path: Path) -> None:
    """A guidance without effect: the miniature FLUX has no guidance embedding, as FLUX.1-schnell; no pipeline."""
    flux = {"pipeline": "miniature/flux", "loras": ["miniature/flux/fish"], "prompts": ["a qrv"], "metrics": ["judge"]}
    with pytest.raises(ml.OptionError, match=r"generation\.guidance does nothing .* set generation\.options\.true_cfg"):
        ml.evaluate(flux | {"generation": {"guidance": 3.5}}, tmp_path / "new")
    with pytest.raises(ml.OptionError, match="expected a loaded diffusers pipeline that takes adapters, found str"):
        ml.evaluate(SMALL, tmp_path / "new", pipeline="miniature/sdxl")
    with pytest.raises(ml.SourceError, match="no-such-pipeline: diffusers cannot load it"):
        ml.evaluate(flux | {"pipeline": str(tmp_path / "no-such-pipeline"), "metrics": ["lpips"]}, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_half_precision(tmp_path: Path) -> None:
    """bfloat16 is a dtype of the pipeline, and another request."""
    small = SMALL | {"seeds": 1, "prompts": PROMPTS[:1], "metrics": ["judge"], "merges": [], "generation": {"steps": 2}}
    first = ml.evaluate(small, tmp_path)
    second = ml.evaluate(small | {"dtype": "bfloat16"}, tmp_path)
    assert not second.failures and not set(first.scores.image) & set(second.scores.image)
