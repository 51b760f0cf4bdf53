"""From a checkpoint to a new one: converting it, as diffusers does, and fusing give the same in either order."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from diffusers.loaders import single_file_utils as converters
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import mergelab as ml
from mergelab import miniature
from mergelab.cli import run
from mergelab.engine import checkpoint
from mergelab.formats.architectures import ARCHITECTURES
from mergelab.layer import BIAS_SUFFIX
from mergelab.linalg.adding import added
from mergelab.pipelines.opening import quietly
from tests.synthetic import lora

State = dict[str, Tensor]
UNET = "model.diffusion_model."
CLIP_L = "conditioner.embedders.0.transformer."
CLIP_G = "conditioner.embedders.1.model."
OPEN_CLIP = {"layer_norm1": "ln_1", "layer_norm2": "ln_2", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj"}


@cache
def sdxl() -> dict[str, nn.Module]:
    """The models of an SDXL of the real layout with random weights, in bfloat16."""
    config = dict(ARCHITECTURES["sdxl"].model_config) | {
        "attention_head_dim": 8,
        "block_out_channels": [32, 64, 64],
        "cross_attention_dim": 16,
        "norm_num_groups": 8,
        "transformer_layers_per_block": 1,
    }
    torch.manual_seed(0)
    pipe: Any = opened("sdxl")
    models = {"unet": diffusers.UNet2DConditionModel.from_config(config)}
    models |= {name: getattr(pipe, name) for name in ("text_encoder", "text_encoder_2")}
    return {name: model.to(torch.bfloat16) for name, model in models.items()}


def opened(source: str | Path, dtype: torch.dtype = torch.float32) -> Any:
    with quietly():
        if isinstance(source, str):
            return miniature.pipeline(source, torch_dtype=dtype)
        return diffusers.DiffusionPipeline.from_pretrained(source, torch_dtype=dtype)


def adapter(models: dict[str, nn.Module], id: str, kinds: tuple[type[nn.Module], ...]) -> ml.Adapter:
    """Of every layer, and of every bias."""
    generator = torch.Generator().manual_seed(1)
    layers, extras = {}, {}
    for component, model in models.items():
        for path, module in model.named_modules():
            if isinstance(module, kinds) and "text_projection" not in path:
                prefix = "text_model." if path.startswith("encoder.layers.") else ""
                name = f"{component}.{prefix}{path}"
                layers[name] = lora(tuple(module.weight.shape), 2, generator)
                if module.bias is not None:
                    extras[name + BIAS_SUFFIX] = torch.randn(module.bias.shape, generator=generator)
    return ml.Adapter(layers, extras, architecture=id)


def fused(model: nn.Module, component: str, change: ml.Adapter, weight: float) -> State:
    """The model's tensors with the change, by diffusers' names without CLIP's outermost step."""
    state = {key.removeprefix("text_model."): value for key, value in model.state_dict().items()}
    for name, layer in change.layers.items():
        if name.startswith(f"{component}."):
            path = name.removeprefix(f"{component}.").removeprefix("text_model.")
            factors = change.matrices(name).scaled(weight)
            state[f"{path}.weight"] = added(state[f"{path}.weight"], [factors])
            if (bias := change.extras.get(name + BIAS_SUFFIX)) is not None:
                state[f"{path}.bias"] = (state[f"{path}.bias"].float() + weight * bias).to(state[f"{path}.bias"].dtype)
            assert layer.rank == 2
    return state


def original(state: State, id: str) -> State:
    """Diffusers' tensors under the names, and in the modules, of the original model."""
    naming = ARCHITECTURES[id].naming
    parts: dict[str, dict[int, Tensor]] = {}
    whole: State = {}
    for key, value in state.items():
        path, _, leaf = key.rpartition(".")
        if place := naming.place(path):
            parts.setdefault(f"{place.module.path}.{leaf}", {})[place.part] = value
            if place.module.swapped:
                parts[f"{place.module.path}.{leaf}"][0] = torch.roll(value, len(value) // 2, dims=0)
        else:
            norm = naming.original_norm(path)
            assert norm, key
            whole[f"{norm}.scale"] = value
    return whole | {key: torch.cat([held[i] for i in range(len(held))]) for key, held in parts.items()}


def open_clip(state: State) -> State:
    """CLIP's tensors under open_clip's names."""
    renamed: State = {}
    for key, value in state.items():
        if not key.startswith("encoder.layers."):
            continue
        _, _, number, rest = key.split(".", 3)
        block = f"{CLIP_G}transformer.resblocks.{number}."
        if rest.startswith("self_attn.q_proj."):
            leaf = rest.rpartition(".")[2]
            qkv = [state[key.replace("q_proj", f"{x}_proj")] for x in "qkv"]
            renamed[f"{block}attn.in_proj_{leaf}"] = torch.cat(qkv)
        elif "out_proj" in rest:
            renamed[block + rest.replace("self_attn", "attn")] = value
        elif "_proj." not in rest:
            path, _, leaf = rest.rpartition(".")
            renamed[f"{block}{OPEN_CLIP[path]}.{leaf}"] = value
    renamed[f"{CLIP_G}text_projection"] = state["text_projection.weight"].T.contiguous()
    return renamed


def test_a_single_file_of_sdxl(tmp_path: Path) -> None:
    """All three models with every layer and bias, q, k, v of the second encoder fused; a VAE that stays."""
    models = sdxl()
    states = {name: fused(model, "", ml.Adapter({}), 1) for name, model in models.items()}
    tensors = {UNET + key: value for key, value in original(states["unet"], "sdxl").items()}
    tensors |= {f"{CLIP_L}text_model.{key}": value for key, value in states["text_encoder"].items()}
    tensors |= open_clip(states["text_encoder_2"])
    tensors |= {"first_stage_model.decoder.conv_in.weight": torch.randn(4, 4, 3, 3)}
    base, out = tmp_path / "base.safetensors", tmp_path / "out.safetensors"
    metadata = {"modelspec.title": "a base", "modelspec.hash_sha256": "0x12"}
    save_file({key: value.contiguous() for key, value in tensors.items()}, base, metadata)
    change = adapter(models, "sdxl", (nn.Linear, nn.Conv2d))
    ml.fuse_checkpoint(base, change, out, 0.5)
    written = load_file(out)
    config = dict(models["unet"].config) | {"num_class_embeds": None}
    results = {
        "unet": converters.convert_ldm_unet_checkpoint(dict(written), config),
        "text_encoder": {
            key.removeprefix(f"{CLIP_L}text_model."): value for key, value in written.items() if key.startswith(CLIP_L)
        },
        "text_encoder_2": {
            key.removeprefix("text_model."): value
            for key, value in converters.convert_open_clip_checkpoint(
                models["text_encoder_2"], dict(written), CLIP_G
            ).items()
        },
    }
    for component, result in results.items():
        expected = fused(models[component], component, change, 0.5)
        assert len(result) > 30
        for key, value in result.items():
            assert torch.equal(value, expected[key]), f"{component}.{key}"
    compare(base, out, len(change.layers) + len(change.extras) - 4 * 2 * len(qkv_layers(change)) // 6)


def qkv_layers(change: ml.Adapter) -> list[str]:
    """Of the second encoder, three of which are one tensor."""
    return [name for name in change.layers if name.startswith("text_encoder_2") and name[-6] in "qkv"]


def compare(base: Path, out: Path, changed: int) -> None:
    """Same keys, dtypes, shapes, order and strings; so many tensors differ, the others are equal to the last bit."""
    headers = [
        json.loads((raw := path.read_bytes())[8 : 8 + int.from_bytes(raw[:8], "little")]) for path in (base, out)
    ]
    strings = [header.pop("__metadata__") for header in headers]
    assert list(headers[0].items()) == list(headers[1].items())
    recipe = json.loads(strings[1].pop("mergelab"))
    assert recipe["fused_into"] == "base.safetensors"
    assert strings[1] == {key: value for key, value in strings[0].items() if "hash" not in key}
    old, new = load_file(base), load_file(out)
    assert sum(not torch.equal(old[key], new[key]) for key in old) == changed


@pytest.mark.parametrize("prefix", ["", UNET])
def test_a_single_file_of_flux(tmp_path: Path, prefix: str) -> None:
    """Fused q, k, v, linear1 and swapped halves, with every layer and bias, and with some parts of a module alone."""
    model = opened("flux", torch.bfloat16).transformer
    whole = adapter({"transformer": model}, "flux", (nn.Linear,))
    parts = {name: layer for name, layer in whole.layers.items() if name.endswith(("to_k", "proj_mlp", "add_v_proj"))}
    base, out = tmp_path / "base.safetensors", tmp_path / "out.safetensors"
    tensors = original(model.state_dict(), "flux")
    save_file({prefix + key: value.contiguous() for key, value in tensors.items()}, base, {"format": "pt"})
    for change in (whole, ml.Adapter(parts, architecture="flux")):
        ml.fuse_checkpoint(base, [change], out, [-0.7], overwrite=True)
        written = {key.removeprefix(prefix): value for key, value in load_file(out).items()}
        # The converter knows no other width than the published one; test_original_weights holds the names against it.
        expected = original(fused(model, "transformer", change, -0.7), "flux")
        assert written.keys() == expected.keys()
        for key, value in written.items():
            assert torch.equal(value, expected[key]), key
    assert safe_open(out, "pt").metadata()["format"] == "pt"


@pytest.mark.parametrize("shards", [False, True])
def test_a_folder_is_what_fusing_live_and_saving_gives(tmp_path: Path, shards: bool) -> None:
    """Text encoders included; whole or in several files."""
    opened("sdxl", torch.float16).save_pretrained(base := tmp_path / "base", max_shard_size="1MB" if shards else "1GB")
    assert (len(list((base / "unet").glob("*.safetensors"))) > 2) is shards
    loras, weights = ["miniature/sdxl/fish", "miniature/sdxl/day"], [0.8, {"unet": 0.5}]
    written = ml.fuse_checkpoint(base, loras, tmp_path / "out", weights)
    assert len(written.changed) == 93
    assert written.changed[0].startswith("text_encoder/model")
    pipe = opened("sdxl", torch.float16)
    ml.fuse(pipe, loras, weights)
    result = opened(tmp_path / "out", torch.float16)
    for name, part in pipe.components.items():
        if isinstance(part, nn.Module):
            state = getattr(result, name).state_dict()
            assert all(torch.equal(state[key], value) for key, value in part.state_dict().items()), name
    files = {path.relative_to(base) for path in base.rglob("*") if path.is_file()}
    assert files == {path.relative_to(tmp_path / "out") for path in (tmp_path / "out").rglob("*") if path.is_file()}
    unchanged = [path for path in files if path.parts[0] not in ("unet", "text_encoder", "text_encoder_2")]
    assert all(
        (base / path).read_bytes() == (tmp_path / "out" / path).read_bytes()
        for path in unchanged
        if path.suffix != ".safetensors"
    )


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Says what it has written, and writes nothing over."""
    command = ["fuse", "miniature/flux", "miniature/flux/ghost:0.8", "miniature/flux/day", "-o", str(tmp_path / "out")]
    assert run(command) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'out'}: 52 tensors changed\n"
    assert run(command) == 2
    assert "exists already" in capsys.readouterr().err
    pipe = opened("flux", torch.float16)
    ml.fuse(pipe, ["miniature/flux/ghost", "miniature/flux/day"], [0.8, 1.0])
    result = opened(tmp_path / "out", torch.float16).transformer.state_dict()
    assert all(torch.equal(result[key], value) for key, value in pipe.transformer.state_dict().items())


def file(path: Path, tensors: State) -> Path:
    save_file(tensors, path)
    return path


NAME = "unet.mid_block.attentions.0.proj_in"
KEY = f"{UNET}middle_block.1.proj_in.weight"


def case(folder: Path, base: Callable[[Path], Path] | State, out: str = "out.safetensors") -> Path:
    """Fuses a layer of 8 x 8 into a base model, both in the folder."""
    source = file(folder / "base.safetensors", base) if isinstance(base, dict) else base(folder)
    change = ml.Adapter({NAME: lora((8, 8), 2, torch.Generator().manual_seed(0))}, architecture="sdxl")
    ml.fuse_checkpoint(source, change, folder / out)
    return folder / out


def pickled(folder: Path) -> Path:
    """A pipeline whose UNet is there twice."""
    opened("sdxl").save_pretrained(folder / "base")
    (folder / "base/unet/diffusion_pytorch_model.bin").write_bytes(b"weights")
    return folder / "base"


@pytest.mark.parametrize(
    ("base", "out", "match"),
    [
        ({KEY: torch.ones(8, 9)}, "out.safetensors", r"a change of shape \(8, 8\), expected \(8, 9\)"),
        ({"other.weight": torch.ones(8, 8)}, "out.safetensors", "has none of the adapters' layers"),
        ({KEY: torch.ones(8, 8).to(torch.float8_e4m3fn)}, "out.safetensors", "is F8_E4M3, expected one of F64"),
        (
            {KEY: torch.ones(8, 8), f"{UNET}mid_block.attentions.0.proj_in.weight": torch.ones(8, 8)},
            "out.safetensors",
            "more than one tensor is unet.mid_block",
        ),
        ({KEY: torch.ones(8, 8)}, "base.safetensors", "an output never replaces an input"),
        ({KEY: torch.ones(8, 8)}, "none/out.safetensors", "there is no folder"),
        ({KEY: torch.ones(8, 8)}, "out", "ends in .safetensors"),
        (
            {KEY: torch.full((8, 8), float("inf"))},
            "out.safetensors",
            r"middle_block\.1\.proj_in\.weight: the changed weights are not finite",
        ),
        (lambda folder: folder, "out.safetensors", "has no model_index.json"),
        (lambda folder: folder / "none", "out.safetensors", "there is no such file or folder"),
        (lambda folder: miniature.folder("sdxl"), "out.safetensors", "expected the name of a folder|shape"),
    ],
)
def test_what_cannot_be_written_is_refused(tmp_path: Path, base: Any, out: str, match: str) -> None:
    """By name, and nothing is left behind."""
    with pytest.raises(ml.MergelabError, match=match):
        case(tmp_path, base, out)
    assert {path.name for path in tmp_path.iterdir()} <= {"base.safetensors"}


def test_weights_in_a_second_format_are_refused(tmp_path: Path) -> None:
    """Which diffusers might load instead."""
    with pytest.raises(ml.FormatError, match=r"diffusion_pytorch_model\.bin: holds weights in another format"):
        ml.fuse_checkpoint(pickled(tmp_path), "miniature/sdxl/ghost", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["base"]


def test_a_layer_without_a_tensor_is_an_error(tmp_path: Path) -> None:
    """Before anything is written: a single file without text encoders, say."""
    base = file(tmp_path / "base.safetensors", {KEY: torch.ones(8, 8)})
    generator = torch.Generator().manual_seed(0)
    names = (NAME, "text_encoder.text_model.encoder.layers.0.mlp.fc1")
    change = ml.Adapter({name: lora((8, 8), 2, generator) for name in names}, architecture="sdxl")
    with pytest.raises(ml.LayerError, match=r"no tensor for 1 layer of the adapters, text_encoder\.text_model"):
        ml.fuse_checkpoint(base, change, tmp_path / "out.safetensors")
    assert list(tmp_path.iterdir()) == [base]
    ml.fuse_checkpoint(base, change.select("unet"), tmp_path / "out.safetensors")


def test_a_kill_leaves_no_half_checkpoint(tmp_path: Path) -> None:
    """Nothing under the output's name, and the base model as it was."""
    base = file(tmp_path / "base.safetensors", {KEY: torch.ones(8, 8), "rest": torch.ones(9)})
    before = base.read_bytes()
    lines = (
        "import os, signal, torch, mergelab as ml",
        "from mergelab.engine import checkpoint",
        "checkpoint.added = lambda *_: os.kill(os.getpid(), signal.SIGKILL)",
        f"change = ml.Adapter({{{NAME!r}: ml.LoraLayer(torch.ones(1, 8), torch.ones(8, 1))}}, architecture='sdxl')",
        f"ml.fuse_checkpoint({str(base)!r}, change, {str(tmp_path / 'out.safetensors')!r})",
    )
    assert subprocess.run([sys.executable, "-c", "\n".join(lines)], check=False).returncode == -signal.SIGKILL
    assert not (tmp_path / "out.safetensors").exists()
    assert base.read_bytes() == before


def test_an_interruption_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C half way."""

    def interrupt(*_: Any) -> Tensor:
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint, "added", interrupt)
    with pytest.raises(KeyboardInterrupt):
        case(tmp_path, {KEY: torch.ones(8, 8)})
    assert [path.name for path in tmp_path.iterdir()] == ["base.safetensors"]


def test_components_behind_links(tmp_path: Path) -> None:
    """As people share a VAE between pipelines: copied with the rest; one that is not there at all is named."""
    shared = tmp_path / "shared"
    shutil.copytree(miniature.folder("sdxl"), shared)
    base = tmp_path / "base"
    base.mkdir()
    for part in shared.iterdir():
        (base / part.name).symlink_to(part)
    written = ml.fuse_checkpoint(base, "miniature/sdxl/ghost", tmp_path / "out")
    assert len(written.changed) == 48
    names = {file.relative_to(shared) for file in shared.rglob("*") if file.is_file()}
    assert {file.relative_to(tmp_path / "out") for file in (tmp_path / "out").rglob("*") if file.is_file()} == names
    (base / "vae").unlink()
    with pytest.raises(ml.FormatError, match=r"model_index\.json names 'vae', and there is no file in that folder"):
        ml.fuse_checkpoint(base, "miniature/sdxl/ghost", tmp_path / "other")


def test_a_second_fusing_keeps_what_the_header_said(tmp_path: Path) -> None:
    """Of the first: what was fused, and at which weight."""
    ml.fuse_checkpoint("miniature/sdxl", "miniature/sdxl/ghost", tmp_path / "first", 0.5)
    ml.fuse_checkpoint(tmp_path / "first", "miniature/sdxl/day", tmp_path / "second")
    (file,) = (tmp_path / "second" / "unet").glob("*.safetensors")
    with safe_open(file, framework="pt") as opened:
        recipe = json.loads(opened.metadata()["mergelab"])
    before = json.loads(recipe["before"])
    assert [recipe["inputs"][0]["name"], before["inputs"][0]["name"], before["inputs"][0]["weight"]] == [
        "day",
        "ghost",
        0.5,
    ]
