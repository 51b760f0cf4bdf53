"""Layers that a base model has not, and base models that are not known: what tools and formats make of them."""

from __future__ import annotations

import re

import pytest
import torch

import mergelab as ml
from mergelab.formats import plan

STRANGE = "text_encoder.model_layers_0_self_attn_q_proj"
BLOCK = "transformer.transformer_blocks.0.attn"


def layer(factor: float = 1.0) -> ml.LoraLayer:
    return ml.LoraLayer(torch.ones(1, 4), factor * torch.ones(4, 1))


def qwen() -> ml.Adapter:
    """As kohya's tools might have trained its text encoder, which diffusers has as another model."""
    return ml.Adapter({f"{BLOCK}.to_q": layer(4.0), STRANGE: layer(3.0)}, architecture="qwen-image", source="x")


@pytest.mark.parametrize("tool", ["comfyui", "diffusers", "onetrainer", "aitoolkit"])
def test_a_tool_gets_no_strange_text_encoder(tool: str) -> None:
    """It is left out, with a sentence that names it, and the share of the change."""
    chosen = plan(qwen(), for_=tool)
    assert list(chosen.data.layers) == [f"{BLOCK}.to_q"]
    said = f"has no place for text encoders.*{STRANGE} the first.*left out, 36.00% of the squared norm"
    assert any(re.search(said, note) for note in chosen.notes)
    assert not any("text_encoder" in key for key in qwen().state_dict(for_=tool))


@pytest.mark.parametrize("format", ["diffusers", "kohya", "comfy"])
def test_a_format_refuses_a_strange_text_encoder(format: str) -> None:
    """With the layer's name and what can be done."""
    with pytest.raises(ml.MergelabError, match=rf"{STRANGE}.*format='peft'.*select\(\).*--for"):
        qwen().state_dict(format)


def test_a_text_encoder_of_the_model_stays() -> None:
    """CLIP and T5 are FLUX.1's; the bias beside a layer of another goes with it."""
    names = (
        "text_encoder.text_model.encoder.layers.0.mlp.fc1",
        "text_encoder_2.encoder.block.0.layer.0.SelfAttention.q",
    )
    flux = ml.Adapter(
        {name: layer() for name in (*names, STRANGE)}, {f"{STRANGE}.lora_B.bias": torch.ones(4)}, "flux", source="x"
    )
    chosen = plan(flux, for_="comfyui")
    assert set(chosen.data.layers) == set(names) and not chosen.data.extras


@pytest.mark.parametrize("name", [f"{BLOCK}.to_q", "transformer.x", "model.blocks.0"])
def test_an_unknown_base_model_has_no_names_of_another(name: str) -> None:
    """kohya's format has those of the original model, which nobody guesses."""
    unknown = ml.Adapter({name: layer()}, source="x")
    for format in ("kohya", "comfy"):
        with pytest.raises(ml.ArchitectureError, match=r"the base model is unknown.*architecture=.*--architecture"):
            unknown.state_dict(format)
    with pytest.raises(ml.ArchitectureError, match=r"the base model is unknown.*architecture=.*--architecture"):
        unknown.state_dict(for_="aitoolkit")


def test_an_unknown_unet_has_diffusers_names() -> None:
    """Which are kohya's, too."""
    names = ("unet.conv_in", "text_encoder.text_model.encoder.layers.0.mlp.fc1")
    tensors = ml.Adapter({name: layer() for name in names}, source="x").state_dict("kohya")
    assert {"lora_unet_conv_in.alpha", "lora_te_text_model_encoder_layers_0_mlp_fc1.alpha"} < tensors.keys()


def test_a_layer_of_another_kind_of_model() -> None:
    """A transformer's layer in a UNet's adapter, and the other way round, get no third model's names."""
    for id, name in (("sd15", f"{BLOCK}.to_q"), ("flux", "unet.conv_in")):
        with pytest.raises(ml.ArchitectureError, match=f"{name} .*has no name in kohya's format"):
            ml.Adapter({name: layer()}, architecture=id, source="x").state_dict("kohya")


def test_flat_names_of_an_unknown_transformer() -> None:
    """A name with underscores is a path where some transformer has it as one."""
    for name, known in (("transformer.proj_out", True), ("transformer.tower_3_mixer_proj", False)):
        unknown = ml.Adapter({name: layer()}, source="x")
        if known:
            assert set(unknown.state_dict("diffusers")) == {f"{name}.lora_A.weight", f"{name}.lora_B.weight"}
        else:
            with pytest.raises(ml.FormatError, match=r"no name in a diffusers pipeline.*format='same'"):
                unknown.state_dict("diffusers")


def test_what_is_folded_in_comfy_is_exact() -> None:
    """A scaling that the dtype of the file cannot hold makes lora_B float32; a power of two does not."""
    for scaling, dtype in ((0.5, torch.bfloat16), (0.7, torch.float32)):
        half = ml.LoraLayer(torch.ones(2, 4).bfloat16(), torch.full((4, 2), 1.5).bfloat16(), scaling)
        tensors = ml.Adapter({f"{BLOCK}.to_out.0": half}, architecture="flux", source="x").state_dict("comfy")
        up = next(tensor for key, tensor in tensors.items() if key.endswith("lora_B.weight"))
        assert up.dtype == dtype and torch.equal(up.float(), half.lora_B.float() * scaling) and len(tensors) == 2
