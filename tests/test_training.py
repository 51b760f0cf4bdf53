"""The scripts that train the miniature models: that they resume exactly, and that every loss can be stepped."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from experiments.miniature import adapters, base, clip, perceptual, rare, training, vae
from experiments.miniature.captions import vary
from experiments.miniature.tokens import LENGTH, RARE, WORDS, clip_tokenizer, t5_tokenizer
from mergelab.miniature.world import STYLES, SUBJECTS, Scene, caption, sample


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Checkpoints go into a folder of the test's own."""
    for module in (training, vae, base, adapters, clip, perceptual):
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
    assert set(recipes) == {*SUBJECTS, *STYLES}
    for component, config in adapters.targets(name, parts, recipes[adapter]).items():
        parts[component].add_adapter(config)
    trained = [key for key, parameter in parts.named_parameters() if parameter.requires_grad]
    assert trained and all(".lora_" in key for key in trained)
    mse_loss(*kind.predict(pipeline, latents, captions, torch.Generator().manual_seed(0))).backward()
    assert any(parameter.grad.any() for parameter in parts.parameters() if parameter.requires_grad)


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
