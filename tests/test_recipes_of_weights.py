"""Weights as a recipe has them, which `weights=` takes again; and what has one beside the layers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

import mergelab as ml
from mergelab.engine.changes import collect
from tests.synthetic import adapter
from tests.test_block_weights import DOWN, MID, SHAPES, TEXT, UP


def _weight_in_header(metadata: Mapping[str, str]) -> Any:
    return json.loads(metadata["mergelab"])["inputs"][0]["weight"]


@pytest.mark.parametrize(
    ("text", "strength", "record"),
    [
        ("sdxl:OUTALL", 0.8, {"*": 0.8, "unet": 0.0, UP: 0.8}),
        ("sdxl:ALL", 0.8, 0.8),
        ("sdxl:ALL0.5", {"unet": 1.0, "text_encoder": 0.4}, {"*": 0.5, "text_encoder": 0.2}),
        (TEXT, 1.0, {"*": 0.5, "unet": 1.0, f"{DOWN}.2": -1.0, MID: 2.0, UP: 0.75, f"{UP}.1": 0.125}),
    ],
)
def test_a_recipe_has_few_entries_and_can_be_followed(text: str, strength: Any, record: Any, tmp_path: Path) -> None:
    """A beginning of names for each weight, none of which matches nothing, as of a mapping that is written by hand."""
    a = adapter(6, rank=2, shapes=SHAPES)
    merged = ml.merge([a], [ml.block_weights(text, strength)], method="cat")
    assert _weight_in_header(merged.metadata) == record
    again = ml.merge([a], [_weight_in_header(merged.metadata)], method="cat")
    assert again.layers.keys() == merged.layers.keys() and (again - merged).norm() == 0
    assert again.metadata == merged.metadata


def test_the_recipe_of_a_mapping_does_not_hang_on_its_order() -> None:
    """The last entry that matches wins, and a header has its keys in alphabetical order."""
    a = adapter(6, rank=2, shapes=SHAPES)
    for weights in ({"unet.mid*": 1.0, "*": 0.5}, {"*": 0.5, "unet.mid*": 1.0}):
        merged = ml.merge([a], [weights], method="cat")
        again = ml.merge([a], [_weight_in_header(merged.metadata)], method="cat")
        assert (again - merged).norm() == 0 and merged.metadata == again.metadata
    assert _weight_in_header(merged.metadata) == {"*": 0.5, "unet.mid*": 1.0}


def test_a_fused_model_has_such_a_recipe(tmp_path: Path) -> None:
    """In the header of the file that is changed."""
    out = tmp_path / "fused"
    ml.fuse_checkpoint("miniature/sdxl", "miniature/sdxl/ghost", out, ml.block_weights("sdxl:OUTALL", 0.8))
    with safe_open(out / "unet" / "diffusion_pytorch_model.safetensors", "pt") as file:
        assert _weight_in_header(file.metadata()) == {"*": 0.0, UP: 0.8}


def test_norms_and_biases_have_the_weight_of_their_block() -> None:
    """What replaces a tensor is absent where its block is at 0, and else as it is."""
    block = "transformer.transformer_blocks.{}.attn"
    norms = {block.format(i) + ".norm_q.weight": torch.full((3,), float(i)) for i in range(3)}
    layers = adapter(7, rank=2, shapes={block.format(i) + ".to_q": (8, 8) for i in range(2)}).layers
    a = ml.Adapter(layers, norms | {block.format(0) + ".to_q.lora_B.bias": torch.ones(8)}, source="a")
    for weight in (ml.block_weights("flux:1,0,0.5,1" + ",1" * 54), {"*": 1.0, block.format(0): 0.0}):
        merged = ml.merge([a], [weight], method="cat")
        assert merged.extras.keys() == {block.format(1) + ".norm_q.weight", block.format(2) + ".norm_q.weight"}
        assert all(torch.equal(merged.extras[key], norms[key]) for key in merged.extras)
        assert ml.merge([a], [_weight_in_header(merged.metadata)], method="cat").extras.keys() == merged.extras.keys()
    assert len(ml.merge([a], [{"transformer": 1.0}], method="cat").extras) == 4


def test_a_norm_of_a_block_at_0_is_no_obstacle_to_fusing() -> None:
    """Where it has a weight, it cannot be fused, as without block weights."""
    block = "transformer.transformer_blocks.{}.attn"
    layers = adapter(8, rank=2, shapes={block.format(i) + ".to_q": (8, 8) for i in range(2)}).layers
    a = ml.Adapter(layers, {block.format(0) + ".norm_q.weight": torch.ones(3)}, source="a")
    assert list(collect(a, ml.block_weights("flux:1,0" + ",1" * 56)).by_tensor) == [block.format(1) + ".to_q.weight"]
    with pytest.raises(ml.OptionError, match=r"norm_q\.weight the first"):
        collect(a, ml.block_weights("flux:1,0.5" + ",1" * 56))
