"""The metrics against the packages that define them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import mergelab as ml
from mergelab import miniature
from mergelab.evaluation import read
from mergelab.evaluation.metrics import registry
from mergelab.evaluation.metrics.clip import ClipModel, ClipText
from mergelab.evaluation.metrics.metric import Asked, Metric, Picture
from mergelab.miniature.world import Scene, caption, draw
from mergelab.pipelines.fingerprints import weights_hash
from tests.evaluation.small import PROMPTS, SMALL

FISH = {"fish": ("a qrv",)}


def pictures() -> list[Picture]:
    """Two drawn images."""
    images = draw([Scene("star", "red", "white"), Scene("ring", "blue", "black")])
    return [Picture(str(i), (image * 255).round() / 255) for i, image in enumerate(images)]


def built(*names: str, **changes: Any) -> list[Metric]:
    """Metrics of a configuration."""
    return registry.open_metrics(read(SMALL | {"metrics": list(names)} | changes))


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
    assert text.clip is image.encoder, "opened once for both"  # type: ignore[attr-defined]
    scores = text.score(a, Asked("a red star", concepts=FISH))
    assert scores[""] == pytest.approx((images[0] @ texts[0]).item(), abs=1e-5)
    assert scores["single:fish"] == pytest.approx((images[0] @ texts[1]).item(), abs=1e-5)
    compared = image.score(a, Asked("", {"stack": b, "base": a}))
    assert compared == {"stack": pytest.approx((images[0] @ images[1]).item(), abs=1e-5), "base": pytest.approx(1)}


def test_lpips_is_lpips() -> None:
    """Called by hand with images in [-1, 1], to 1e-5; 0 for the image itself."""
    a, b = pictures()
    with torch.no_grad():
        by_hand = miniature.perceptual()(a.pixels[None] * 2 - 1, b.pixels[None] * 2 - 1).item()
    scores = built("lpips")[0].score(a, Asked("", {"stack": b, "base": a}))
    assert scores["stack"] == pytest.approx(by_hand, abs=1e-5) and scores["base"] == 0


def test_the_judge_sees_concept_and_prompt() -> None:
    """Of a drawn fish on gray: certain of both; a prompt that names nothing has no score."""
    (judge,) = built("judge")
    scene = Scene("fish", background="gray")
    picture = Picture("", draw(scene)[0].clamp(0, 1))
    scores = judge.score(picture, Asked(caption(scene), concepts=FISH))
    assert scores["single:fish"] > 0.99 and scores[""] > 0.99
    assert "" not in judge.score(picture, Asked("a qrv"))
    assert judge.score(picture, Asked("a blue star on a white background"))[""] < 0.4


def test_several_concepts_are_averaged() -> None:
    """By CLIP and by the judge, which leaves out those that name nothing; without a concept there is no score."""
    picture = Picture("", draw(Scene("fish", background="gray"))[0].clamp(0, 1))
    text, judge = built("clip_text", "judge")

    def scores(metric: Metric, **concepts: tuple[str, ...]) -> dict[str, float]:
        return dict(metric.score(picture, Asked("a fish", concepts=concepts)))

    several = scores(text, fish=("a qrv", "a large qrv"), stripes=(), ghost=("a sks",))
    one, two = (scores(text, fish=(concept,))["single:fish"] for concept in ("a qrv", "a large qrv"))
    assert several["single:fish"] == pytest.approx((one + two) / 2) and one != two
    assert list(several) == ["", "single:fish", "single:ghost"]
    seen = scores(judge, both=("a qrv", "a sks", "a word"), none=("a word",), fish=("a qrv",), ghost=("a sks",))
    assert seen["single:both"] == pytest.approx((seen["single:fish"] + seen["single:ghost"]) / 2)
    assert seen["single:fish"] > 0.99 > 0.01 > seen["single:ghost"] and "single:none" not in seen


def test_the_star_of_a_starfish_is_no_star() -> None:
    """A prompt's "cfw star" asks for the subject: the judge wants the ground alone, and a star where one is named."""
    (judge,) = built("judge")
    scene = Scene("starfish", background="gray")
    picture = Picture("", draw(scene)[0].clamp(0, 1))
    scores = judge.score(picture, Asked(caption(scene), concepts={"starfish": ("a cfw star",)}))
    assert caption(scene) == "a large cfw star on a gray background"
    assert scores["single:starfish"] > 0.99 and scores[""] > 0.99
    assert "" not in judge.score(picture, Asked("a cfw star"))
    assert judge.score(picture, Asked("a star on a gray background"))[""] == pytest.approx(0.5, abs=0.01)


def test_nearness_is_that_of_the_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    """For each adapter, averaged over concepts and things, nothing for the prompt; one verdict for both metrics."""
    judge, nearness = built("judge", "nearness")
    plain, styled = draw([Scene("fish", background="gray"), Scene("fish", background="gray", style="day")])
    blend = Picture("a blend", plain + 0.4 * (styled - plain))
    reading, seen = miniature.judge, list[int]()

    def counting(images: Tensor) -> miniature.Verdict:
        seen.append(len(images))
        return reading(images)

    monkeypatch.setattr(miniature, "judge", counting)
    concepts = {"fish": ("a qrv",), "day": ("in szn style",), "both": ("a qrv in szn style", "a sks"), "none": ("it",)}
    asked = Asked("a qrv on a gray background in szn style", concepts=concepts)
    scores, near = judge.score(blend, asked), nearness.score(blend, asked)
    assert seen == [1]
    assert list(near) == ["single:fish", "single:day", "single:both"] and "" in scores
    verdict = reading(blend.pixels[None])
    fish, day, ghost = (
        verdict.nearness(kind, name).item()
        for kind, name in (("object", "fish"), ("style", "day"), ("object", "ghost"))
    )
    assert near["single:fish"] == pytest.approx(fish) and near["single:day"] == pytest.approx(day)
    assert near["single:both"] == pytest.approx(((fish + day) / 2 + ghost) / 2)
    assert near["single:day"] == pytest.approx(0.4, abs=0.01) and scores["single:day"] < 0.3
    judge.score(Picture("another", plain), asked)
    assert seen == [1, 1]
    assert nearness.description.own_scale and not nearness.description.is_share and judge.description.is_share


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
    assert text.settings == ClipText(other).settings
    with torch.no_grad():
        next(other._model.parameters()).add_(1)
    assert weights_hash(other._model) != text.settings["weights"]
    assert built("lpips")[0].settings["weights"]


def test_noise_is_that_of_the_prompts_that_call(run: ml.evaluation.Result) -> None:
    """Between seeds of the adapter alone, on the prompts that call it alone, as floor and ceiling."""
    (anchor,) = [a for a in run.anchors if (a.metric, a.reference) == ("lpips", "single:fish")]
    frame = run.scores
    rows = frame[(frame.variant == "single:fish") & (frame.metric == "lpips") & (frame.reference == "single:fish")]
    assert anchor.noise == pytest.approx(rows[rows.prompt == PROMPTS[3]].value.mean())
