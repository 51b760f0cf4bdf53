"""What models are wrapped into leaves no trace in canonical names, and what is not known is said."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch

import mergelab as ml
from mergelab import cli
from tests.files import Tensors, lora, write

Q = "transformer_blocks.0.attn.to_q"
UNET = "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k"
CLIP = "text_model.encoder.layers.0.mlp.fc1"
T5 = "encoder.block.0.layer.0.SelfAttention.q"
# A path, with the component of its canonical name and a prefix that says which.
COMPONENTS = {
    "flux": ("transformer", Q),
    "unet": ("unet", UNET),
    "clip": ("text_encoder", CLIP),
    "second clip": ("text_encoder_2", CLIP),
    "t5": ("text_encoder_2", T5),
}
ANYWHERE = ("_orig_mod.", "module.", "base_model.model.")


@pytest.mark.parametrize("name", COMPONENTS)
@pytest.mark.parametrize("count", [1, 2, 3])
def test_wrappers_of_dotted_names(name: str, count: int) -> None:
    """In any order, before the component and after it."""
    component, path = COMPONENTS[name]
    for wrappers in itertools.permutations(ANYWHERE, count):
        for cut in range(count + 1):
            before, after = "".join(wrappers[:cut]), "".join(wrappers[cut:])
            assert list(ml.load(lora(f"{before}{component}.{after}{path}")).layers) == [f"{component}.{path}"]


@pytest.mark.parametrize(
    ("module", "name"),
    [
        (f"transformer.transformer.{Q}", f"transformer.{Q}"),
        (f"model.transformer.{Q}", f"transformer.{Q}"),
        (f"model.model.{Q}", f"transformer.{Q}"),
        (f"unet.unet.{UNET}", f"unet.{UNET}"),
        (f"unet.transformer.{Q}", f"transformer.{Q}"),
        (f"text_encoder.transformer.{CLIP}", f"text_encoder.{CLIP}"),
        (f"text_encoder_2.transformer.{CLIP}", f"text_encoder_2.{CLIP}"),
        (f"text_encoder.model.encoder.{CLIP.partition('encoder.')[2]}", f"text_encoder.{CLIP}"),
        (f"transformer.{CLIP}", f"text_encoder.{CLIP}"),
        (f"cond_stage_model.transformer.{CLIP}", f"text_encoder.{CLIP}"),
        ("text_encoder_2.transformer.text_projection", "text_encoder_2.text_projection"),
        ("transformer.transformer_blocks.0._orig_mod.attn.to_q", f"transformer.{Q}"),
        ("transformer.transformer_blocks.0.attn.to_q._orig_mod", f"transformer.{Q}"),
        ("transformer.transformer_blocks.0.module.attn.to_q", f"transformer.{Q}"),
        (
            "transformer._fsdp_wrapped_module.transformer_blocks.0._checkpoint_wrapped_module.attn.to_q",
            f"transformer.{Q}",
        ),
        (
            "diffusion_model._orig_mod.single_blocks.3.modulation.lin",
            "transformer.single_transformer_blocks.3.norm.linear",
        ),
        (
            "module.diffusion_model.single_blocks.3.modulation.lin",
            "transformer.single_transformer_blocks.3.norm.linear",
        ),
        # flat names
        ("lora_te_transformer_text_model_encoder_layers_0_mlp_fc1", f"text_encoder.{CLIP}"),
        ("lora_te_0_transformer_text_model_encoder_layers_0_mlp_fc1", f"text_encoder.{CLIP}"),
        ("lora_te_0_text_model_encoder_layers_0_mlp_fc1", f"text_encoder.{CLIP}"),
        ("lora_te2_transformer_text_model_encoder_layers_0_mlp_fc1", f"text_encoder_2.{CLIP}"),
        ("lora_te1_module_transformer_text_model_encoder_layers_0_mlp_fc1", f"text_encoder.{CLIP}"),
        ("lora_unet__orig_mod_transformer_blocks_0_attn_to_q", f"transformer.{Q}"),
        ("lora_unet_orig_mod_transformer_blocks_0_attn_to_q", f"transformer.{Q}"),
        ("lora_unet_transformer_blocks_0__orig_mod_attn_to_q", f"transformer.{Q}"),
        ("lora_unet_transformer_blocks_0_module_attn_to_q", f"transformer.{Q}"),
        ("lora_unet_base_model_model_transformer_transformer_blocks_0_attn_to_q", f"transformer.{Q}"),
        ("lora_unet_module_single_blocks_3_modulation_lin", "transformer.single_transformer_blocks.3.norm.linear"),
        ("lycoris_unet_mid_block_attentions_0_proj_in", "unet.mid_block.attentions.0.proj_in"),
        ("lycoris_text_encoder_2_text_model_encoder_layers_0_mlp_fc1", f"text_encoder_2.{CLIP}"),
    ],
)
def test_wrapped_names(module: str, name: str) -> None:
    """Each is read as the same layer as without its wrappers, and without a word on names."""
    adapter = ml.load(lora(module))
    assert list(adapter.layers) == [name]
    assert not any("layer names" in note for note in adapter.notes)


@pytest.mark.parametrize(
    "path",
    [
        "model.layers.0.self_attn.q_proj",
        "model.text_model.layers.0.q",
        "model.encoder.layers.0.fc1",
        "module.layers.0.q",
    ],
)
def test_steps_of_other_models_are_no_wrappers(path: str, tmp_path: Path) -> None:
    """A folder of a language model keeps the names that PEFT has to find in it, and says that it does not know them."""
    adapter = ml.load(lora(f"base_model.model.{path}"))
    assert list(adapter.layers) == [f"model.{path}"]
    assert "no model that mergelab knows" in " ".join(adapter.notes)
    again = ml.load(adapter.save(tmp_path / "folder", format="peft"))
    assert list(again.layers) == list(adapter.layers)


def test_wrapped_norms_and_xlabs() -> None:
    """Keys that are no layers, and those of attention processors."""
    norm = {"module.diffusion_model._orig_mod.double_blocks.0.img_attn.norm.query_norm.scale": torch.ones(4)}
    xlabs: Tensors = {
        f"double_blocks.7._orig_mod.processor.proj_lora1.{part}.weight": torch.ones(4, 4) for part in ("down", "up")
    }
    adapter = ml.load({**norm, **xlabs})
    assert list(adapter.extras) == ["transformer.transformer_blocks.0.attn.norm_q.weight"]
    assert list(adapter.layers) == ["transformer.transformer_blocks.7.attn.to_out.0"]


def test_one_layer_twice_in_a_file() -> None:
    """With its wrapper and without: nothing tells which of them counts."""
    for wrapped in (f"transformer._orig_mod.{Q}", f"transformer.transformer.{Q}"):
        with pytest.raises(ml.FormatError, match=r"same tensor|both layer"):
            ml.load({**lora(f"transformer.{Q}"), **lora(wrapped)})


def test_what_is_not_known_is_said_everywhere(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By the report of a merge and of a resize, and by each command; a name that the model has not is one of them."""
    odd = "unet.down_blocks.1.motion_modules.0.proj_in"
    known = lora(f"unet.{UNET}", 640, 2048)
    strange = write(tmp_path / "strange.safetensors", known, lora(odd))
    plain = write(tmp_path / "plain.safetensors", known)
    note = f"1 layer name belongs to no module of SDXL ({odd} the first)"
    merged = ml.merge([plain, strange])
    assert any(line.startswith(f"strange: {note}") for line in merged.report.notes)
    assert not any(line.startswith("plain: 1 layer name ") for line in merged.report.notes)
    assert not any(line.startswith("strange") for line in ml.merge([plain, strange], [1, 0]).report.notes)
    assert note in str(ml.load(strange).resize(1).report)
    out = str(tmp_path / "out.safetensors")
    for command in (
        ["merge", str(plain), str(strange), "-o", out],
        ["resize", str(strange), "--rank", "1", "-o", out, "--force"],
        ["convert", str(strange), "--format", "diffusers", "-o", out, "--force"],
        ["compare", str(plain), str(strange)],
        ["inspect", str(strange)],
    ):
        assert cli.run(command) == 0
        assert note in capsys.readouterr().out
