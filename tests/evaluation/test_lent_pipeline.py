"""What a pipeline lends for a run and gets back: its scheduler and its bars."""

from __future__ import annotations

import io
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, EulerDiscreteScheduler, UniPCMultistepScheduler

import mergelab as ml
from mergelab import miniature
from mergelab.evaluation.progress import bar
from mergelab.evaluation.store import Store
from mergelab.pipelines.images import generate_image
from mergelab.pipelines.opening import open_pipeline
from mergelab.pipelines.schedulers import scheduled, scheduler_of
from tests.evaluation.small import PROMPTS, SMALL

ONE = SMALL | {"seeds": 1, "prompts": PROMPTS[:1], "merges": [], "metrics": ["judge"], "generation": {"steps": 4}}
KARRAS = {"class": "DPMSolverMultistepScheduler", "use_karras_sigmas": True}
FLOW = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}


@pytest.fixture(scope="module")
def flux() -> Any:
    """The small FLUX."""
    pipe = miniature.pipeline("flux")
    pipe.set_progress_bar_config(disable=True)
    return pipe


def keys(result: ml.evaluation.Result) -> set[str]:
    return set(result.scores.image)


def test_a_run_with_another_scheduler(pipeline: Any, tmp_path: Path) -> None:
    """Draws what the pipeline draws with that of diffusers; the images have other names; the own one is back."""
    own, config = pipeline.scheduler, dict(pipeline.config)
    plain = ml.evaluate(ONE, tmp_path / "run", pipeline=pipeline)
    result = ml.evaluate(ONE | {"scheduler": KARRAS}, tmp_path / "run", pipeline=pipeline)
    assert pipeline.scheduler is own and dict(pipeline.config) == config
    assert not keys(plain) & keys(result) and not result.failures
    assert ml.evaluation.read(tmp_path / "run" / "config.yaml").scheduler == KARRAS
    named = ml.evaluate(ONE | {"scheduler": KARRAS}, tmp_path / "named")
    assert keys(named) == keys(result)
    same = ml.evaluate(ONE | {"scheduler": "EulerDiscreteScheduler"}, tmp_path / "run", pipeline=pipeline)
    assert keys(same) == keys(plain), "what computes the same is the same request"

    pipeline.scheduler = DPMSolverMultistepScheduler.from_config(own.config, use_karras_sigmas=True)
    try:
        by_hand = generate_image(pipeline, PROMPTS[0], 0, miniature.settings("sdxl") | {"num_inference_steps": 4})
    finally:
        pipeline.scheduler = own
    key = result.scores[result.scores.variant == "base"].image.iloc[0].removesuffix(".png")
    assert torch.equal(Store(tmp_path / "run").load_image(key), by_hand.float() / 255)


def test_the_own_scheduler_is_back_after_an_error(pipeline: Any) -> None:
    """Whatever happened in between."""
    own = pipeline.scheduler
    with pytest.raises(KeyError), scheduled(pipeline, "LCMScheduler"):
        raise KeyError
    assert pipeline.scheduler is own
    assert type(open_pipeline("miniature/sdxl", scheduler="LCMScheduler")[0].scheduler).__name__ == "LCMScheduler"


def test_a_model_of_flow_matching(flux: Any) -> None:
    """Schedulers of the flow alone: those for nothing else, and those that are told to; the images show the same."""
    own, keywords = flux.scheduler, miniature.settings("flux") | {"num_inference_steps": 8}
    for choice in ("FlowMatchLCMScheduler", {"class": "UniPCMultistepScheduler", **FLOW}):
        with scheduled(flux, choice):
            image = generate_image(flux, "a large red circle on a white background", 0, keywords)
        seen = miniature.judge(image[None].float() / 255)
        assert seen.probability("object", "circle") > 0.9 and seen.probability("color", "red") > 0.9
    assert type(scheduler_of(own, {"class": "UniPCMultistepScheduler", **FLOW})) is UniPCMultistepScheduler
    with pytest.raises(ml.OptionError, match="needs the options use_flow_sigmas: true and prediction_type: flow"):
        scheduler_of(own, "UniPCMultistepScheduler")
    with pytest.raises(ml.OptionError, match="'EulerDiscreteScheduler' cannot take the place of FlowMatchEuler"):
        scheduler_of(own, "EulerDiscreteScheduler")
    with pytest.raises(ml.OptionError, match="use_flow_sigmas is for models of flow matching, and this pipeline's is"):
        scheduler_of(EulerDiscreteScheduler(), {"class": "UniPCMultistepScheduler", **FLOW})
    again = scheduler_of(UniPCMultistepScheduler(**FLOW), "FlowMatchEulerDiscreteScheduler")
    assert type(again).__name__ == "FlowMatchEulerDiscreteScheduler"


@pytest.mark.parametrize(
    ("choice", "sentence"),
    [
        (
            "EulerScheduler",
            "'EulerScheduler' cannot take the place of Euler.*did you mean '.*Scheduler'[?] known: DDIM",
        ),
        ("DPMSolverMultistepInverseScheduler", "cannot take the place of EulerDiscreteScheduler"),
        ("StableDiffusionPipeline", "cannot take the place of EulerDiscreteScheduler"),
        ({"class": "DDIMScheduler", "timestep_spacin": "leading"}, "has no option .*did you mean 'timestep_spacing'"),
        ({"class": "DDIMScheduler", "beta_schedule": "round"}, "cannot be made with .*: round is not implemented"),
        ({"class": "DDIMScheduler", "timestep_spacing": "wide"}, "cannot be made with .*: wide is not supported"),
        (
            {"timestep_spacing": "leading"},
            r"expected a class of diffusers, or a mapping \{class: \.\.\., its options\}",
        ),
        (3, r"config: scheduler: expected a class of diffusers.* got 3"),
    ],
)
def test_what_cannot_be_used(choice: str | Mapping[str, Any], sentence: str, pipeline: Any, tmp_path: Path) -> None:
    """Is one sentence, before anything is written."""
    own = pipeline.scheduler
    with pytest.raises(ml.OptionError, match=f"scheduler.*{sentence}" if choice != 3 else sentence):
        ml.evaluate(ONE | {"scheduler": choice}, tmp_path / "new", pipeline=pipeline)
    assert pipeline.scheduler is own and not (tmp_path / "new").exists()


def test_its_bars_are_back(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """None of them is shown while a run draws; whether they were set, or never were."""
    pipe = miniature.pipeline("sdxl")
    capfd.readouterr()
    assert not hasattr(pipe, "_progress_bar_config")
    ml.evaluate(ONE, tmp_path / "a", pipeline=pipe, progress=False)
    assert not hasattr(pipe, "_progress_bar_config")
    pipe.set_progress_bar_config(desc="steps of mine")
    ml.evaluate(ONE, tmp_path / "b", pipeline=pipe, progress=False)
    assert pipe._progress_bar_config == {"desc": "steps of mine"}
    assert "/4" not in capfd.readouterr().err
    generate_image(pipe, PROMPTS[0], 0, miniature.settings("sdxl") | {"num_inference_steps": 2})
    assert "steps of mine: 100%" in capfd.readouterr().err


class Terminal(io.StringIO):
    """A terminal that keeps what is shown."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("terminal", [True, False])
def test_the_bar_counts_images(terminal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Seconds per image and the time left; one line on a terminal, several in a log if asked for."""
    for progress in (None, True, False):
        shown = Terminal() if terminal else io.StringIO()
        monkeypatch.setattr(sys, "stderr", shown)
        if not terminal:
            monkeypatch.delitem(sys.modules, "ipykernel", raising=False)
        with bar(3, "images", progress) as images:
            for variant in ("base", "stack", "merge:cat"):
                images.set_postfix_str(variant)
                images.update()
        if progress is False or (progress is None and not terminal):
            assert not shown.getvalue()
            continue
        first, *_, last = (line for line in shown.getvalue().replace("\r", "\n").split("\n") if line.strip())
        assert first.startswith("images:") and "0/3 [" in first
        assert "3/3 [" in last and last.rstrip().endswith("s/image, merge:cat]")
        assert shown.getvalue().count("\n") == (1 if terminal else shown.getvalue().count("\r") + 1)
