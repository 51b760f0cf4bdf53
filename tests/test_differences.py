"""Differences of norms and biases, and full differences: in, through a merge, out, and into a model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import mergelab as ml
from mergelab import miniature
from mergelab.formats import planning

BLOCK, WIDE = "diffusion_model.blocks.0", 1536


def wan(seed: int = 0) -> dict[str, Tensor]:
    """A file of a small part of Wan 1.3B as its trainers write it."""
    torch.manual_seed(seed)
    return {
        f"{BLOCK}.self_attn.q.lora_A.weight": torch.randn(4, WIDE),
        f"{BLOCK}.self_attn.q.lora_B.weight": torch.randn(WIDE, 4),
        f"{BLOCK}.self_attn.q.diff_b": torch.randn(WIDE),
        f"{BLOCK}.norm3.diff": torch.randn(WIDE),
        f"{BLOCK}.norm3.diff_b": torch.randn(WIDE),
        f"{BLOCK}.self_attn.norm_q.diff": torch.randn(WIDE),
        "diffusion_model.blocks.1.self_attn.norm_q.diff": torch.zeros(WIDE),
        "diffusion_model.blocks.1.self_attn.q.diff_b": torch.zeros(WIDE),
    }


NAMES = {
    "attn1.to_q.lora_B.bias": "self_attn.q.diff_b",
    "norm2.diff": "norm3.diff",
    "norm2.lora_B.bias": "norm3.diff_b",
    "attn1.norm_q.diff": "self_attn.norm_q.diff",
}


def test_read_and_merged() -> None:
    """Under canonical names; zeros are dropped with a note; a sum at weights is the sum of the vectors."""
    files = wan(0), wan(1)
    first, second = map(ml.load, files)
    assert list(first.extras) == [f"transformer.blocks.0.{name}" for name in NAMES]
    dropped = "2 differences of zeros dropped ('diffusion_model.blocks.1.self_attn.norm_q.diff' the first)"
    assert dropped in first.report.notes
    expected = {
        f"transformer.blocks.0.{a}": 0.5 * files[0][f"{BLOCK}.{b}"] - 2 * files[1][f"{BLOCK}.{b}"]
        for a, b in NAMES.items()
    }
    for merged in (ml.merge([first, second], [0.5, -2.0], "cat"), 0.5 * first - 2 * second):
        for key, vector in expected.items():
            torch.testing.assert_close(merged.extras[key], vector)
    pruned = ml.merge([first, second], [1.0, 0.0], "magnitude_prune", density=0.25)
    kept = pruned.extras["transformer.blocks.0.norm2.diff"]
    assert int((kept != 0).sum()) == WIDE // 4


@pytest.mark.parametrize("format", ["comfy", "kohya", "same"])
def test_written_and_read(format: str) -> None:
    """What is written is read to the same, under the names that ComfyUI looks for."""
    adapter = ml.load(wan())
    written = adapter.state_dict(format)
    assert (f"{BLOCK}.norm3.diff" in written) == (format != "kohya")
    again = ml.load(written)
    assert again.extras.keys() == adapter.extras.keys()
    assert all(torch.equal(again.extras[key], adapter.extras[key]) for key in adapter.extras)


@pytest.mark.parametrize("format", ["diffusers", "peft"])
def test_refused_where_there_is_no_place(format: str) -> None:
    """Named, with the format that has one; without them it is written."""
    adapter = ml.load(wan())
    with pytest.raises(ml.FormatError, match=r"norm2\.diff is no LoRA layer.*format='comfy'"):
        adapter.state_dict(format)
    assert adapter.without_extras().state_dict(format)


def test_norms_of_a_unet_are_fused(tmp_path: Path) -> None:
    """LyCORIS' w_norm and b_norm of a group norm end in the base model's file."""

    weights = load_file(miniature.folder("sdxl") / "unet" / "diffusion_pytorch_model.safetensors")
    size = len(weights["mid_block.resnets.0.norm1.weight"])
    adapter = ml.load({
        "lora_unet_mid_block_resnets_0_norm1.w_norm": torch.full((size,), 0.25),
        "lora_unet_mid_block_resnets_0_norm1.b_norm": torch.full((size,), -0.5),
        "lora_unet_mid_block_resnets_0_conv1.lora_down.weight": torch.zeros(1, size, 3, 3),
        "lora_unet_mid_block_resnets_0_conv1.lora_up.weight": torch.zeros(size, 1, 1, 1),
    })  # fmt: skip
    done = ml.fuse_checkpoint("miniature/sdxl", adapter, tmp_path / "fused", 2.0)
    found = load_file(done.path / "unet" / "diffusion_pytorch_model.safetensors")
    for leaf, change in (("weight", 0.5), ("bias", -1.0)):
        before = weights[f"mid_block.resnets.0.norm1.{leaf}"].float()
        torch.testing.assert_close(
            found[f"mid_block.resnets.0.norm1.{leaf}"].float(), before + change, atol=2e-3, rtol=0
        )


def test_full_differences_take_part_in_every_rule() -> None:
    """A dense change beside a LoRA of the same layer: as any change; the rank of the result stays small."""
    torch.manual_seed(0)
    name = "lora_unet_mid_block_attentions_0_proj_in"
    delta = torch.randn(96, 80)
    full = ml.load({f"{name}.diff": delta})
    lora = ml.load({f"{name}.lora_down.weight": torch.randn(4, 80), f"{name}.lora_up.weight": torch.randn(96, 4)})
    (layer,) = full.layers.values()
    assert layer.kind == "full" and layer.rank == 80 and torch.equal(layer.delta_weight(), delta)
    both = delta - lora.layers[layer_name(lora)].delta_weight()
    exact = ml.merge([full, lora], [1.0, -1.0], "cat").layers[layer_name(lora)]
    torch.testing.assert_close(exact.delta_weight(), both, atol=1e-4, rtol=1e-4)
    for method in ("ties", "dare", "magnitude_prune", "svd"):
        merged = ml.merge([full, lora], [1.0, -1.0], method).layers[layer_name(lora)]
        assert merged.rank == 64, "a change of no chosen rank counts at most so many"
    best = torch.linalg.svdvals(both.double())[64:].square().sum().sqrt()
    truncated = ml.merge([full, lora], [1.0, -1.0], "svd").layers[layer_name(lora)].delta_weight()
    assert abs(float((truncated - both).norm()) / float(best) - 1) < 1e-3


def layer_name(adapter: ml.Adapter) -> str:
    """The only layer."""
    (name,) = adapter.layers
    return name


def test_one_kind_a_layer() -> None:
    """A LoRA beside a full difference of one layer is refused, not half read."""
    name = "lora_unet_mid_block_attentions_0_proj_in"
    parts = {f"{name}.lora_down.weight": torch.ones(1, 4), f"{name}.lora_up.weight": torch.ones(3, 1)}
    with pytest.raises(ml.LayerError, match=r"one layer is full differences \(.*\) and LoRA and LoCon"):
        ml.load({**parts, f"{name}.diff": torch.ones(3, 4)})


def test_exact_factors_that_nobody_means(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file of full rank is not written by the way: the error says how large it would be, and the remedy works."""

    name = "lora_unet_mid_block_attentions_0_proj_in"
    save_file({f"{name}.diff": torch.randn(64, 64)}, tmp_path / "full.safetensors")
    adapter = ml.load(tmp_path / "full.safetensors")
    monkeypatch.setattr(planning, "LARGEST", 1000)
    with pytest.raises(ml.OutputError, match=r"is full, of rank 64 as two factors.*adapter\.resize\(64\)"):
        adapter.save(tmp_path / "out.safetensors", "kohya")
    assert ml.load(adapter.resize(8).save(tmp_path / "out.safetensors", "kohya")).ranks[layer_name(adapter)] == 8


def test_norms_of_no_known_model_are_refused() -> None:
    """Neither fused nor written anywhere, they would be read in part."""
    block = "diffusion_model.double_blocks.0.img_attn"
    pair = {f"{block}.proj.lora_A.weight": torch.ones(2, 16), f"{block}.proj.lora_B.weight": torch.ones(16, 2)}
    with pytest.raises(ml.FormatError, match=r"key_norm\.scale\.diff' is the difference of a norm, and of none of"):
        ml.load({**pair, f"{block}.norm.key_norm.scale.diff": torch.ones(4)})
