"""Combinations at run time as variants of an evaluation, beside the merges."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torchvision.transforms.functional import pil_to_tensor

import mergelab as ml
from mergelab.evaluation.reading import read_config
from mergelab.pipelines.images import generate_image
from mergelab.pipelines.live import applied_to, is_wrapped
from tests.evaluation.small import PROMPTS, SMALL

COMBINED = SMALL | {
    "merges": [
        {"method": "switch", "every": [1, 2]},
        {"method": "klora"},
        {"method": "schedule", "factors": [1, 1]},
    ],
    "prompts": PROMPTS[:1],
    "seeds": 1,
    "metrics": ["judge"],
}


def test_they_are_drawn_as_they_are_by_hand(pipeline: Any, tmp_path: Path) -> None:
    """Under a name with their options; the pipeline comes back bare, and a second run draws nothing."""
    result = ml.evaluate(COMBINED, tmp_path, pipeline=pipeline)
    unet = pipeline.unet
    assert not is_wrapped(unet) and applied_to(unet) is None and not {**unet._forward_hooks, **unet._forward_pre_hooks}
    assert not result.failures
    scores = result.scores
    names = ["switch every=1", "switch every=2", "klora", "schedule factors=[1, 1]"]
    assert [name for name in dict.fromkeys(scores["variant"]) if name.startswith("merge:")] == [
        f"merge:{name}" for name in names
    ]
    images = scores.drop_duplicates("variant").set_index("variant")["image"]
    assert images["merge:schedule factors=[1, 1]"] != images["stack"]
    keywords = {"num_inference_steps": 4, "guidance_scale": 3.0}
    ml.apply(pipeline, ["miniature/sdxl/fish", "miniature/sdxl/stripes"])
    with ml.switch(every=2).attach(pipeline):
        by_hand = generate_image(pipeline, PROMPTS[0], 0, keywords)
    ml.remove(pipeline)

    def drawn(variant: str) -> torch.Tensor:
        (path,) = tmp_path.rglob(images[variant])
        return pil_to_tensor(Image.open(path))

    assert torch.equal(drawn("merge:switch every=2"), by_hand)
    stack = drawn("stack").int()
    assert (drawn("merge:schedule factors=[1, 1]").int() - stack).abs().max() <= 1
    assert (drawn("merge:switch every=1").int() - stack).abs().max() > 20
    written = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.png")}
    ml.evaluate(COMBINED, tmp_path, pipeline=pipeline)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.png")} == written


def test_what_a_combination_does_not_take() -> None:
    """Before anything is drawn, in one sentence."""
    for merge, sentence in (
        ({"method": "switch", "rank": 4}, "switch has no option 'rank'; known: every"),
        ({"method": "switch", "evry": 4}, "did you mean 'every'"),
        ({"method": "switch", "every": 0}, "every=0"),
        ({"method": "schedule"}, "schedule needs factors"),
        ({"method": "schedule", "factors": [abs, 1]}, "a function has no place in a configuration"),
    ):
        with pytest.raises(ml.OptionError, match=sentence):
            read_config(COMBINED | {"merges": [merge]})


def test_one_that_fails_is_recorded_alone(pipeline: Any, tmp_path: Path) -> None:
    """K-LoRA of one adapter; what comes after it is drawn."""
    config = COMBINED | {"loras": SMALL["loras"][:1], "merges": [{"method": "klora"}, {"method": "switch"}]}
    result = ml.evaluate(config, tmp_path, pipeline=pipeline)
    assert ["K-LoRA chooses between two adapters" in failure["error"] for failure in result.failures] == [True]
    assert "merge:switch" in set(result.scores["variant"])
