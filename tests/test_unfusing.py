"""Fusing taken back, whatever happened in between: failures, interruptions, what others did to the pipeline."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import mergelab as ml
from mergelab.layer import BIAS_SUFFIX
from mergelab.pipelines import originals
from tests.fused import kept, loaded, opened, same, state

ATTENTION = "unet.mid_block.attentions.0.transformer_blocks.0.attn1"


@pytest.fixture(autouse=True)
def nothing_kept() -> None:
    """Whatever pipelines another test has left."""
    originals._RECORDS.clear()


@pytest.fixture
def pipe() -> Any:
    """The small SDXL, as it was loaded."""
    return opened("sdxl")


def attention_of(pipe: Any) -> Any:
    return pipe.unet.get_submodule(ATTENTION.removeprefix("unet."))


def test_an_interruption_leaves_no_trace(pipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """In fusing all is as before; unfusing is finished first. At every point of writing a tensor."""
    with ml.fused(pipe, ["miniature/sdxl/ghost", "miniature/sdxl/day"]) as day:
        pass
    stripes = ml.fuse(pipe, "miniature/sdxl/stripes", {"*": 0, "unet.mid_block.*": 1.0})
    before, count = state(pipe), kept()
    real = originals._checksum
    left = iter([True])

    def interrupted(tensor: Tensor) -> int:
        """Every tensor that is checked or written comes by here."""
        if next(left, False) is None:
            raise KeyboardInterrupt
        return real(tensor)

    def interrupt_after(count: int) -> None:
        nonlocal left
        left = iter([True] * count + [None])

    monkeypatch.setattr(originals, "_checksum", interrupted)
    checks = len(set(day.tensors) & set(stripes.tensors))
    assert 0 < checks < len(day.tensors)
    for count_before in (checks, checks + 1, checks + 40):
        interrupt_after(count_before)
        with pytest.raises(KeyboardInterrupt):
            ml.fuse(pipe, ["miniature/sdxl/ghost", "miniature/sdxl/day"])
        assert same(state(pipe), before)
        assert kept() == count
    interrupt_after(10_000)
    active = ml.fuse(pipe, ["miniature/sdxl/ghost", "miniature/sdxl/day"])
    interrupt_after(len(active.tensors) + 20)
    with pytest.raises(KeyboardInterrupt):
        active.unfuse()
    assert not active.active
    assert same(state(pipe), before)


def test_all_that_is_fused_is_taken_back_at_once(pipe: Any) -> None:
    """Without what `fuse` returned; of one model alone; and of a bare pipeline nothing."""
    before = state(pipe)
    ml.unfuse(pipe)
    fusings = [ml.fuse(pipe, name) for name in ("miniature/sdxl/fish", "miniature/sdxl/day")]
    ml.unfuse(pipe.unet)
    after = state(pipe)
    assert all(torch.equal(after[key], value) for key, value in before.items() if key.startswith("unet."))
    assert not same(after, before)
    assert fusings[0].active and not fusings[1].active
    ml.unfuse(pipe)
    assert same(state(pipe), before)
    assert not any(fusing.active for fusing in fusings) and kept() == 0
    fusings[0].unfuse()
    with pytest.raises(ml.OptionError, match="found str"):
        ml.unfuse("miniature/sdxl")


class Full:
    """What adds changes, until memory is full."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, room: int, then: Any = lambda: None) -> None:
        self.room, self.then, self.real = room, then, originals.added
        monkeypatch.setattr(originals, "added", self)

    def __call__(self, *given: Any) -> Tensor:
        self.room -= 1
        if self.room < 0:
            self.then()
            raise torch.OutOfMemoryError("CUDA out of memory")
        return self.real(*given)


def test_the_way_back_needs_no_memory(pipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is none half way, the originals are copied back as they are."""
    before = state(pipe)
    with monkeypatch.context() as patch:
        Full(patch, room=20)
        with pytest.raises(torch.OutOfMemoryError):
            ml.fuse(pipe, "miniature/sdxl/ghost")
    assert same(state(pipe), before)
    assert kept() == 0


@pytest.mark.parametrize("next_is", ["unfuse", "fuse"])
def test_a_way_back_that_fails_is_said_and_can_be_tried_again(
    pipe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, next_is: str
) -> None:
    """One original cannot be read: all other tensors are the base model's, and what comes next is right again."""
    before = state(pipe)
    folder, away = tmp_path / "originals", tmp_path / "away"
    folder.mkdir()

    def lose_one() -> None:
        first = next(folder.glob(f"{ATTENTION}.to_q.weight.*"))
        first.rename(away)
        lost.append(first)

    lost: list[Path] = []
    with monkeypatch.context() as patch:
        full = Full(patch, room=45, then=lose_one)
        with pytest.raises(ml.LayerError, match=r"to_q\.weight: 1 tensor could not be written back \(FileNotF"):
            ml.fuse(pipe, "miniature/sdxl/ghost", keep=folder)
        assert full.room == -1
    after = state(pipe)
    assert [key for key, value in before.items() if not torch.equal(value, after[key])] == [f"{ATTENTION}.to_q.weight"]
    away.rename(lost[0])
    if next_is == "fuse":
        twin = opened("sdxl")
        ml.fuse(twin, "miniature/sdxl/ghost", 0.5)
        ml.fuse(pipe, "miniature/sdxl/ghost", 0.5)
        assert same(state(pipe), state(twin))
    ml.unfuse(pipe)
    assert same(state(pipe), before)
    assert not list(folder.iterdir())


def test_weights_of_inference_mode_are_refused_outside_of_it() -> None:
    """By name, and what is fused within is right."""
    with torch.inference_mode():
        pipe, twin = opened("sdxl"), opened("sdxl")
        before = state(pipe)
    with pytest.raises(ml.OptionError, match=r"\.weight was made in inference mode, and cannot be changed outside"):
        ml.fuse(pipe, "miniature/sdxl/ghost")
    with torch.inference_mode():
        day = ml.fuse(pipe, "miniature/sdxl/day")
        ml.fuse(twin, "miniature/sdxl/day")
        assert same(state(pipe), state(twin))
    for attempt in (day.unfuse, lambda: ml.unfuse(pipe, force=True)):
        with pytest.raises(ml.OptionError, match="was made in inference mode"):
            attempt()
    with torch.inference_mode():
        day.unfuse()
        assert same(state(pipe), before)


@pytest.mark.parametrize("kind", ["sdxl", "flux"])
def test_joined_projections_are_refused(kind: str) -> None:
    """No change reaches them: to fuse, to take back, to apply; once separated again all is as ever."""
    pipe = opened(kind)
    ghost = f"miniature/{kind}/ghost"
    model = pipe.unet if kind == "sdxl" else pipe.transformer
    before = state(pipe)
    active = ml.fuse(pipe, ghost)
    model.fuse_qkv_projections()
    for attempt in (
        lambda: ml.fuse(pipe, ghost),
        lambda: ml.apply(pipe, ghost),
        active.unfuse,
        lambda: active.unfuse(force=True),
        lambda: ml.unfuse(pipe),
    ):
        with pytest.raises(ml.OptionError, match=r"joined copy of this projection: pipe\.unfuse_qkv_projections\(\) f"):
            attempt()
    model.unfuse_qkv_projections()
    ml.fuse(pipe, ghost)
    ml.unfuse(pipe)
    ml.apply(pipe, ghost)
    ml.remove(pipe)
    after = state(pipe)
    assert all(torch.equal(after[key], value) for key, value in before.items())


def test_a_replaced_module_is_said(pipe: Any) -> None:
    """Its copy holds what was fused, and would not be taken back; by force it is left as it is."""
    before = state(pipe)
    active = ml.fuse(pipe, "miniature/sdxl/ghost")
    attention = attention_of(pipe)
    real, attention.to_q = attention.to_q, copy.deepcopy(attention.to_q)
    with pytest.raises(ml.LayerError, match=r"to_q\.weight: its Linear has been replaced in the model"):
        active.unfuse()
    assert active.active
    active.unfuse(force=True)
    assert not torch.equal(attention.to_q.weight, before[f"{ATTENTION}.to_q.weight"])
    attention.to_q = real
    assert same(state(pipe), before)


def test_offloaded_in_between(pipe: Any) -> None:
    """Layer by layer: refused by name while they are away, and taken back once they are home."""
    accelerate = pytest.importorskip("accelerate")
    before = state(pipe)
    active = ml.fuse(pipe, "miniature/sdxl/ghost")
    accelerate.cpu_offload(pipe.unet, execution_device=torch.device("cpu"))
    for attempt in (active.unfuse, lambda: active.unfuse(force=True), lambda: ml.unfuse(pipe)):
        with pytest.raises(ml.OptionError, match=r"is offloaded: its values are not in the model; .*remove_all_hooks"):
            attempt()
    accelerate.hooks.remove_hook_from_module(pipe.unet, recurse=True)
    active.unfuse()
    assert same(state(pipe), before)


def test_what_is_left_may_be_too_large() -> None:
    """Two adapters that fit into float16 together, and one of them alone does not: nothing is changed."""
    pipe = opened("sdxl", torch.float16)
    attention = attention_of(pipe)

    def adapter(of_query: float, of_key: float) -> ml.Adapter:
        sizes = {"to_q": of_query, "to_k": of_key}
        shapes = {name: getattr(attention, name).weight.shape for name in sizes}
        layers = {
            f"{ATTENTION}.{name}": ml.LoraLayer(torch.full((1, shapes[name][1]), size), torch.ones(shapes[name][0], 1))
            for name, size in sizes.items()
        }
        return ml.Adapter(layers)

    before = state(pipe)
    first, second = ml.fuse(pipe, adapter(1.0, 6e4)), ml.fuse(pipe, adapter(1.0, -1.1e5))
    fused = state(pipe)
    with pytest.raises(ml.LayerError, match=r"to_k\.weight: the changed weights are not finite in float16"):
        first.unfuse()
    assert first.active and same(state(pipe), fused)
    second.unfuse()
    first.unfuse()
    assert same(state(pipe), before)


def test_the_program_may_go_to_another_folder(pipe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Originals are kept where `keep` was when they were."""
    before = state(pipe)
    (tmp_path / "originals").mkdir()
    monkeypatch.chdir(tmp_path)
    active = ml.fuse(pipe, "miniature/sdxl/ghost", keep="originals")
    monkeypatch.chdir(tmp_path.parent)
    active.unfuse()
    assert same(state(pipe), before)
    assert not list((tmp_path / "originals").iterdir())


def test_an_adapter_that_is_trained_further(pipe: Any) -> None:
    """What is fused is what it was then: its layers and its biases."""
    ghost, day = loaded("sdxl", 2)
    bias = f"unet.conv_in{BIAS_SUFFIX}"
    ghost = replace(ghost, extras={bias: torch.ones(pipe.unet.conv_in.bias.shape)})
    day = replace(day, extras={bias: torch.ones(pipe.unet.conv_in.bias.shape)})
    ml.fuse(pipe, ghost)
    fused = state(pipe)
    active = ml.fuse(pipe, day)
    for layer in ghost.layers.values():
        layer.lora_B.mul_(0.5)
    ghost.extras[bias].mul_(0.5)
    active.unfuse()
    assert same(state(pipe), fused)


def test_one_tensor_under_two_names(pipe: Any) -> None:
    """Where something is fused under one, the other is refused."""
    attention = attention_of(pipe)
    attention.to_q.weight = attention.to_k.weight
    before = state(pipe)
    ghost = ml.load("miniature/sdxl/ghost")
    query, key = (
        replace(ghost, layers={name: ghost.layers[name]}) for name in (f"{ATTENTION}.to_q", f"{ATTENTION}.to_k")
    )
    active = ml.fuse(pipe, query)
    with pytest.raises(ml.OptionError, match=r"to_k\.weight and unet\..*to_q\.weight are one tensor of the model"):
        ml.fuse(pipe, key)
    active.unfuse()
    ml.fuse(pipe, key).unfuse()
    assert same(state(pipe), before)


@pytest.mark.parametrize("change", [lambda w: w + 0.01, lambda w: w.flip(0), lambda w: w.flip(1)])
def test_what_others_changed_is_said(pipe: Any, change: Any) -> None:
    """A change that mergelab did not make is neither lost nor taken for the original's, unless it is given up."""
    before = state(pipe)
    active = ml.fuse(pipe, "miniature/sdxl/ghost")
    weight = attention_of(pipe).to_q.weight
    fused = weight.detach().clone()
    weight.data = change(weight.data)
    changed = state(pipe)
    for attempt in (active.unfuse, lambda: ml.fuse(pipe, "miniature/sdxl/day"), lambda: ml.unfuse(pipe)):
        with pytest.raises(ml.LayerError, match=r"to_q\.weight: its values are not those that mergelab .*force=True"):
            attempt()
        assert same(state(pipe), changed)
    weight.data.copy_(fused)
    active.unfuse()
    assert same(state(pipe), before)


@pytest.mark.parametrize("all_at_once", [True, False])
def test_what_others_changed_can_be_given_up(pipe: Any, all_at_once: bool) -> None:
    """By force: one fusing with the other left, or all of them."""
    before = state(pipe)
    day = ml.fuse(pipe, "miniature/sdxl/day")
    with_day = state(pipe)
    ghost = ml.fuse(pipe, "miniature/sdxl/ghost")
    attention_of(pipe).to_q.weight.data += 0.01
    if not all_at_once:
        ghost.unfuse(force=True)
        assert same(state(pipe), with_day) and day.active
    else:
        ml.unfuse(pipe, force=True)
        assert same(state(pipe), before) and not day.active


def test_a_cast_pipeline_is_said(pipe: Any) -> None:
    """Originals of another dtype do not come back in silence."""
    active = ml.fuse(pipe, "miniature/sdxl/ghost")
    pipe.unet.to(torch.bfloat16)
    with pytest.raises(ml.LayerError, match="changed, cast or replaced"):
        active.unfuse()
    active.unfuse(force=True)
    twin = opened("sdxl")
    twin.unet.to(torch.bfloat16)
    assert same(state(pipe), state(twin))
