"""The format "comfy", the dialect of a file, and "same": what came in goes out under the names it had."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

import mergelab as ml
from mergelab import cli
from mergelab.formats import check_writable
from tests.files import write
from tests.synthetic import difference

BFL = "diffusion_model.double_blocks.0.img_attn"


def factors(module: str, style: str, out: int = 8, inner: int = 8, seed: int = 0) -> dict[str, Tensor]:
    """A layer of rank 2, with the ends of keys that a dialect has."""
    generator = torch.Generator().manual_seed(seed)
    down, up = torch.randn(2, inner, generator=generator), torch.randn(out, 2, generator=generator)
    if style == "kohya":
        return {
            f"{module}.lora_down.weight": down,
            f"{module}.lora_up.weight": up,
            f"{module}.alpha": torch.tensor(1.0),
        }
    return {f"{module}.lora_A.weight": down, f"{module}.lora_B.weight": up}


FILES: dict[str, tuple[str, dict[str, Tensor], dict[str, str]]] = {
    "kohya": (
        "kohya",
        factors("lora_unet_double_blocks_0_img_attn_proj", "kohya"),
        {"ss_base_model_version": "flux1"},
    ),
    "comfy": (
        "comfy",
        {**factors(f"{BFL}.qkv", "", out=24), **factors(f"{BFL}.proj", "", seed=1)},
        {"ss_base_model_version": "flux1"},
    ),
    "diffusers": (
        "diffusers",
        factors("transformer.transformer_blocks.0.attn.to_q", ""),
        {"ss_base_model_version": "flux1"},
    ),
    "unknown, dotted": ("comfy", factors("diffusion_model.tower.3.mixer.proj", ""), {}),
    "unknown, flat": ("kohya", factors("lora_unet_tower_3_mixer_proj", "kohya"), {}),
    "unknown, bare": ("", factors("tower.3.mixer.proj", ""), {}),
}


@pytest.mark.parametrize("name", FILES)
def test_the_same_names_come_out(name: str, tmp_path: Path) -> None:
    """The keys of a file that is read and written as "same" are its own; to an unknown model's an alpha is added."""
    dialect, tensors, header = FILES[name]
    adapter = ml.load(write(tmp_path / "a.safetensors", tensors, metadata=header))
    assert (adapter.dialect or "") == dialect and (adapter.architecture is None) == name.startswith("unknown")
    keys = set(adapter.state_dict("same"))
    assert keys - {"diffusion_model.tower.3.mixer.proj.alpha"} == set(tensors)
    again = ml.load(adapter.save(tmp_path / "b.safetensors", format="same"))
    assert difference(again, adapter) < 1e-6 and again.dialect == adapter.dialect
    assert difference(ml.load(adapter.save(tmp_path / "c.safetensors")), adapter) < 1e-6, "the default loses nothing"


def test_merges_keep_what_their_inputs_agree_in(tmp_path: Path) -> None:
    """A merge of an unknown model's adapters has their names; of two dialects there is none to keep."""
    dotted, flat = (factors(f"{prefix}3{dot}mixer{dot}proj", kind) for prefix, dot, kind in (
        ("diffusion_model.tower.", ".", ""), ("lora_unet_tower_", "_", "kohya")))  # fmt: skip
    a = ml.load(write(tmp_path / "a.safetensors", dotted))
    merged = ml.merge([a, a], [0.5, 1.0])
    assert set(merged.state_dict("same")) >= set(dotted) and (a + a).dialect == "comfy"
    assert set((a + a).resize(2).state_dict()) >= set(dotted)
    b = ml.load(write(tmp_path / "b.safetensors", flat))
    mixed = ml.Adapter({**a.layers, **b.layers}, spelling=a.spelling, source="mixed")
    with pytest.raises(ml.FormatError, match=r"mixed: layer .*there is no dialect to keep"):
        mixed.state_dict("same")


def test_a_folder_stays_a_folder(tmp_path: Path) -> None:
    """A text model's adapter has no other place; a file name for it is refused."""
    layers = {"model.layers.0.self_attn.q_proj": ml.LoraLayer(torch.ones(2, 4), torch.ones(4, 2))}
    adapter = ml.load(ml.Adapter(layers, source="x").save(tmp_path / "a", format="peft"))
    assert adapter.dialect == "peft"
    assert ml.load(adapter.save(tmp_path / "b")).dialect == "peft"
    with pytest.raises(ml.OutputError, match="a folder"):
        adapter.save(tmp_path / "c.safetensors")


@pytest.mark.parametrize("rank", [1, 2])
def test_comfy_fuses_exactly(rank: int) -> None:
    """q, k and v in one module, the scaling within; biases and norms under the keys that ComfyUI reads."""
    block = "transformer.transformer_blocks.0.attn"
    generator = torch.Generator().manual_seed(0)
    layers = {
        f"{block}.to_{part}": ml.LoraLayer(
            torch.randn(rank, 8, generator=generator), torch.randn(8, rank, generator=generator), 0.5
        )
        for part in "qkv"
    }
    extras = {f"{block}.to_{part}.lora_B.bias": torch.full((8,), 1.0) for part in "qkv"}
    extras[f"{block}.norm_q.weight"] = torch.ones(4)
    tensors = ml.Adapter(layers, extras, architecture="flux").state_dict("comfy")
    up, down = (tensors[f"{BFL}.qkv.{end}"] for end in ("lora_B.weight", "lora_A.weight"))
    dense = torch.cat([layer.delta_weight() for layer in layers.values()])
    torch.testing.assert_close(up @ down, dense)
    assert not any(key.endswith(".alpha") for key in tensors)
    assert tensors[f"{BFL}.qkv.diff_b"].tolist() == [1.0] * 24
    assert f"{BFL}.norm.query_norm.set_weight" in tensors


def test_comfy_of_sd2() -> None:
    """Its text encoder is an OpenCLIP-H there, and the first of the pipeline here."""
    name = "text_encoder.text_model.encoder.layers.0.mlp.fc1"
    adapter = ml.Adapter({name: ml.LoraLayer(torch.ones(1, 4), torch.ones(4, 1))}, architecture="sd2")
    tensors = adapter.state_dict("comfy")
    assert all(key.startswith("text_encoders.clip_h.transformer.text_model.") for key in tensors)
    assert list(ml.load(tensors).layers) == [name]


def test_comfy_needs_a_base_model() -> None:
    """Its names are those of the original model, and an embedding has none there."""
    layer = ml.LoraLayer(torch.ones(1, 4), torch.ones(4, 1))
    with pytest.raises(ml.ArchitectureError, match="architecture="):
        ml.Adapter({"unet.conv_in": layer}).state_dict("comfy")
    with pytest.raises(ml.ArchitectureError, match=r"unet.motion.* is no module of SD 1"):
        ml.Adapter({"unet.motion": layer}, architecture="sd15").state_dict("comfy")
    with pytest.raises(ml.FormatError, match="'kohya'"):
        ml.Adapter({"unet.conv_in": layer}, {"bundle_emb.sks.clip_l": torch.ones(2, 4)}, "sd15").state_dict("comfy")


def test_what_cannot_be_written_is_found_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Before a merge is computed: the method here would leave a mark."""
    (tmp_path / "mark.py").write_text(
        "import mergelab as ml\nfrom pathlib import Path\n\n\n@ml.register('mark')\ndef mark(changes, weights):\n"
        f"    Path({str(tmp_path / 'mark')!r}).touch()\n    return changes.sum(0)\n"
    )
    path = write(tmp_path / "a.safetensors", factors("diffusion_model.tower.3.mixer.proj", ""))
    command = ["merge", str(path), str(path), "--import", str(tmp_path / "mark.py"), "--method", "mark"]
    for more in (["--for", "comfyui"], ["--format", "kohya"], ["--format", "comfy"]):
        assert cli.run([*command, *more, "-o", str(tmp_path / "out.safetensors")]) == 2
        assert "tower" in (error := capsys.readouterr().err) or "base model is unknown" in error
    assert not (tmp_path / "mark").exists()
    assert cli.run([*command, "-o", str(tmp_path / "out.safetensors")]) == 0
    assert (tmp_path / "mark").exists() and ml.load(tmp_path / "out.safetensors").dialect == "comfy"


def test_shapes_that_cannot_be_fused_are_found_first() -> None:
    """On names and shapes alone."""
    shapes = {"to_q": (8, 8), "to_k": (4, 8)}
    layers = {
        f"transformer.transformer_blocks.0.attn.{part}": ml.LoraLayer(torch.ones(1, i), torch.ones(o, 1))
        for part, (o, i) in shapes.items()
    }
    adapter = ml.Adapter(layers, architecture="flux", source="x")
    assert check_writable([adapter]) == "diffusers"
    for choice in ({"format": "kohya"}, {"for_": "comfyui"}):
        with pytest.raises(ml.LayerError, match="do not fit together"):
            check_writable([adapter], **choice)
