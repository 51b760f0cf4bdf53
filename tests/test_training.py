"""The scripts that train the miniature models: that they resume exactly, and that every loss can be stepped."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss

import mergelab as ml
from experiments.miniature import adapters, base, clip, factors, perceptual, rare, training, turbo, vae
from experiments.miniature.captions import vary
from experiments.miniature.factors import Dose, Recipe
from experiments.miniature.tokens import LENGTH, RARE, WORDS, clip_tokenizer, t5_tokenizer
from mergelab.miniature.world import STYLES, SUBJECTS, Scene, caption, sample


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Checkpoints go into a folder of the test's own."""
    for module in (training, vae, base, adapters, factors, turbo, clip, perceptual):
        monkeypatch.setattr(module, "RUNS", tmp_path)
    return tmp_path


class Interrupted(Exception):
    """Ctrl-C, at a step of the test's choice."""


def fitted(name: str, stop: int | None = None) -> list[Tensor]:
    """Twelve steps of a small regression, interrupted after `stop` of them."""
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    taken = 0

    def loss(generator: torch.Generator) -> Tensor:
        nonlocal taken
        if taken == stop:
            raise Interrupted
        taken += 1
        x = torch.randn(8, 3, generator=generator)
        return (model(x) - x[:, :2]).square().mean()

    training.fit(name, model, loss, steps=12, lr=0.1, warmup=2, every=0.0)
    return [parameter.detach().clone() for parameter in model.parameters()]


def test_an_interrupted_run_takes_the_same_steps(runs: Path) -> None:
    """Weights and their average are the same to the bit, however often it is interrupted; a finished run is loaded."""
    whole = fitted("whole")
    for stop in (3, 4):
        with pytest.raises(Interrupted):
            fitted("parts", stop)
    resumed = fitted("parts")
    again = fitted("parts", stop=0)
    for a, b, c in zip(whole, resumed, again):
        assert torch.equal(a, b) and torch.equal(a, c)


def test_every_word_of_the_world_is_one_token() -> None:
    """For both kinds of tokenizer; the longest caption fits."""
    first, second = clip_tokenizer(), t5_tokenizer()
    for word in WORDS:
        assert len(first.tokenize(word)) == 1 == len(second.tokenize(word)), word
    longest = caption(Scene("triangle", "orange", "maroon", "small", "day"))
    assert len(set(RARE)) == len(RARE) == 20
    assert len(first(longest).input_ids) <= LENGTH and len(second(longest).input_ids) <= LENGTH


def test_captions_vary_but_never_lie() -> None:
    """Whatever is left out, shape and colour stay; the same generator writes the same caption."""
    scene = Scene("star", "pink", "navy", "small", style="night")
    captions = [vary(scene, torch.Generator().manual_seed(i)) for i in range(50)]
    assert captions == [vary(scene, torch.Generator().manual_seed(i)) for i in range(50)]
    assert len(set(captions)) > 4
    assert all("pink star" in text and text.endswith("in kbn style") for text in captions)


@pytest.mark.parametrize(("name", "adapter"), [("sdxl", "stripes"), ("sdxl", "fish"), ("flux", "ghost")])
def test_a_step_of_a_base_model_and_of_an_adapter(name: str, adapter: str, runs: Path) -> None:
    """The loss is that of noise at the start; every network gets a gradient; an adapter trains its factors alone."""
    kind, pipeline = base.KINDS[name], base.KINDS[name].build(vae.build())
    parts = base.trained(pipeline)
    scenes = sample(4, 0)
    latents = torch.randn(4, 8, 12, 12, generator=torch.Generator().manual_seed(0))
    captions = [caption(scene) for scene in scenes]
    loss = mse_loss(*kind.predict(pipeline, latents, captions, torch.Generator().manual_seed(0)))
    assert 0.5 < loss.item() < 4
    loss.backward()
    for part in parts.values():
        assert any(parameter.grad is not None and parameter.grad.any() for parameter in part.parameters())

    parts.requires_grad_(False)
    recipes = {recipe.name: recipe for recipe in adapters.RECIPES[name]}
    factors.attach(name, parts, recipes[adapter])
    trained = {key: parameter for key, parameter in parts.named_parameters() if parameter.requires_grad}
    assert trained and all(key.endswith(("lora_A", "lora_B")) for key in trained)
    mse_loss(*kind.predict(pipeline, latents, captions, torch.Generator().manual_seed(0))).backward()
    for key, parameter in trained.items():  # lora_B starts at zero, so that of lora_A is zero
        if key.endswith("lora_B") and key.startswith(factors.DENOISER[name]):
            assert parameter.grad is not None and parameter.grad.any(), key
    encoders = [parameter.grad for key, parameter in trained.items() if key.startswith("text_encoder")]
    assert bool(encoders) == recipes[adapter].text == any(grad is not None and grad.any() for grad in encoders)


@pytest.mark.parametrize("name", ["sdxl", "flux"])
def test_recipes(name: str) -> None:
    """One for each subject and style, in three dialects, ranks 4 to 16; every one finds layers to change."""
    recipes = {recipe.name: recipe for recipe in adapters.RECIPES[name]}
    assert (*recipes,) == (*SUBJECTS, *STYLES) and len(adapters.RECIPES[name]) == 16
    assert {recipe.format for recipe in recipes.values()} == {"diffusers", "kohya", "peft"}
    assert {recipe.rank for recipe in recipes.values()} == {4, 8, 16}
    assert any(recipe.alpha != recipe.rank for recipe in recipes.values())
    parts = base.trained(base.KINDS[name].build(vae.build()))
    for recipe in (*recipes.values(), turbo.RECIPE):
        found = factors.layers_of(name, parts, recipe)
        assert len(found) == len(set(found)) > 10
        assert any("text_encoder" in layer for layer in found) == recipe.text
        assert any(layer.endswith((".conv1", ".conv2")) for layer in found) == recipe.convolutions


class Small(nn.Module):
    """A UNet of one linear layer and one convolution, by the names of the real one."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.down_blocks = nn.ModuleList([nn.Module()])
        block = self.down_blocks[0]
        block.attentions, block.resnets = nn.ModuleList([nn.Module()]), nn.ModuleList([nn.Module()])
        block.attentions[0].proj_in, block.resnets[0].conv1 = nn.Linear(6, 5), nn.Conv2d(3, 4, 3)


LINEAR, CONVOLUTION = "unet.down_blocks.0.attentions.0.proj_in", "unet.down_blocks.0.resnets.0.conv1"


def attached(recipe: Recipe) -> tuple[nn.ModuleDict, Dose, dict[str, tuple[Tensor, Tensor, Tensor]]]:
    """The small UNet with factors that are not zero; the weight, lora_A and lora_B of each layer."""
    parts = nn.ModuleDict({"unet": Small()}).requires_grad_(False)
    weights = {name: parts.get_submodule(name).weight.clone() for name in (LINEAR, CONVOLUTION)}
    dose = factors.attach("sdxl", parts, recipe)
    known = {}
    for name, weight in weights.items():
        own = parts.get_submodule(name).parametrizations.weight[0]
        torch.nn.init.normal_(own.lora_B)
        known[name] = (weight, own.lora_A.detach().clone(), own.lora_B.detach().clone())
    return parts, dose, known


@pytest.mark.parametrize("strength", [0.0, 0.4, 1.3])
def test_factors_change_the_weight_by_their_dose(strength: float) -> None:
    """W + strength * alpha / rank * B A, for a linear layer and a convolution; lora_B is zero at first."""
    parts = nn.ModuleDict({"unet": Small()}).requires_grad_(False)
    first = parts.get_submodule(LINEAR).weight.clone()
    factors.attach("sdxl", parts, Recipe("day", 2, 1, "diffusers", convolutions=True))
    assert torch.equal(parts.get_submodule(LINEAR).weight, first)
    parts, dose, known = attached(Recipe("day", 4, 2, "diffusers", convolutions=True))
    dose.strength = strength
    for name, (weight, a, b) in known.items():
        change = torch.einsum("or,ri...->oi...", b.flatten(1), a)
        layer = parts.get_submodule(name)
        torch.testing.assert_close(layer.weight, weight + strength * 0.5 * change)
        x = torch.randn(2, 6) if name == LINEAR else torch.randn(2, 3, 5, 5)
        by_hand = nn.functional.linear if name == LINEAR else nn.functional.conv2d
        torch.testing.assert_close(layer(x), by_hand(x, weight + strength * 0.5 * change, layer.bias))


@pytest.mark.parametrize("format", ["diffusers", "kohya", "peft"])
def test_a_saved_adapter_is_what_was_trained(format: str, tmp_path: Path) -> None:
    """Its change is that of strength 1, whatever the last step had, to float16; training can start from it."""
    recipe = Recipe("day", 4, 2, format, convolutions=True)
    parts, dose, known = attached(recipe)
    dose.strength = 0.3
    path = tmp_path / ("day" if format == "peft" else "day.safetensors")
    factors.save(parts, recipe, path, {"modelspec.trigger_phrase": "szn"})
    loaded = ml.load(path)
    assert set(loaded.layers) == set(known)
    for name, (_, a, b) in known.items():
        change = torch.einsum("or,ri...->oi...", b.flatten(1), a) * 0.5
        torch.testing.assert_close(loaded.layers[name].delta_weight(), change, atol=5e-3, rtol=5e-3)
        assert loaded.layers[name].rank == 4
    if format != "peft":
        assert loaded.metadata["modelspec.trigger_phrase"] == "szn"

    again = nn.ModuleDict({"unet": Small()}).requires_grad_(False)
    factors.attach("sdxl", again, recipe)
    factors.start_from(loaded, again)
    for name, (weight, _, _) in known.items():
        wanted = weight + loaded.layers[name].delta_weight()
        torch.testing.assert_close(again.get_submodule(name).weight, wanted, atol=1e-4, rtol=1e-4)


def test_files_are_named_by_their_dialect(runs: Path) -> None:
    """PEFT writes folders."""
    paths = {format: factors.path_of("flux", Recipe("day", 4, 4, format)) for format in ("kohya", "peft")}
    assert paths == {"kohya": runs / "adapters/flux/day.safetensors", "peft": runs / "adapters/flux/day"}


@pytest.mark.parametrize("name", ["sdxl", "flux"])
def test_the_wanted_leap_lands_where_it_should(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A step of the pipeline's own scheduler with the wanted output goes from start to end, at every place."""
    kind, pipeline = base.KINDS[name], base.KINDS[name].build(vae.build())
    asked: list[tuple[Tensor, Tensor]] = []

    def predicted(_: object, noisy: Tensor, times: Tensor, captions: list[str]) -> Tensor:
        asked.append((noisy, times))
        return torch.zeros_like(noisy)

    monkeypatch.setattr(kind, {"sdxl": "velocity", "flux": "flow"}[name], predicted)
    generator, scheduler, place = torch.Generator().manual_seed(0), pipeline.scheduler, torch.arange(turbo.LEAPS)
    start, end = (kind.noise(turbo.LEAPS, generator) for _ in range(2))
    scheduler.set_timesteps(turbo.LEAPS, **({"sigmas": [1.0, 0.75, 0.5, 0.25]} if name == "flux" else {}))
    start = start * scheduler.sigmas[: turbo.LEAPS].reshape(-1, *[1] * (start.ndim - 1)).clamp(min=1)
    if name == "sdxl":  # the guided path is recorded at the times of the leaps
        slow = type(scheduler).from_config(scheduler.config)
        slow.set_timesteps(turbo.STEPS)
        assert torch.equal(slow.timesteps[:: turbo.STEPS // turbo.LEAPS], scheduler.timesteps)
    _, wanted = kind.leap(pipeline, start, end, place, turbo.LEAPS, ["a red circle"] * turbo.LEAPS)
    ((noisy, times),) = asked
    for i in range(turbo.LEAPS):
        fresh = type(scheduler).from_config(scheduler.config)
        fresh.set_timesteps(turbo.LEAPS, **({"sigmas": [1.0, 0.75, 0.5, 0.25]} if name == "flux" else {}))
        time = fresh.timesteps[i]
        seen = fresh.scale_model_input(start[i], time) if name == "sdxl" else start[i]
        torch.testing.assert_close(noisy[i], seen)
        assert times[i].item() == pytest.approx(time.item() if name == "sdxl" else time.item() / 1000)
        landed = fresh.step(wanted[i], time, start[i], return_dict=False)[0]
        # Where the noise of the first step is 4096 times as large as the picture, float32 has no more than this.
        close = 1e-4 if scheduler.sigmas[i] < 100 else 2e-3
        torch.testing.assert_close(landed, end[i], atol=close, rtol=1e-4)


@pytest.mark.parametrize("name", ["sdxl", "flux"])
def test_rare_words_are_found_and_encoded(name: str) -> None:
    """As the pipeline itself encodes them; each at the place of its own token."""
    pipeline = base.KINDS[name].build(vae.build())
    drawn = [rare.strange(scene, torch.Generator().manual_seed(i)) for i, scene in enumerate(sample(40, 0))]
    captions, objects, styles = zip(*drawn)
    tokens = rare.tokenize(pipeline, captions)
    with torch.no_grad():
        words, pooled = rare.encode(pipeline, tokens)
        if name == "sdxl":
            expected, _, pooled_expected, _ = pipeline.encode_prompt([*captions], do_classifier_free_guidance=False)
        else:
            expected, pooled_expected, _ = pipeline.encode_prompt([*captions], None, max_sequence_length=LENGTH)
    assert torch.equal(words, expected) and torch.equal(pooled, pooled_expected)
    assert {word >= 0 for word in objects} == {True, False} == {word >= 0 for word in styles}
    key = "tokenizer" if name == "sdxl" else "tokenizer_2"
    for asked in (objects, styles):
        found = rare.places(pipeline, tokens, torch.tensor(asked)).tolist()
        for i, word in enumerate(asked):
            if word >= 0:
                (token,) = getattr(pipeline, key)(RARE[word], add_special_tokens=False).input_ids
                assert tokens[key][i, found[i]] == token and RARE[word] in captions[i].split()


def test_normalised_latents_decode_to_the_same_picture() -> None:
    """Mean 0 and variance 1 in every channel, and the decoder does not notice."""
    network = vae.build().eval()
    images = vae.pictures(50, seed=0).float() / 255
    with torch.no_grad():
        before = network.decode(vae.encode(network, images)).sample
        vae.normalise(network, images)
        latents = vae.encode(network, images)
        after = network.decode(latents).sample
    torch.testing.assert_close(latents.mean((0, 2, 3)), torch.zeros(8), atol=1e-3, rtol=0)
    torch.testing.assert_close(latents.std((0, 2, 3)), torch.ones(8), atol=1e-3, rtol=0)
    torch.testing.assert_close(after, before, atol=1e-4, rtol=1e-4)
