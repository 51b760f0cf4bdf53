"""Adapters combined while an image is made, against denoising loops written out by hand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, EulerDiscreteScheduler

import mergelab as ml
from mergelab import miniature
from mergelab.pipelines.live import applied_to
from mergelab.pipelines.opening import denoiser
from tests.denoising import Weights, by_hand
from tests.live import latents, opened, state, text_adapter

STEPS = 3


@pytest.fixture(scope="module", params=["sdxl", "flux"])
def small(request: pytest.FixtureRequest) -> tuple[Any, str, list[ml.Adapter]]:
    """A pipeline, its name, and a subject and a style for it."""
    pair = miniature.pairs(request.param)[0]
    return opened(request.param), request.param, [ml.load(adapter.path) for adapter in pair]


def _flat(*weights: float) -> Weights:
    return [{"*": weight} for weight in weights]


def _equal(drawn: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(drawn, expected, atol=5e-4, rtol=1e-3)


def _drawn(pipe: Any, name: str, adapters: Sequence[Any], weights: Any, combination: Any, **keywords: Any) -> Any:
    """The latents with a combination attached, which leaves the stack and then nothing behind."""
    before = state(pipe)
    ml.apply(pipe, adapters, weights)
    applied = state(pipe)
    with combination.attach(pipe):
        drawn = latents(pipe, name, STEPS, **keywords)
        assert torch.equal(drawn, latents(pipe, name, STEPS, **keywords))  # every image begins anew
    assert state(pipe) == applied
    ml.remove(pipe)
    assert state(pipe) == before
    return drawn


def test_switch(small: Any) -> None:
    """One adapter at a time, at its weight, in the order given."""
    pipe, name, adapters = small
    drawn = _drawn(pipe, name, adapters, [0.9, 0.7], ml.switch(every=2))
    plan = [_flat(0.9, 0), _flat(0.9, 0), _flat(0, 0.7)]
    _equal(drawn, by_hand(pipe, name, adapters, lambda step, _: [plan[step]], STEPS))


def test_composite(small: Any) -> None:
    """The mean of guided scores is the guidance of the mean; text encoders keep the stack."""
    pipe, name, adapters = small
    given = [*adapters, text_adapter(pipe, name)]
    drawn = _drawn(pipe, name, given, [0.9, 0.7, 0.5], ml.composite())
    passes = [_flat(0.9, 0, 0), _flat(0, 0.7, 0), _flat(0, 0, 0)]
    text = [{"*": 0.0}, {"*": 0.0}, {"*": 0.5}]
    _equal(drawn, by_hand(pipe, name, given, lambda *_: passes, STEPS, text=text))


def test_klora(small: Any) -> None:
    """Each layer's choice worked out from dense changes; both kinds of choice occur, and change over the steps."""
    pipe, name, adapters = small
    weights = (0.9, 0.7)
    dense = [
        {key: w * layer.delta_weight().abs() for key, layer in a.layers.items()} for w, a in zip(weights, adapters)
    ]
    layers = list(dict.fromkeys([*dense[0], *dense[1]]))
    both = [key for key in layers if key in dense[0] and key in dense[1]]
    gamma = sum(float(dense[0][key].sum() / dense[1][key].sum()) for key in both) / len(both)
    chosen: list[tuple[bool, ...]] = []

    def plan(step: int, steps: int) -> list[Weights]:
        scale, subjects = 1.5 * step / steps + 0.5, []
        for key in both:
            k = adapters[0].layers[key].rank * adapters[1].layers[key].rank
            first, second = (sorted(d[key].flatten().tolist())[-k:] for d in dense)
            subjects.append(sum(first) / gamma > scale * sum(second))
        chosen.append(tuple(subjects))
        own = {key: (float(s), float(not s)) for key, s in zip(both, subjects)}
        return [[{key: w * own.get(key, (1.0, 1.0))[i] for key in layers} for i, w in enumerate(weights)]]

    expected = by_hand(pipe, name, adapters, plan, STEPS)
    assert len(set(chosen)) == STEPS and any(any(c) and not all(c) for c in chosen)
    _equal(_drawn(pipe, name, adapters, weights, ml.klora()), expected)


def test_schedule(small: Any) -> None:
    """Points with lines between them, a function of the progress, a number: times the weight of every layer."""
    pipe, name, adapters = small
    half = {"sdxl": "unet.up_blocks.*", "flux": "transformer.single_transformer_blocks.*"}[name]
    drawn = _drawn(
        pipe, name, adapters, [{"*": 0.9, half: 0.4}, 0.7], ml.schedule([[1.0, 0.0], lambda progress: progress**2])
    )
    courses = [(1.0, 0.0), (0.5, 0.25), (0.0, 1.0)]

    def plan(step: int, steps: int) -> list[Weights]:
        first, second = courses[step]
        return [[{"*": 0.9 * first, half: 0.4 * first}, {"*": 0.7 * second}]]

    _equal(drawn, by_hand(pipe, name, adapters, plan, STEPS))


def test_laws(small: Any) -> None:
    """A constant schedule is the stack; of one adapter, switch and composite are that adapter."""
    pipe, name, adapters = small
    for given, combinations in ((adapters, [ml.schedule([1, 1.0])]), (adapters[:1], [ml.switch(), ml.composite()])):
        ml.apply(pipe, given)
        stack = latents(pipe, name, STEPS)
        for combination in combinations:
            with combination.attach(pipe):
                assert torch.equal(latents(pipe, name, STEPS), stack)
        ml.remove(pipe)


@pytest.mark.parametrize("scheduler", [DDIMScheduler, DPMSolverMultistepScheduler])
def test_other_schedulers(scheduler: type) -> None:
    """The step is known with a scheduler that counts, and with one that does not."""
    pipe = opened("sdxl")
    pipe.scheduler = scheduler.from_config(pipe.scheduler.config)
    adapters = [ml.load(f"miniature/sdxl/{name}") for name in ("ghost", "day")]
    drawn = _drawn(pipe, "sdxl", adapters, None, ml.switch(every=1))
    plan = [_flat(1, 0), _flat(0, 1), _flat(1, 0)]
    _equal(drawn, by_hand(pipe, "sdxl", adapters, lambda step, _: [plan[step]], STEPS))


@pytest.mark.parametrize("scheduler", [DDIMScheduler, EulerDiscreteScheduler, DPMSolverMultistepScheduler])
def test_image_to_image_begins_in_the_middle(scheduler: type) -> None:
    """Steps count from the first that is taken, whether the scheduler knows it or not; also after one that stopped."""
    from diffusers import StableDiffusionXLImg2ImgPipeline

    pipe = StableDiffusionXLImg2ImgPipeline(**opened("sdxl").components)
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = scheduler.from_config(pipe.scheduler.config)
    seen: list[tuple[int, int]] = []

    class Watched(ml.Switch):
        def rule(self, applied: Any) -> Any:
            inner = super().rule(applied)
            return lambda step, steps: seen.append((step, steps)) or inner(step, steps)

    ml.apply(pipe, ["miniature/sdxl/ghost"])
    with Watched().attach(pipe):
        image = {"image": torch.zeros(1, 3, 48, 48), "num_inference_steps": 6, "output_type": "latent"}
        pipe("a sks", strength=0.5, **image)
        assert seen == [(0, 3), (1, 3), (2, 3)]
        seen.clear()
        with pytest.raises(KeyboardInterrupt):
            pipe("a sks", strength=1.0, callback_on_step_end=_stop, **image)
        pipe("a sks", strength=0.5, **image)
    assert seen == [(0, 6), (0, 3), (1, 3), (2, 3)]


def test_weights_set_in_between_do_not_switch_a_combination_off() -> None:
    """`pipe.set_adapters` makes all active; with the next image the rule is at work again."""
    pipe = opened("sdxl")
    names = ml.apply(pipe, ["miniature/sdxl/ghost", "miniature/sdxl/day"])
    with ml.switch(every=100).attach(pipe):
        switched = latents(pipe, "sdxl")
        pipe.set_adapters(list(names), [1.0, 1.0])
        assert torch.equal(latents(pipe, "sdxl"), switched)


def _stop(*_: Any) -> Any:
    raise KeyboardInterrupt


def test_an_error_within_an_image_is_left_behind() -> None:
    """A callback that raises: the next image is whole, and detaching gives the stack back."""
    pipe = opened("sdxl")
    ml.apply(pipe, ["miniature/sdxl/ghost", "miniature/sdxl/day"])
    stack = latents(pipe, "sdxl")

    attached = ml.switch(every=1).attach(pipe)
    whole = latents(pipe, "sdxl")
    with pytest.raises(KeyboardInterrupt):
        latents(pipe, "sdxl", callback_on_step_end=_stop)
    assert torch.equal(latents(pipe, "sdxl"), whole)
    attached.detach()
    attached.detach()
    assert torch.equal(latents(pipe, "sdxl"), stack)


def test_what_is_refused() -> None:
    """Options out of range, too many adapters or none, a second combination."""
    for make, sentence in (
        (lambda: ml.switch(every=0), "every=0: expected a whole number of at least 1"),
        (lambda: ml.switch(every=True), "every=True"),
        (lambda: ml.klora(alpha=float("nan")), "alpha=nan"),
        (lambda: ml.schedule(1.0), "factors=1.0: expected a list"),
        (lambda: ml.schedule([1.0, []]), r"factors\[1\] is empty"),
        (lambda: ml.schedule([[1.0, "0"]]), r"factors\[0\]: '0': expected 0 or a finite number"),
        (lambda: ml.schedule(["01"]), r"factors\[0\]: '0'"),
        (lambda: ml.schedule([lambda _: float("inf")]).at(0, 2), r"factors\[0\]: inf"),
    ):
        with pytest.raises(ml.OptionError, match=sentence):
            make()
    pipe = opened("sdxl")
    with pytest.raises(ml.OptionError, match=r"no adapter is active in the UNet2DConditionModel.*ml.apply"):
        ml.switch().attach(pipe)
    ml.apply(pipe, [text_adapter(pipe, "sdxl")])
    with pytest.raises(ml.OptionError, match="no adapter is active"):
        ml.switch().attach(pipe)
    ml.remove(pipe)
    ml.apply(pipe, ["miniature/sdxl/ghost"] * 3)
    with pytest.raises(ml.OptionError, match=r"two adapters.* 3 are applied \(ghost_1, ghost_2_2, ghost_3_3\)"):
        ml.klora().attach(pipe)
    with pytest.raises(ml.OptionError, match="factors has 1 entries for 3 adapters"):
        ml.schedule([1]).attach(pipe)
    attached = ml.switch().attach(pipe)
    with pytest.raises(ml.OptionError, match="another combination is attached"):
        ml.composite().attach(pipe)
    ml.remove(pipe)
    assert applied_to(denoiser(pipe)) is None and not pipe.unet._forward_hooks and not pipe.unet._forward_pre_hooks
    attached.detach()
