"""Adapters active in a live pipeline, unmerged: what they draw, what is refused, and what is left of them."""

from __future__ import annotations

import copy
import warnings
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

import mergelab as ml
from mergelab import miniature
from mergelab.pipelines.adapters import check_bare
from tests.live import changed_by_hand, latents, opened, state, text_adapter


@pytest.fixture(scope="module", params=["sdxl", "flux"])
def small(request: pytest.FixtureRequest) -> tuple[Any, str, torch.Tensor]:
    """A pipeline, its name, and what it draws without adapters."""
    pipe = opened(request.param)
    return pipe, request.param, latents(pipe, request.param)


@pytest.fixture(scope="module")
def sdxl() -> Any:
    """The small SDXL, for what is refused."""
    return opened("sdxl")


def _adapters(name: str, count: int) -> list[ml.Adapter]:
    """Of mixed dialects, ranks and kinds."""
    shipped = miniature.adapters(name)
    styles = [adapter for adapter in shipped if adapter.kind == "style"]
    return [ml.load(adapter.path) for adapter in (shipped[0], *styles[:4])][:count]


@pytest.mark.parametrize("count", [1, 5])
def test_they_draw_what_changed_weights_draw(small: Any, count: int) -> None:
    """In every layer at the weight of its pattern, in UNet, transformer and text encoders; and leave no trace."""
    pipe, name, base = small
    adapters = [*_adapters(name, count), text_adapter(pipe, name)]
    blocks = {"sdxl": "unet.up_blocks.*", "flux": "transformer.single_transformer_blocks.*"}[name]
    weights = [{"*": 0.3 + 0.1 * i, blocks: -0.2 * i} for i in range(count)] + [{"*": 0.7, "text_encoder_2.*": 1.1}]
    before, chance = state(pipe), torch.get_rng_state()
    applied = ml.apply(pipe, adapters, weights)
    assert torch.equal(torch.get_rng_state(), chance)
    assert {x for part in pipe.get_list_adapters().values() for x in part} == set(applied)
    stacked = latents(pipe, name)
    ml.remove(pipe)
    assert state(pipe) == before
    assert torch.equal(latents(pipe, name), base)
    with changed_by_hand(pipe, adapters, weights):
        by_hand = latents(pipe, name)
    assert (by_hand - base).abs().max() > 0.05
    torch.testing.assert_close(stacked, by_hand, atol=2e-4, rtol=1e-3)


def test_they_are_those_that_diffusers_loads(small: Any) -> None:
    """Where it looks for any: not in the T5 of FLUX; `set_adapters` scales what was applied."""
    pipe, name, _ = small
    text = text_adapter(pipe, name)
    known = {key: layer for key, layer in text.layers.items() if key.partition(".")[0] in pipe._lora_loadable_modules}
    adapter = replace(_adapters(name, 1)[0] + replace(text, layers=known), source="both")
    (own,) = ml.apply(pipe, [adapter], [{"*": 0.5}])
    once = latents(pipe, name)
    pipe.set_adapters([own], [2.0])
    twice = latents(pipe, name)
    ml.remove(pipe)
    pipe.load_lora_weights(adapter.state_dict())
    torch.testing.assert_close(twice, latents(pipe, name), atol=1e-5, rtol=1e-5)
    pipe.set_adapters(pipe.get_active_adapters(), 0.5)
    torch.testing.assert_close(once, latents(pipe, name), atol=1e-5, rtol=1e-5)
    with pytest.raises(ml.OptionError, match="already carries adapters"):
        ml.apply(pipe, [adapter])
    with pytest.raises(ml.OptionError, match="did not make active: default_0"):
        ml.remove(pipe)
    pipe.unload_lora_weights()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype: torch.dtype) -> None:
    """Layers take the dtype of what they wrap; what float16 would lose is balanced, what it cannot hold refused."""
    pipe = opened("sdxl").to(dtype)
    base = latents(pipe, "sdxl")
    (ghost,) = _adapters("sdxl", 1)
    tiny = replace(
        ghost,
        layers={
            key: replace(layer, lora_A=layer.lora_A.float() * 2.0**-24, lora_B=layer.lora_B.float() * 2.0**24)
            for key, layer in ghost.layers.items()
        },
    )
    drawn = []
    for adapter in (ghost, tiny):
        ml.apply(pipe, [adapter])
        assert {p.dtype for p in pipe.unet.parameters()} == {dtype}
        drawn.append(latents(pipe, "sdxl"))
        ml.remove(pipe)
    assert (drawn[0] - base).abs().max() > 0.3
    torch.testing.assert_close(*drawn, atol=0.1, rtol=0.1)
    assert torch.equal(latents(pipe, "sdxl"), base)
    if dtype == torch.float16:
        huge = replace(
            ghost, layers={key: replace(x, lora_B=x.lora_B.float() * 1e7) for key, x in ghost.layers.items()}
        )
        before = state(pipe)
        with pytest.raises(ml.LayerError, match=r"ghost: unet\..* more than torch.float16 can hold; the pipeline comp"):
            ml.apply(pipe, [huge])
        assert state(pipe) == before


def test_a_weight_of_zero_leaves_a_layer_alone(sdxl: Any) -> None:
    """It is not wrapped, and need not be there."""
    adapter = _adapters("sdxl", 1)[0]
    absent = replace(
        adapter, layers={**adapter.layers, "text_encoder_3.x.q": text_adapter(sdxl, "sdxl").layers.popitem()[1]}
    )
    with pytest.raises(ml.LayerError, match=r"no module for 1 of \d+ layers, text_encoder_3.x.q the first; give them"):
        ml.apply(sdxl, [absent])
    ml.apply(sdxl, [absent, adapter], [{"*": 0, "unet.mid_block.*": 1.0}, 0])
    wrapped = {path for path, module in sdxl.unet.named_modules() if hasattr(module, "lora_A")}
    assert wrapped and all(path.startswith("mid_block") for path in wrapped)
    ml.remove(sdxl)


def test_what_is_refused_changes_nothing(sdxl: Any) -> None:
    """Each by a sentence that says where, what was expected and what to do."""
    ghost, day = _adapters("sdxl", 2)
    name, layer = next(iter(ghost.layers.items()))
    misfit = ml.LoraLayer(layer.lora_A[:, :3], layer.lora_B)
    damaged = replace(layer, lora_A=layer.lora_A * float("nan"))
    before = state(sdxl)
    for loras, weights, error, sentence in (
        ([ghost, replace(ghost, architecture="flux")], None, ml.ArchitectureError, "ghost#2 is for flux"),
        ([replace(ghost, extras={"unet.conv_in.bias": torch.ones(2)})], None, ml.FormatError, r"without_extras\(\)"),
        ([day, replace(ghost, layers={**ghost.layers, name: misfit})], None, ml.LayerError, f"layer {name} changes a"),
        (
            [day, replace(ghost, layers={**ghost.layers, name: damaged})],
            None,
            ml.LayerError,
            "that are NaN or infinite",
        ),
        ([ghost], [{"unet.nowhere.*": 1.0}], ml.OptionError, "matches no layer"),
        ([ghost], [1.0, 2.0], ml.OptionError, "weights has 2 values for 1 adapter"),
        ([], None, ml.OptionError, "expected at least 1 adapter"),
        (["miniature/sdxl/ghst"], None, ml.OptionError, "known: ghost"),
    ):
        with pytest.raises(error, match=sentence):
            ml.apply(sdxl, loras, weights)
        assert state(sdxl) == before
    with pytest.raises(ml.OptionError, match="expected a loaded diffusers pipeline"):
        ml.apply(sdxl.unet, [ghost])


def test_layers_that_are_offloaded_are_refused() -> None:
    """One by one, where nothing is left of a weight but its shape, and in groups."""
    pipe = opened("sdxl")
    kept, pipe.unet = pipe.unet, copy.deepcopy(pipe.unet).to("meta")
    before = state(pipe)
    with pytest.raises(ml.OptionError, match=r"unet\..*offloaded layer by layer; apply the adapters before"):
        ml.apply(pipe, _adapters("sdxl", 1))
    assert state(pipe) == before
    pipe.unet = kept
    cpu = torch.device("cpu")
    pipe.unet.enable_group_offload(onload_device=cpu, offload_device=cpu, offload_type="leaf_level")
    before = state(pipe)
    with pytest.raises(ml.OptionError, match="unet: its layers are offloaded in groups"):
        ml.apply(pipe, _adapters("sdxl", 1))
    assert state(pipe) == before


def test_offloaded_afterwards(sdxl: Any) -> None:
    """Layer by layer, which puts other parameters into the modules: taken away, they ask for gradients as before."""
    accelerate = pytest.importorskip("accelerate")
    pipe = type(sdxl)(**{**sdxl.components, "unet": copy.deepcopy(sdxl.unet)})
    pipe.unet.conv_in.weight.requires_grad_(False)
    asked = {name: parameter.requires_grad for name, parameter in pipe.unet.named_parameters()}
    weights = {name: parameter.detach().clone() for name, parameter in pipe.unet.named_parameters()}
    ml.apply(pipe, "miniature/sdxl/ghost", 0.5)
    accelerate.cpu_offload(pipe.unet, execution_device=torch.device("cpu"))
    ml.remove(pipe)
    assert {name: parameter.requires_grad for name, parameter in pipe.unet.named_parameters()} == asked
    accelerate.hooks.remove_hook_from_module(pipe.unet, recurse=True)
    assert {name: parameter.requires_grad for name, parameter in pipe.unet.named_parameters()} == asked
    assert all(torch.equal(parameter, weights[name]) for name, parameter in pipe.unet.named_parameters())


def test_one_adapter_needs_no_list(sdxl: Any) -> None:
    """Nor does its weight."""
    drawn = []
    for loras, weights in (
        ("miniature/sdxl/ghost", {"*": 1.0, "unet.up_blocks.*": 0.5}),
        (["miniature/sdxl/ghost"], None),
    ):
        assert ml.apply(sdxl, loras, weights) == ("ghost_1",)
        drawn.append(latents(sdxl, "sdxl"))
        ml.remove(sdxl)
    assert not torch.equal(*drawn)


class _Doubled(nn.Module):
    """A layer of somebody's own, with the weight of another."""

    def __init__(self, inner: nn.Linear) -> None:
        super().__init__()
        self.weight = inner.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.weight.T


def test_a_failure_half_way_is_undone(sdxl: Any) -> None:
    """A module that PEFT cannot wrap, in the last of the models: the others are as they were."""
    pipe = copy.copy(sdxl)
    text = text_adapter(sdxl, "sdxl")
    attention = sdxl.text_encoder_2.get_submodule("text_model.encoder.layers.0.self_attn")
    kept, attention.v_proj = attention.v_proj, _Doubled(attention.v_proj)
    try:
        before = state(pipe)
        with pytest.raises(ml.LayerError, match=r"text_\d: PEFT cannot wrap a module of CLIPTextModelWithProjection"):
            ml.apply(pipe, [*_adapters("sdxl", 2), text])
        assert state(pipe) == before
    finally:
        attention.v_proj = kept


def test_what_others_do_in_between(sdxl: Any) -> None:
    """Adapters unloaded by diffusers, applied again; another one loaded beside; removing twice; gradients asked for."""
    base = latents(sdxl, "sdxl")
    before = state(sdxl)
    sdxl.unet.conv_in.weight.requires_grad_(not sdxl.unet.conv_in.weight.requires_grad)
    asked = state(sdxl)
    assert asked != before
    ml.apply(sdxl, _adapters("sdxl", 1))
    sdxl.unload_lora_weights()
    ml.apply(sdxl, _adapters("sdxl", 2))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT's, that there are several adapters, and which is active afterwards
        sdxl.load_lora_weights(_adapters("sdxl", 1)[0].state_dict(), adapter_name="other")
        with pytest.raises(ml.OptionError, match=r"other; delete them first \(pipeline.delete_adapters"):
            ml.remove(sdxl)
        sdxl.delete_adapters(["other"])
    ml.remove(sdxl)
    ml.remove(sdxl)
    assert state(sdxl) == asked
    sdxl.unet.conv_in.weight.requires_grad_(not sdxl.unet.conv_in.weight.requires_grad)
    assert torch.equal(latents(sdxl, "sdxl"), base)


def test_adapters_that_diffusers_does_not_see() -> None:
    """Of a T5 alone: they are there, and not replaced in silence."""
    pipe = opened("flux")
    text = text_adapter(pipe, "flux")
    text = replace(text, layers={key: x for key, x in text.layers.items() if key.startswith("text_encoder_2")})
    before = state(pipe)
    ml.apply(pipe, [text])
    applied = state(pipe)
    assert not pipe.get_list_adapters() and applied != before
    with pytest.raises(ml.OptionError, match="already carries adapters, in a model where diffusers looks for none"):
        ml.apply(pipe, [text])
    with pytest.raises(ml.OptionError, match="already carries adapters, in a model"):  # as an evaluation asks
        check_bare(pipe)
    assert state(pipe) == applied
    ml.remove(pipe)
    assert state(pipe) == before


def test_a_compiled_model_is_changed_within(sdxl: Any) -> None:
    """`torch.compile` wraps a model; what it wraps is changed, and given back."""
    pipe = type(sdxl)(**sdxl.components)
    pipe.unet = torch.compile(sdxl.unet, backend="eager")
    before = state(pipe)
    ml.apply(pipe, _adapters("sdxl", 2))
    assert any("lora_A" in key for key in pipe.unet.state_dict())
    with ml.switch(every=1).attach(pipe):
        compiled = latents(pipe, "sdxl")
    ml.remove(pipe)
    assert state(pipe) == before
    torch.compiler.reset()
    pipe.unet = sdxl.unet
    ml.apply(pipe, _adapters("sdxl", 2))
    with ml.switch(every=1).attach(pipe):
        assert torch.equal(latents(pipe, "sdxl"), compiled)
    ml.remove(pipe)
