"""The run folder on the miniature SDXL: what it holds, and that nothing in it is computed twice."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from torch import Tensor

import mergelab as ml
from mergelab import miniature
from mergelab.evaluation import read
from mergelab.evaluation.executors import worker
from mergelab.evaluation.store import Store
from mergelab.pipelines.images import generate_images
from tests.evaluation.small import PROMPTS, SMALL, counted


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

    def failing(pipe: Any, units: Sequence[tuple[str, int]], keywords: Mapping[str, Any]) -> list[Tensor]:
        if PROMPTS[1] in dict(units):
            raise RuntimeError("out of memory")
        return generate_images(pipe, units, keywords)

    small = SMALL | {"seeds": 1, "prompts": PROMPTS[:2], "metrics": ["judge"], "merges": [{"method": "cat"}]}
    with monkeypatch.context() as patch:
        patch.setattr(worker, "generate_images", failing)
        result = ml.evaluate(small, tmp_path, pipeline=pipeline)
    assert len(result.failures) == 5 and result.failures[0]["error"] == "RuntimeError: out of memory"
    assert "out of memory" in (tmp_path / "report.html").read_text()
    assert "5 cells failed" in str(result)
    assert not ml.evaluate(small, tmp_path, pipeline=pipeline).failures
    with monkeypatch.context() as patch:
        patch.setattr(worker, "generate_images", lambda *arguments: 1 / 0)
        with pytest.raises(
            ml.OutputError, match=r"every cell failed: 10 cells failed, the first .* with ZeroDivisionError"
        ):
            ml.evaluate(small, tmp_path / "other", pipeline=pipeline)


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
