"""A base model's weights by canonical name are those of the loaded model, whatever the file they are in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import mergelab as ml
from mergelab.formats.architectures import ARCHITECTURES
from mergelab.formats.base_weights import BaseWeights, open_base
from tests.test_fuse_checkpoint import CLIP_L, UNET, fused, open_clip, opened, original, sdxl

LAYERS = (nn.Linear, nn.Conv2d, nn.Embedding)


def check(base: BaseWeights, models: dict[str, nn.Module], *, lacking: tuple[str, ...] = ()) -> None:
    """Every layer is there, and nothing else, with the values of the live module."""
    expected = {
        f"{component}.{path.removeprefix('text_model.')}": module
        for component, model in models.items()
        for path, module in model.named_modules()
        if isinstance(module, LAYERS) and not (lacking and path.endswith(lacking))
    }
    # Tied to `shared`, and not in a file twice.
    there = {name.replace(".text_model.", "."): name for name in base.names if not (lacking and name.endswith(lacking))}
    assert set(there) ^ set(expected) <= {"text_encoder_2.encoder.embed_tokens"}
    for path, name in there.items():
        weight, bias = base.weight(name), base.bias(name)
        assert weight.dtype == torch.float32
        assert base.shape(name) == tuple(weight.shape)
        assert torch.equal(weight, expected[path].weight.float()), name
        own = getattr(expected[path], "bias", None)
        assert (bias is None) == (own is None)
        assert bias is None or torch.equal(bias, own.float())


def parts(source: str | Path, dtype: torch.dtype = torch.float32) -> dict[str, nn.Module]:
    pipe = opened(source, dtype)
    return {name: part for name, part in pipe.components.items() if isinstance(part, nn.Module) and name != "vae"}


@pytest.mark.parametrize("id", ["sdxl", "flux"])
def test_a_folder_a_pipeline_and_its_denoiser(id: str) -> None:
    """All of one model say the same."""
    models = parts(id)
    base = open_base(f"miniature/{id}")
    assert base.architecture == id
    check(base, models)
    pipe = opened(id)
    check(open_base(pipe), models)
    denoiser = ARCHITECTURES[id].denoiser
    alone = open_base(getattr(pipe, denoiser))
    assert alone.architecture == id
    check(alone, {denoiser: models[denoiser]})
    assert set(open_base(pipe).others) == set(base.others)


@pytest.mark.parametrize("kind", ["shards", "fp16", "both", "component"])
def test_folders(tmp_path: Path, kind: str) -> None:
    """In several files, in a variant, in a variant beside the whole, and one model's own."""
    pipe = opened("sdxl", torch.float16)
    size = "1MB" if kind == "shards" else "1GB"
    pipe.save_pretrained(tmp_path, max_shard_size=size, variant="fp16" if kind in ("fp16", "both") else None)
    if kind == "both":
        opened("sdxl").save_pretrained(tmp_path)
    models = parts("sdxl", torch.float16)
    if kind == "component":
        check(open_base(tmp_path / "unet"), {"unet": models["unet"]})
        return
    check(open_base(tmp_path), parts("sdxl") if kind == "both" else models)
    if kind == "shards":
        shards = sorted((tmp_path / "unet").glob("*-of-*.safetensors"))
        assert len(shards) > 1
        shards[1].unlink()
        with pytest.raises(ml.FormatError, match=r"unet: shard 2 of \d+ is missing beside"):
            open_base(tmp_path)
    if kind == "both":
        for path in tmp_path.glob("*/diffusion_pytorch_model.safetensors"):
            path.rename(path.with_name("diffusion_pytorch_model.bf16.safetensors"))
        with pytest.raises(ml.FormatError, match="in several variants"):
            open_base(tmp_path)


def single_file_of_sdxl() -> dict[str, Tensor]:
    """As sd-scripts and ComfyUI have it."""
    states = {name: fused(model, "", ml.Adapter({}), 1) for name, model in sdxl().items()}
    tensors = {UNET + key.replace(".scale", ".weight"): x for key, x in original(states["unet"], "sdxl").items()}
    tensors |= {f"{CLIP_L}text_model.{key}": value for key, value in states["text_encoder"].items()}
    tensors |= open_clip(states["text_encoder_2"])
    return {key: value.contiguous() for key, value in tensors.items()} | {"first_stage_model.x.weight": torch.ones(3)}


def test_a_single_file_of_sdxl(tmp_path: Path) -> None:
    """Its second encoder fuses q, k, v and has no embeddings here; as a state dict it is the same."""
    save_file(tensors := single_file_of_sdxl(), tmp_path / "base.safetensors")
    for base in (open_base(tmp_path / "base.safetensors"), open_base(tensors)):
        assert base.architecture == "sdxl"
        check(base, sdxl(), lacking=("_embedding", "text_projection"))
        assert "first_stage_model.x.weight" in base.others or "model.first_stage_model.x.weight" in base.others
        assert set(open_base(sdxl()["unet"]).others) <= set(base.others)


@pytest.mark.parametrize("prefix", ["", UNET])
def test_a_single_file_of_flux(tmp_path: Path, prefix: str) -> None:
    """Parts of fused modules and swapped halves; norms by the names that diffusers has for them."""
    model = opened("flux", torch.bfloat16).transformer
    tensors = {prefix + key: value.contiguous() for key, value in original(model.state_dict(), "flux").items()}
    save_file(tensors, tmp_path / "base.safetensors")
    base = open_base(tmp_path / "base.safetensors", "flux")
    assert open_base(tmp_path / "base.safetensors").architecture == "flux"
    check(base, {"transformer": model})
    live = open_base(model)
    assert set(base.others) == set(live.others)
    assert all(torch.equal(base.stored(name), live.stored(name)) for name in live.others)


def test_a_state_dict_by_canonical_names() -> None:
    """As `Adapter.layers` are named, with a weight behind."""
    whole = open_base("miniature/flux")
    tensors = {f"{name}.weight": whole.weight(name) for name in whole.names}
    again = open_base(tensors)
    assert set(again.names) == set(whole.names)
    assert torch.equal(again.weight(whole.names[0]), whole.weight(whole.names[0]))


def quantised(folder: Path) -> Any:
    name = "transformer.transformer_blocks.0.attn.to_q"
    save_file({f"{name}.weight": torch.ones(8, 8).to(torch.float8_e4m3fn)}, folder / "base.safetensors")
    return open_base(folder / "base.safetensors").weight(name)


def written(folder: Path, name: str) -> Path:
    (folder / name).write_bytes(b"GGUF")
    return folder / name


@pytest.mark.parametrize(
    ("wrong", "match"),
    [
        (quantised, r"base\.safetensors: layer transformer\S+to_q: its weight is quantised, F8_E4M3, expected one of"),
        (lambda folder: open_base(written(folder, "x.gguf")), r"x\.gguf: is quantised \(GGUF\), expected safetensors"),
        (lambda folder: open_base(written(folder, "x.ckpt")), r"x\.ckpt: is a \.ckpt, expected safetensors"),
        (lambda folder: open_base(folder / "none"), "there is no such file or folder"),
        (lambda folder: open_base({}), "<state dict>: holds no tensors"),
        (lambda folder: open_base(3), "base=3: expected a file or folder"),
        (lambda folder: open_base(nn.Linear(2, 2)), "class Linear: cannot tell which component it is; .*component="),
        (lambda folder: open_base("miniature/sdxl").weight("unet.x"), r"layer unet\.x: the base model has no such"),
        (lambda folder: open_base("miniature/sdxl", "fluks"), "there is no such base model"),
        (lambda folder: open_base("miniature/sdxl", "flux"), "architecture='flux'"),
        (
            lambda folder: open_base({"unet.a.weight": torch.ones(2, 2, device="meta")}).weight("unet.a"),
            "its weight is offloaded",
        ),
    ],
)
def test_what_cannot_be_read_is_refused(tmp_path: Path, wrong: Any, match: str) -> None:
    """By name, with what to do."""
    with pytest.raises(ml.MergelabError, match=match):
        wrong(tmp_path)


def test_adapters_that_are_active_are_no_weights() -> None:
    """They are told."""
    pipe = opened("flux")
    plain = open_base(pipe)
    ml.apply(pipe, "miniature/flux/ghost")
    base = open_base(pipe)
    assert set(base.names) == set(plain.names) and set(base.others) == set(plain.others)
    assert all(torch.equal(base.weight(name), plain.weight(name)) for name in plain.names)
    assert base.notes == ("not read: the adapters that are active in transformer; its own weights were",)


def test_weights_that_are_no_safetensors(tmp_path: Path) -> None:
    """A component that has no others is refused by name."""
    opened("flux").save_pretrained(tmp_path)
    file = next((tmp_path / "transformer").glob("*.safetensors"))
    file.rename(file.with_suffix(".bin"))
    with pytest.raises(ml.FormatError, match=r"diffusion_pytorch_model\.bin: expected safetensors; save the pipeline"):
        open_base(tmp_path)


def test_nothing_is_read_before_it_is_asked_for(tmp_path: Path) -> None:
    """What a file loses afterwards is missed only then."""
    save_file(
        {"unet.a.weight": torch.ones(4, 4), "unet.b.weight": torch.ones(4, 4)}, path := tmp_path / "x.safetensors"
    )
    base = open_base(path)
    path.write_bytes(path.read_bytes()[:-64])
    assert sorted(base.names) == ["unet.a", "unet.b"]
    assert torch.equal(base.weight("unet.a"), torch.ones(4, 4))
    with pytest.raises(ml.FormatError, match="the file ends early"):
        base.weight("unet.b")
