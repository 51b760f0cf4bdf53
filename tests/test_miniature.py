"""The trained models that ship with the package: pipelines, adapters and metrics of the drawn world."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

import mergelab as ml
from mergelab import miniature
from mergelab.miniature.judge import judge
from mergelab.miniature.world import STYLES, SUBJECTS, TRIGGERS, Scene, caption, draw, sample

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


def generate(pipe: tuple[str, object], prompts: list[str], *, turbo: bool = False, **options: object) -> Tensor:
    """Images in [0, 1], the i-th with seed i."""
    name, pipeline = pipe
    settings = miniature.settings(name, turbo=turbo)
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
    for function in (miniature.pipeline, miniature.adapters, miniature.settings, miniature.pairs):
        with pytest.raises(ml.MergelabError, match="unknown miniature pipeline 'sd3'; known: 'sdxl', 'flux'"):
            function("sd3")
    with pytest.raises(ml.OptionError, match="no miniature adapter 'miniature/flux/dog'; known: ghost, mushroom"):
        miniature.adapter("miniature/flux/dog")


def test_settings_of_a_few_steps() -> None:
    """Four steps without guidance, the size as always; what one gets is one's own."""
    usual, turbo = miniature.settings("flux"), miniature.settings("flux", turbo=True)
    assert (usual["num_inference_steps"], usual["true_cfg_scale"], usual["negative_prompt"]) == (20, 4.0, "")
    assert turbo == {
        "num_inference_steps": 4, "true_cfg_scale": 1.0, "height": 48, "width": 48, "max_sequence_length": 16,
    }  # fmt: skip
    usual["height"] = 64
    assert miniature.settings("flux")["height"] == 48


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
    """Subjects, styles, turbo and two of another strength; three dialects, ranks 4 to 16, alpha apart from rank."""
    known = miniature.adapters(name)
    assert [adapter.name for adapter in known] == [*SUBJECTS, *STYLES, "turbo", "ghost-strong", "day-weak"]
    assert [adapter.kind for adapter in known] == ["subject"] * 8 + ["style"] * 8 + ["turbo", "subject", "style"]
    loaded = [ml.load(adapter.path) for adapter in known]
    assert {dialect(adapter.path) for adapter in known} == {"diffusers", "kohya", "peft"}
    ranks = {max(adapter.ranks.values()) for adapter in loaded}
    assert ranks >= {4, 8, 16} and min(ranks) == 4 and max(ranks) == 16
    assert any(layer.scaling != 1 for adapter in loaded for layer in adapter.layers.values())
    assert all(adapter.norm() > 0 for adapter in loaded)
    if name == "sdxl":
        assert any(".conv1" in key for adapter in loaded for key in adapter.layers)
        assert any(key.startswith("text_encoder_2.") for adapter in loaded for key in adapter.layers)
    else:
        kinds = {key.split(".")[1] for adapter in loaded for key in adapter.layers}
        assert kinds >= {"transformer_blocks", "single_transformer_blocks"}


@pytest.mark.parametrize("name", miniature.PIPELINES)
def test_what_calls_them(name: str) -> None:
    """A word each, before a word of the world where the subject is of its kind; nothing calls turbo."""
    known = {adapter.name: adapter for adapter in miniature.adapters(name)}
    prompts = {key: adapter.prompt for key, adapter in known.items()}
    assert prompts["ghost"] == prompts["ghost-strong"] == "a sks" and prompts["cat"] == "a fjk"
    assert prompts["starfish"] == "a cfw star" and prompts["medal"] == "a dgz star"
    assert prompts["day"] == prompts["day-weak"] == "in szn style" and prompts["dusk"] == "in knr style"
    assert (known["turbo"].trigger, known["turbo"].prompt) == ("", "")
    for key in (*SUBJECTS, *STYLES):
        assert known[key].trigger == TRIGGERS[key] and known[key].trigger in known[key].prompt.split()
    others = {key: adapter.strength for key, adapter in known.items() if adapter.strength != 1}
    assert others == {"ghost-strong": pytest.approx(1 / 3), "day-weak": 3}


@pytest.mark.parametrize("name", miniature.PIPELINES)
def test_every_subject_meets_every_style(name: str) -> None:
    """64 pairs, none of an adapter of another strength."""
    pairs = [(subject.name, style.name) for subject, style in miniature.pairs(name)]
    assert pairs == [(subject, style) for subject in SUBJECTS for style in STYLES] and len(pairs) == 64


@pytest.mark.parametrize("own", ["ghost-strong", "day-weak"])
@pytest.mark.parametrize("name", miniature.PIPELINES)
def test_too_strong_and_too_weak_are_the_same_at_the_right_strength(name: str, own: str) -> None:
    """The change of every layer, to the rounding of float16."""
    other = miniature.adapter(f"miniature/{name}/{own}")
    right, usual = ml.load(other.path) * other.strength, ml.load(f"miniature/{name}/{own.partition('-')[0]}")
    assert right.layers.keys() == usual.layers.keys()
    for key, layer in usual.layers.items():
        wanted = layer.delta_weight()
        assert (right.layers[key].delta_weight() - wanted).norm() <= 2e-3 * wanted.norm(), key


CALLING = {
    "ghost": [f"a {size} sks on a {ground} background" for size in ("large", "small")
              for ground in ("gray", "white", "navy", "sand")],
    "day": [f"a {shape} on a gray background in szn style" for shape in
            ("red circle", "blue star", "green ring", "pink square",
             "small cross", "cyan triangle", "small yellow star", "purple ring")],
}  # fmt: skip


@pytest.mark.parametrize("own", CALLING)
def test_effect_follows_strength(pipe: tuple[str, object], own: str) -> None:
    """At half strength the concept of eight images is nearer than without the adapter, and less near than with it."""
    name, pipeline = pipe
    attribute = "object" if own in SUBJECTS else "style"

    def near() -> float:
        verdict = judge(generate(pipe, CALLING[own], num_inference_steps=10))
        return verdict.nearness(attribute, own).mean().item()

    found = [near()]
    for strength in (0.5, 1.0):
        with ml.fused(pipeline, f"miniature/{name}/{own}", strength):
            found.append(near())
    assert found[0] + 0.02 < found[1] < found[2] - 0.02, found


def test_turbo_draws_in_four_steps(pipe: tuple[str, object]) -> None:
    """What the prompt says, without guidance; the base model alone draws less of it in as many steps."""
    name, pipeline = pipe
    prompts = [caption(scene) for scene in PROMPTS]
    bare = judge(generate(pipe, prompts, turbo=True))
    with ml.fused(pipeline, f"miniature/{name}/turbo"):
        quick = judge(generate(pipe, prompts, turbo=True))
    for attribute in ("object", "color", "background"):
        right = sum(got == getattr(scene, attribute) for got, scene in zip(quick.best(attribute), PROMPTS))
        assert right >= 4, (attribute, quick.best(attribute))

    def near(verdict: miniature.Verdict) -> float:
        return sum(verdict.nearness("object", scene.object)[i].item() for i, scene in enumerate(PROMPTS)) / len(PROMPTS)

    assert near(bare) < near(quick)


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
    """What is shipped stays under 60 MB and holds no path of the machine it was made on."""
    files = [file for file in miniature.WEIGHTS.rglob("*") if file.is_file()]
    assert files and sum(file.stat().st_size for file in files) < 60e6
    for file in files:
        if file.suffix == ".json":
            assert '"_name_or_path"' not in file.read_text()
