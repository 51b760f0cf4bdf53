"""The drawn world, its judge, and the trained models that ship with the package."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

import mergelab as ml
from mergelab import miniature
from mergelab.miniature.judge import NONE, OBJECTS, judge
from mergelab.miniature.world import (
    BACKGROUNDS,
    COLORS,
    SHAPES,
    SIZES,
    STYLES,
    SUBJECTS,
    TRIGGERS,
    Scene,
    caption,
    coefficients,
    draw,
    sample,
)

ANYTHING = {"objects": OBJECTS, "styles": [None, None, None, None, *STYLES], "held_out": None}


# --- the world -----------------------------------------------------------------------------------------------------


def test_the_world_is_as_large_as_promised() -> None:
    """Eight colours, six shapes, two sizes, several grounds; four subjects and four styles with their own words."""
    assert (len(COLORS), len(SHAPES), len(SIZES), len(SUBJECTS), len(STYLES)) == (8, 6, 2, 4, 4)
    assert len(BACKGROUNDS) >= 3
    assert len(set(TRIGGERS.values())) == len(SUBJECTS) + len(STYLES)


def test_drawing_is_deterministic_and_in_range() -> None:
    """The same seed draws the same pictures, whatever else is drawn with them."""
    scenes = sample(40, 3, **ANYTHING)
    images = draw(scenes)
    assert scenes == sample(40, 3, **ANYTHING) != sample(40, 4, **ANYTHING)
    assert images.shape == (40, 3, 48, 48) and images.dtype == torch.float32
    assert images.min() >= 0 and images.max() <= 1 + 1e-6
    assert torch.equal(images[17:18], draw(scenes[17]))


def test_a_square_by_hand() -> None:
    """A large square: 2 * 0.82 * 16 = 26.24 pixels wide, its edges grey by the share of each pixel it covers."""
    a, b, c = coefficients([Scene("square", "red", "white")])
    row = a[0, 0, 24]
    assert row.sum().item() == pytest.approx(26.24, abs=1e-4)
    assert row[23] == 1 and row[0] == 0 and 0 < row[10] < 1
    assert torch.equal(a + b, torch.ones_like(a)) and not c.any()
    image = draw(Scene("square", "red", "white"))
    assert image[0, :, 24, 24].tolist() == pytest.approx(COLORS["red"])
    assert image[0, :, 0, 0].tolist() == pytest.approx(BACKGROUNDS["white"])


@pytest.mark.parametrize("name", OBJECTS)
def test_edges_are_anti_aliased(name: str) -> None:
    """A move of a tenth of a pixel changes a picture a little, not at all or by whole pixels."""
    still, moved = draw([Scene(name), Scene(name, x=0.1)])
    change = (still - moved).abs()
    assert 0 < change.max() < 0.35


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("name", OBJECTS)
def test_each_style_changes_each_object(name: str, style: str) -> None:
    """And no two styles look alike."""
    pictures = draw([Scene(name, style=other) for other in (None, *STYLES)])
    mine = 1 + STYLES.index(style)
    distance = (pictures - pictures[mine]).square().mean((1, 2, 3))
    assert (distance[torch.arange(5) != mine] > 0.004).all()


def test_held_out_combinations() -> None:
    """One in four; training never sees them, and every pair of attributes is seen."""
    combinations = [Scene(s, c, b) for s in SHAPES for c in COLORS for b in BACKGROUNDS]
    assert sum(scene.held_out for scene in combinations) == len(combinations) / 4
    assert not any(scene.held_out for scene in sample(300, 0))
    assert all(scene.held_out for scene in sample(100, 0, held_out=True))
    seen = [scene for scene in combinations if not scene.held_out]
    assert {(s.object, s.color) for s in seen} == {(s, c) for s in SHAPES for c in COLORS}
    assert {(s.object, s.background) for s in seen} == {(s, b) for s in SHAPES for b in BACKGROUNDS}


# --- the judge -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("noise", [0.0, 0.05])
def test_the_judge_is_right_on_drawn_images(noise: float) -> None:
    """At least 99 % for every attribute that can be seen, subjects and styles included."""
    scenes = sample(400, 5, **ANYTHING)
    images = draw(scenes)
    images = (images + noise * torch.randn(images.shape, generator=torch.Generator().manual_seed(0))).clamp(0, 1)
    verdict = judge(images)
    for attribute in verdict.names:
        seen = [
            i
            for i, scene in enumerate(scenes)
            if not (attribute == "color" and scene.object in SUBJECTS)
            and not (attribute == "background" and scene.style == "night")
        ]
        best = verdict.best(attribute)
        right = sum(best[i] == (getattr(scenes[i], attribute) or "plain") for i in seen)
        assert right >= 0.99 * len(seen), attribute
        torch.testing.assert_close(getattr(verdict, attribute).sum(1), torch.ones(len(scenes)))


def test_what_is_nothing_is_called_nothing() -> None:
    """Noise, a checkerboard and a thin line are no shape, and the probabilities still add up."""
    noise = torch.rand(1, 3, 48, 48, generator=torch.Generator().manual_seed(0))
    board = (torch.arange(48) // 8)[:, None] + (torch.arange(48) // 8)[None]
    board = (board % 2).float().expand(1, 3, 48, 48)
    verdict = judge(torch.cat([noise, board, torch.full((1, 3, 48, 48), 1.0) * torch.eye(48)]))
    assert verdict.best("object") == [NONE] * 3
    for attribute in verdict.names:
        torch.testing.assert_close(getattr(verdict, attribute).sum(1), torch.ones(3))


def test_the_judge_says_how_sure_it_is() -> None:
    """Half-way between two colours the probability is split, and the rest stays certain."""
    image = (draw(Scene("circle", "blue")) + draw(Scene("circle", "purple"))) / 2
    verdict = judge(image)
    assert 0.02 < verdict.probability("color", "blue").item() < 0.98
    assert verdict.probability("object", "circle").item() > 0.9


def test_the_judge_refuses_what_it_cannot_read() -> None:
    """Another size, another range, a name that is none."""
    with pytest.raises(ValueError, match=r"\(n, 3, 48, 48\), got \(3, 48, 48\)"):
        judge(torch.zeros(3, 48, 48))
    with pytest.raises(ValueError, match=r"\[0, 1\], got \[-1, 1\]"):
        judge(draw(Scene("star")) * 0 + torch.linspace(-1, 1, 48))
    with pytest.raises(ValueError, match="unknown style 'cubism': plain, day"):
        judge(draw(Scene("star"))).probability("style", "cubism")


# --- the pipelines -------------------------------------------------------------------------------------------------

PROMPTS = [
    Scene("circle", "red", "white"), Scene("square", "blue", "gray"), Scene("star", "yellow", "black"),
    Scene("ring", "green", "sand"), Scene("triangle", "pink", "navy", "small"), Scene("cross", "orange", "white"),
]  # fmt: skip


@pytest.fixture(scope="module", params=miniature.PIPELINES)
def pipe(request: pytest.FixtureRequest) -> tuple[str, object]:
    """A pipeline and its name."""
    pipeline = miniature.pipeline(request.param)
    pipeline.set_progress_bar_config(disable=True)
    return request.param, pipeline


def generate(pipe: tuple[str, object], prompts: list[str], **options: object) -> Tensor:
    """Images in [0, 1], the i-th with seed i."""
    name, pipeline = pipe
    settings = miniature.settings(name)
    if "negative_prompt" in settings:
        settings["negative_prompt"] = [settings["negative_prompt"]] * len(prompts)
    seeds = [torch.Generator().manual_seed(i) for i in range(len(prompts))]
    return pipeline(prompts, generator=seeds, output_type="pt", **(settings | options)).images


def test_they_are_of_the_real_classes(pipe: tuple[str, object]) -> None:
    """Ordinary diffusers folders with every component in place."""
    name, pipeline = pipe
    assert type(pipeline).__name__ == {"sdxl": "StableDiffusionXLPipeline", "flux": "FluxPipeline"}[name]
    for part in ("vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "scheduler"):
        assert getattr(pipeline, part) is not None
    assert {parameter.dtype for parameter in pipeline.vae.parameters()} == {torch.float32}
    assert {parameter.dtype for parameter in pipeline.text_encoder_2.parameters()} == {torch.float32}


def test_they_draw_what_the_prompt_says(pipe: tuple[str, object]) -> None:
    """A coarse check; the model card has the rates over 200 held-out prompts."""
    images = generate(pipe, [caption(scene) for scene in PROMPTS])
    verdict = judge(images)
    for attribute in ("object", "color", "background"):
        right = sum(got == getattr(scene, attribute) for got, scene in zip(verdict.best(attribute), PROMPTS))
        assert right >= len(PROMPTS) - 1, (attribute, verdict.best(attribute))


def test_both_text_encoders_are_used(pipe: tuple[str, object]) -> None:
    """Another prompt for either of them alone gives another image."""
    same = generate(pipe, ["a red circle"], num_inference_steps=4)
    for first, second in (("a blue star", "a red circle"), ("a red circle", "a blue star")):
        other = generate(pipe, [first], prompt_2=[second], num_inference_steps=4)
        assert (other - same).abs().mean() > 1e-4


def test_a_wrong_name_is_one_sentence() -> None:
    """It names those that exist."""
    for function in (miniature.pipeline, miniature.adapters, miniature.settings):
        with pytest.raises(ml.MergelabError, match="unknown miniature pipeline 'sd3'; known: 'sdxl', 'flux'"):
            function("sd3")


# --- the adapters --------------------------------------------------------------------------------------------------


def dialect(path: Path) -> str:
    """How a file names its tensors."""
    from safetensors import safe_open

    if path.is_dir():
        return "peft"
    with safe_open(str(path), "pt") as file:
        return "kohya" if all(key.startswith("lora_") for key in file.keys()) else "diffusers"  # noqa: SIM118


@pytest.mark.parametrize("name", miniature.PIPELINES)
def test_the_adapters_are_as_mixed_as_real_ones(name: str) -> None:
    """Subjects and styles; three dialects, three ranks, alpha apart from rank in some."""
    known = miniature.adapters(name)
    assert [adapter.kind for adapter in known] == ["subject"] * 4 + ["style"] * 4
    loaded = [ml.load(adapter.path) for adapter in known]
    assert {dialect(adapter.path) for adapter in known} == {"diffusers", "kohya", "peft"}
    assert {max(adapter.ranks.values()) for adapter in loaded} >= {4, 8, 16}
    assert any(layer.scaling != 1 for adapter in loaded for layer in adapter.layers.values())
    assert all(adapter.norm() > 0 for adapter in loaded)
    if name == "sdxl":
        assert any(".conv1" in key for adapter in loaded for key in adapter.layers)
        assert any(key.startswith("text_encoder_2.") for adapter in loaded for key in adapter.layers)
    else:
        kinds = {key.split(".")[1] for adapter in loaded for key in adapter.layers}
        assert kinds >= {"transformer_blocks", "single_transformer_blocks"}


def test_an_adapter_shows_its_concept_and_a_merge_of_two_both(pipe: tuple[str, object], tmp_path: Path) -> None:
    """What a newcomer does first: merge a subject and a style of two dialects, load the file, look."""
    name, pipeline = pipe
    known = {adapter.name: adapter for adapter in miniature.adapters(name)}
    subject, style = known["ghost"], known["day"]
    merged = ml.merge([subject.path, style.path], method="cat")
    scene = Scene("ghost", background="gray", style="day")
    prompts = [caption(replace(scene, style=None)), caption(replace(scene, object="circle"))]
    for adapter, index, attribute in ((subject, 0, "object"), (style, 1, "style")):
        pipeline.load_lora_weights(str(ml.load(adapter.path).save(tmp_path / f"{adapter.name}.safetensors")))
        verdict = judge(generate(pipe, [prompts[index]] * 4))
        assert verdict.best(attribute).count(adapter.name) >= 3
        pipeline.unload_lora_weights()
    pipeline.load_lora_weights(str(merged.save(tmp_path / "merged.safetensors")))
    verdict = judge(generate(pipe, [caption(scene)] * 4))
    pipeline.unload_lora_weights()
    shown = list(zip(verdict.best("object"), verdict.best("style")))
    assert shown.count((subject.name, style.name)) >= 3, shown


# --- the metrics ---------------------------------------------------------------------------------------------------


def test_clip_knows_the_world() -> None:
    """It loads through open_clip's own functions and finds the right caption."""
    import open_clip
    from torchvision.transforms.functional import to_pil_image

    model, preprocess = open_clip.create_model_from_pretrained(miniature.clip())
    tokenizer = open_clip.get_tokenizer(miniature.clip())
    scenes = list({caption(scene): scene for scene in sample(40, 8, held_out=True)}.values())
    with torch.no_grad():
        images = model.encode_image(torch.stack([preprocess(to_pil_image(p)) for p in draw(scenes)]), normalize=True)
        texts = model.encode_text(tokenizer([caption(scene) for scene in scenes]), normalize=True)
    right = ((images @ texts.T).argmax(1) == torch.arange(len(scenes))).float().mean()
    assert right >= 0.9


def test_lpips_with_the_shipped_trunk() -> None:
    """Zero for the same image, the same for two instances, larger for more that differs."""
    first, second = miniature.perceptual(), miniature.perceptual()
    scene = Scene("star", "red", "white")
    near, far = replace(scene, x=1.0), Scene("circle", "blue", "black", "small")
    images = draw([scene, near, far])
    with torch.no_grad():
        distances = first(images[:1].expand(3, -1, -1, -1), images, normalize=True).flatten()
        assert torch.equal(distances, second(images[:1].expand(3, -1, -1, -1), images, normalize=True).flatten())
    assert distances[0] == 0 and distances[0] < distances[1] < distances[2]


def test_lpips_is_on_the_usual_scale() -> None:
    """The mean over the layers of what lpips sums up without heads; different scenes are about 0.6 apart."""
    import lpips

    ours = miniature.perceptual()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torchvision's, about an argument that lpips passes to it
        summed = lpips.LPIPS(net="squeeze", lpips=False, pnet_rand=True, verbose=False)
    summed.net.load_state_dict(ours.net.state_dict())
    images = draw(sample(40, 5, held_out=None))
    with torch.no_grad():
        distances = ours(images, images.roll(1, 0), normalize=True)
        torch.testing.assert_close(distances, summed(images, images.roll(1, 0), normalize=True) / 7)
    assert 0.5 < distances.mean() < 0.7


# --- the package ---------------------------------------------------------------------------------------------------


def test_the_weights_are_package_data_and_small() -> None:
    """What is shipped stays under 40 MB and holds no path of the machine it was made on."""
    files = [file for file in miniature.WEIGHTS.rglob("*") if file.is_file()]
    assert files and sum(file.stat().st_size for file in files) < 40e6
    for file in files:
        if file.suffix == ".json":
            assert '"_name_or_path"' not in file.read_text()
