"""Fusing in a live pipeline: equal to the stack that diffusers computes, and taken back bit for bit."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import mergelab as ml
from mergelab import miniature
from mergelab.layer import BIAS_SUFFIX
from mergelab.pipelines import originals
from mergelab.pipelines.opening import quietly
from tests.fused import WEIGHTS, kept, loaded, opened, same, state
from tests.live import stack

PROMPT = "a large sks on a navy background in szn style"
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
# How far apart two images in [0, 1] may be on average: the stack rounds at every step, fused weights once.
TOLERANCE = {torch.float32: 1e-4, torch.float16: 0.01, torch.bfloat16: 0.04}


def image(pipe: Any, kind: str) -> Tensor:
    # In float16 the pipeline of SDXL casts its own decoder, which is none of the weights in question.
    output = "latent" if kind == "sdxl" and pipe.unet.dtype == torch.float16 else "pt"
    settings = miniature.settings(kind) | {"num_inference_steps": 1, "output_type": output}
    return pipe(PROMPT, generator=torch.Generator().manual_seed(0), **settings).images[0].float()


@pytest.fixture(autouse=True)
def nothing_kept() -> None:
    """Whatever pipelines another test has left."""
    originals._RECORDS.clear()


@pytest.fixture
def pipe() -> Any:
    """The small SDXL, as it was loaded."""
    return opened("sdxl")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", miniature.PIPELINES)
def test_fused_images_are_those_of_the_stack_and_unfused_ones_the_base_models(kind: str, dtype: torch.dtype) -> None:
    """1, 2 and 5 adapters, text encoders included; the stack is diffusers' own."""
    pipe = opened(kind, dtype)
    base, before = image(pipe, kind), state(pipe)
    for count in (1, 2, 5):
        adapters = loaded(kind, count)
        stack(pipe, [w * a for a, w in zip(adapters, WEIGHTS)])
        stacked = image(pipe, kind)
        stack(pipe, [])
        plain = image(pipe, kind)  # in float16 what diffusers has been there changes the last bits on some processors
        with ml.fused(pipe, adapters, WEIGHTS[:count]):
            drawn = image(pipe, kind)
        assert (drawn - stacked).abs().mean() < TOLERANCE[dtype]
        assert (drawn - base).abs().mean() > 3 * (drawn - stacked).abs().mean()
        assert same(state(pipe), before)
    assert torch.equal(image(pipe, kind), plain)
    assert kept() == 0


def test_weights_in_an_array(pipe: Any) -> None:
    """As `merge` takes them."""
    adapters = loaded("sdxl", 2)
    with ml.fused(pipe, adapters, [0.5, 1.0]):
        listed = state(pipe)
    for weights in (np.array([0.5, 1.0]), torch.tensor([0.5, 1.0])):
        with ml.fused(pipe, adapters, weights):
            assert same(state(pipe), listed)
    with pytest.raises(ml.OptionError, match=r"ml\.fuse is for loaded pipelines"):
        ml.fuse_checkpoint(pipe, adapters, "out")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_weights_are_the_exact_sum_rounded_once(dtype: torch.dtype) -> None:
    """Against float64: no entry is further away than half a unit in the last place, and one rounding of float32."""
    pipe = opened("sdxl", dtype)
    adapters = loaded("sdxl", 5)
    name = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    module = pipe.unet.get_submodule(name.removeprefix("unet."))
    exact = module.weight.double()
    for adapter, weight in zip(adapters, WEIGHTS):
        if name in adapter.layers:
            factors = adapter.matrices(name)
            exact = exact + weight * (factors.B.double() @ factors.A.double())
    ml.fuse(pipe, adapters, WEIGHTS)
    unit = torch.finfo(dtype).eps * exact.abs().clamp(min=torch.finfo(dtype).tiny)
    limit = unit / 2 + 1e-7 if dtype != torch.float32 else torch.full_like(unit, 1e-6)
    assert ((module.weight.double() - exact).abs() <= limit).all()


@cache
def fused_alone(subset: tuple[int, ...]) -> dict[str, Tensor]:
    """The tensors of a pipeline into which nothing else was ever fused."""
    pipe, adapters = opened("sdxl", torch.bfloat16), loaded("sdxl", 3)
    if subset:
        ml.fuse(pipe, [adapters[i] for i in subset], [WEIGHTS[i] for i in subset])
    return state(pipe)


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_fusings_are_taken_back_in_any_order(order: tuple[int, ...]) -> None:
    """At each step the weights are those of the others alone, to the last bit; so are several fused as one."""
    pipe = opened("sdxl", torch.bfloat16)
    adapters = loaded("sdxl", 3)
    before = state(pipe)
    fusings = [ml.fuse(pipe, adapter, weight) for adapter, weight in zip(adapters, WEIGHTS)]
    left = [0, 1, 2]
    for index in order:
        fusings[index].unfuse()
        left.remove(index)
        assert same(state(pipe), fused_alone(tuple(left)))
    assert same(state(pipe), before)


@pytest.mark.parametrize("keep", ["device", "cpu", "folder"])
def test_originals_are_kept_where_the_caller_says(pipe: Any, tmp_path: Path, keep: str) -> None:
    """And are gone when they are not needed."""
    before = state(pipe)
    active = ml.fuse(pipe, "miniature/sdxl/ghost", keep=tmp_path if keep == "folder" else keep)
    assert kept() == len(active.tensors) == 48
    assert len(list(tmp_path.iterdir())) == (48 if keep == "folder" else 0)
    assert repr(active) == "Fused ghost (48 tensors of unet)"
    active.unfuse()
    active.unfuse()
    assert repr(active) == "Taken back: ghost (48 tensors of unet)"
    assert not active.active
    assert kept() == len(list(tmp_path.iterdir())) == 0
    assert same(state(pipe), before)


def test_originals_go_with_the_pipeline(tmp_path: Path) -> None:
    """One that is dropped while something is fused keeps nothing alive."""
    pipe = opened("sdxl")
    ml.fuse(pipe, "miniature/sdxl/ghost", keep=tmp_path)
    assert kept() == len(list(tmp_path.iterdir())) == 48
    del pipe
    assert kept() == len(list(tmp_path.iterdir())) == 0


def test_weights_by_component_and_pattern(pipe: Any) -> None:
    """A component at 0 is left alone."""
    before = state(pipe)
    active = ml.fuse(pipe, "miniature/sdxl/fish", {"unet": 0.5, "text_encoder": 0, "text_encoder_2": 0})
    assert {name.partition(".")[0] for name in active.tensors} == {"unet"}
    changed = {key.partition(".")[0] for key, value in state(pipe).items() if not torch.equal(value, before[key])}
    assert changed == {"unet"}


def test_one_model_of_a_pipeline(pipe: Any) -> None:
    """As the pipeline, for adapters of one component; of several it has to be said which."""
    twin = opened("sdxl")
    ml.fuse(pipe, "miniature/sdxl/ghost")
    ml.fuse(twin.unet, "miniature/sdxl/ghost")
    assert same(state(pipe), state(twin))
    with pytest.raises(ml.OptionError, match=r"one model, UNet2DConditionModel; give the pipeline, or adapter\.select"):
        ml.fuse(pipe.unet, "miniature/sdxl/fish")
    ml.fuse(pipe.text_encoder, ml.load("miniature/sdxl/fish").select("text_encoder"))


def convolution(pipe: Any) -> ml.Adapter:
    """An adapter of a convolution and of its bias."""
    outputs, inputs = pipe.unet.conv_in.weight.shape[:2]
    layer = ml.LoraLayer(torch.randn(3, inputs, 3, 3), torch.randn(outputs, 3, 1, 1), 0.1)
    bias = torch.randn(outputs)
    return ml.Adapter({"unet.conv_in": layer}, {f"unet.conv_in{BIAS_SUFFIX}": bias})


def test_convolutions_and_biases(pipe: Any) -> None:
    """Both are changed at the weight of their layer."""
    adapter = convolution(pipe)
    module = pipe.unet.conv_in
    weight, bias = module.weight.clone(), module.bias.clone()
    active = ml.fuse(pipe, adapter, 0.5)
    torch.testing.assert_close(module.weight, weight + 0.5 * adapter.layers["unet.conv_in"].delta_weight())
    torch.testing.assert_close(module.bias, bias + 0.5 * adapter.extras[f"unet.conv_in{BIAS_SUFFIX}"])
    pipe.unet.to(memory_format=torch.channels_last)  # the same values, as on another device
    active.unfuse()
    assert torch.equal(module.weight, weight)
    assert torch.equal(module.bias, bias)


def test_beside_active_adapters(pipe: Any) -> None:
    """Weights that PEFT wraps are fused into as any, while an adapter is active and after it has gone."""
    before, base = state(pipe), image(pipe, "sdxl")
    adapters = loaded("sdxl", 2)
    with ml.fused(pipe, adapters):
        both = image(pipe, "sdxl")
    stack(pipe, adapters[1:])
    active = ml.fuse(pipe, adapters[0])
    assert (image(pipe, "sdxl") - both).abs().max() < 1e-3
    stack(pipe, [])
    active.unfuse()
    assert same(state(pipe), before)
    assert torch.equal(image(pipe, "sdxl"), base)


def test_a_bar_is_shown_where_it_is_asked_for(pipe: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """And by default on a terminal only."""
    ml.fuse(pipe, "miniature/sdxl/ghost", progress=False)
    ml.fuse(pipe, "miniature/sdxl/ghost")
    assert "fusing" not in capsys.readouterr().err
    with ml.fused(pipe, "miniature/sdxl/ghost", progress=True):
        assert "fusing: 100%" in capsys.readouterr().err


def test_an_overflow_of_float16_is_an_error() -> None:
    """And nothing is changed."""
    pipe = opened("sdxl", torch.float16)
    before = state(pipe)
    with pytest.raises(ml.LayerError, match=r"unet\..*\.weight: the changed weights are not finite in float16"):
        ml.fuse(pipe, "miniature/sdxl/ghost", 1e8)
    assert same(state(pipe), before)
    assert kept() == 0


def refuse(pipe: Any, match: str, loras: Any = "miniature/sdxl/ghost", kind: type[Exception] = ml.OptionError) -> None:
    """Refused, and nothing is kept."""
    with pytest.raises(kind, match=match):
        ml.fuse(pipe, loras)
    assert kept() == 0


def test_what_cannot_be_fused_is_refused_by_name(pipe: Any, tmp_path: Path) -> None:
    """Before anything is changed."""
    before = state(pipe)
    ghost = ml.load("miniature/sdxl/ghost")
    name = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    layer = ghost.layers[name]
    wide = ml.LoraLayer(torch.ones(1, 7), torch.ones(7, 1))
    refuse("miniature/sdxl", "expected a loaded diffusers pipeline or one of its models, found str")
    refuse(pipe, "ghost is for flux, and the pipeline is sdxl", "miniature/flux/ghost", ml.ArchitectureError)
    alien = replace(ghost, architecture="sd15")  # the same names
    refuse(pipe, "ghost is for sd15, and the pipeline is sdxl", alien, ml.ArchitectureError)
    with pytest.raises(ml.ArchitectureError, match="ghost is for sd15"):
        ml.fuse(pipe.unet, alien)
    text = ml.Adapter({"text_encoder.model.nothing": wide})
    refuse(pipe, "another base model: StableDiffusionXLPipeline has none of its", text, ml.ArchitectureError)
    refuse(pipe, "has no such module", ml.Adapter({name: layer, "unet.foo": wide}), ml.LayerError)
    refuse(pipe, r"a change of shape \(7, 7\), expected \(", ml.Adapter({name: wide}), ml.LayerError)
    refuse(
        pipe,
        "a change of its bias, and the module has none",
        ml.Adapter({name: layer}, {name + BIAS_SUFFIX: torch.ones(layer.shape[0])}),
        ml.LayerError,
    )
    refuse(
        pipe,
        "found LayerNorm",
        ml.Adapter({"unet.mid_block.attentions.0.transformer_blocks.0.norm1": wide}),
        ml.LayerError,
    )
    refuse(
        pipe,
        r"embedding\.x the first; adapter\.without_extras",
        ml.Adapter({name: layer}, {"embedding.x": torch.ones(3)}),
    )
    with pytest.raises(ml.OptionError, match="every weight is 0"):
        ml.fuse(pipe, ghost, 0)
    for keep in ("gpu", tmp_path / "none", None):
        with pytest.raises(ml.OptionError, match="expected 'device', 'cpu' or a folder that exists"):
            ml.fuse(pipe, ghost, keep=keep)
    damaged = ml.Adapter({name: ml.LoraLayer(layer.lora_A * float("nan"), layer.lora_B)})
    refuse(pipe, "NaN or infinite", [ghost, damaged], ml.LayerError)
    assert same(state(pipe), before)


def test_offloaded_and_quantised_weights_are_refused(pipe: Any) -> None:
    """By name: layer by layer, cast for storage, in groups, a parameter of another class, one tensor twice."""
    accelerate = pytest.importorskip("accelerate")
    accelerate.cpu_offload(pipe.unet, execution_device=torch.device("cpu"))
    refuse(pipe, "is offloaded: its values are not in the model")
    pipe = opened("sdxl")
    pipe.unet.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)
    refuse(pipe, "is float8_e4m3fn, expected one of float16")
    pipe = opened("sdxl")
    pipe.unet.enable_group_offload(torch.device("cpu"), torch.device("cpu"), offload_type="leaf_level")
    refuse(pipe, "unet is offloaded in groups")

    class Quantised(nn.Parameter):
        """What torchao and bitsandbytes have for a parameter."""

    pipe = opened("sdxl")
    module = pipe.unet.mid_block.attentions[0].transformer_blocks[0].attn1.to_q
    module.weight = Quantised(module.weight.data)
    refuse(pipe, r"to_q\.weight is quantised or computed \(Quantised of Linear\)")
    pipe = opened("sdxl")
    attention = pipe.unet.mid_block.attentions[0].transformer_blocks[0].attn1
    attention.to_q.weight = attention.to_k.weight
    refuse(pipe, "are one tensor of the model")


def drawn_compiled(pipe: Any, kind: str, compile: Callable[[], None]) -> None:
    """Compiled with adapters in it, a model draws the same up to rounding; nothing is compiled again when they are
    taken back or fused anew, and what is drawn then is the same to the last bit each time."""
    base, before = image(pipe, kind), state(pipe)
    active = ml.fuse(pipe, loaded(kind, 2))
    drawn = image(pipe, kind)
    compile()
    compiled = image(pipe, kind)
    torch.testing.assert_close(compiled, drawn, atol=1e-4, rtol=0)
    with torch.compiler.set_stance("fail_on_recompile"):
        active.unfuse()
        compiled_base = image(pipe, kind)
        torch.testing.assert_close(compiled_base, base, atol=1e-4, rtol=0)
        with ml.fused(pipe, loaded(kind, 2)):
            assert torch.equal(image(pipe, kind), compiled)
        assert torch.equal(image(pipe, kind), compiled_base)
    with torch.compiler.set_stance("force_eager"):
        assert torch.equal(image(pipe, kind), base)
    after = {key.replace("_orig_mod.", ""): value for key, value in state(pipe).items()}
    assert same(after, before)
    torch.compiler.reset()


@pytest.mark.parametrize("kind", miniature.PIPELINES)
def test_compiled_models(kind: str) -> None:
    """The whole of the UNet or transformer, without the kernels, which take a minute for it."""
    pipe = opened(kind)
    component = "unet" if kind == "sdxl" else "transformer"
    compiled = torch.compile(getattr(pipe, component), backend="aot_eager")
    drawn_compiled(pipe, kind, lambda: setattr(pipe, component, compiled))


def test_compiled_kernels(pipe: Any) -> None:
    """The repeated blocks of the UNet by the default backend, as `memory.compile` of an evaluation has it."""
    drawn_compiled(pipe, "sdxl", lambda: pipe.unet.compile_repeated_blocks(fullgraph=True))


def test_a_fused_pipeline_is_saved_and_copied(pipe: Any, tmp_path: Path) -> None:
    """As any other: the files hold the changed weights; a copy is not taken back with its model."""
    with ml.fused(pipe, loaded("sdxl", 2)):
        fused = state(pipe)
        pipe.save_pretrained(tmp_path / "fused")
        twin = copy.deepcopy(pipe.unet)
    with quietly():
        again = type(pipe).from_pretrained(tmp_path / "fused")
    assert same(state(again), fused)
    assert all(torch.equal(value, fused[f"unet.{key}"]) for key, value in twin.state_dict().items())
