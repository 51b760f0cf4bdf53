"""Which base model an adapter is for, and which it is not; and the tables of names against the real models."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import mergelab as ml
from mergelab import cli
from mergelab.formats.architectures import ARCHITECTURES, Architecture, Evidence
from mergelab.formats.architectures.published import TABLE, is_published
from mergelab.formats.names import locate
from mergelab.formats.prefixes import flatten, unflatten
from mergelab.formats.recognising import detect, recognise
from tests.published import LAYERS, kinds, layers, model

CROSS = "unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_k"
DOUBLE = "transformer.transformer_blocks.{}.attn.to_q"
QWEN = "transformer.transformer_blocks.0.img_mlp.net.2"
SD1_HEADER = {"modelspec.architecture": "stable-diffusion-v1/lora"}
FLUX2_HEADER = {"modelspec.architecture": "Flux.2-dev/lora"}
SINGLE = "transformer.single_transformer_blocks.{}.attn.to_q"

CASES: dict[str, tuple[dict[str, tuple[int, ...]], dict[str, str], str | None]] = {
    "SD 1.5": ({CROSS: (1280, 768)}, {}, "sd15"),
    "SD 2": ({CROSS: (1280, 1024)}, {}, "sd2"),
    "SDXL": ({CROSS: (1280, 2048)}, {}, "sdxl"),
    "both encoders, a UNet of another layout": (
        {CROSS: (64, 32), "text_encoder_2.text_model.encoder.layers.0.mlp.fc1": (64, 32)},
        {},
        None,
    ),
    "SDXL by depth": ({CROSS.replace("blocks.0", "blocks.9"): (64, 32)}, {}, "sdxl"),
    "a small UNet that says what it is": (
        {CROSS: (64, 32)},
        {"modelspec.architecture": "stable-diffusion-v1/lora"},
        "sd15",
    ),
    "FLUX": ({DOUBLE.format(18): (3072, 3072), SINGLE.format(37): (3072, 3072)}, {}, "flux"),
    "a small FLUX": ({SINGLE.format(0): (128, 128)}, {}, "flux"),
    "HunyuanVideo": ({DOUBLE.format(19): (3072, 3072), SINGLE.format(39): (3072, 3072)}, {}, "hunyuan-video"),
    "FLUX.2": ({DOUBLE.format(3): (6144, 6144)}, {}, None),
    "a FLUX.2 by its header": (
        {"transformer.x_embedder": (64, 32)},
        {"modelspec.architecture": "Flux.2-dev/lora"},
        "flux2-dev",
    ),
    "SD 3": ({DOUBLE.format(3): (1536, 1536)}, {}, None),
    "Qwen-Image": (
        {DOUBLE.format(3): (3072, 3072), QWEN: (3072, 12288)},
        {},
        "qwen-image",
    ),
    "T5 alone": ({"text_encoder_2.encoder.block.0.layer.0.SelfAttention.q": (4096, 4096)}, {}, "flux"),
    "CLIP-G alone": ({"text_encoder_2.text_model.encoder.layers.0.mlp.fc1": (5120, 1280)}, {}, "sdxl"),
    "SDXL by depth, whatever the header says": (
        {CROSS.replace("blocks.0", "blocks.9").replace("attn2", "attn1"): (1280, 1280)},
        SD1_HEADER,
        "sdxl",
    ),
    "a UNet whose header says FLUX": ({CROSS: (64, 32)}, {"modelspec.architecture": "flux-1-dev/lora"}, None),
    "a header of two minds": (
        {CROSS: (64, 32)},
        {"modelspec.architecture": "stable-diffusion-v1/lora", "ss_base_model_version": "sd_v2"},
        None,
    ),
    "CLIP-L alone, with a header": (
        {"text_encoder.text_model.encoder.layers.0.mlp.fc1": (3072, 768)},
        {"ss_base_model_version": "flux1"},
        "flux",
    ),
    "CLIP-L alone": ({"text_encoder.text_model.encoder.layers.0.mlp.fc1": (3072, 768)}, {}, None),
    "a text model": ({"model.model.layers.0.self_attn.q_proj": (64, 64)}, {}, None),
}


@pytest.mark.parametrize("case", CASES)
def test_detect(case: str) -> None:
    """From names and shapes first, then from the header."""
    shapes, metadata, expected = CASES[case]
    assert detect(shapes, metadata) == expected


def test_pissa_is_refused(tmp_path: Path) -> None:
    """Its factors belong to a base model that was changed at the start of training."""
    folder = tmp_path
    ml.load({"unet.conv_in.lora_A.weight": torch.ones(2, 3), "unet.conv_in.lora_B.weight": torch.ones(4, 2)}).save(
        folder / "a", format="peft"
    )
    config = json.loads((folder / "a" / "adapter_config.json").read_text())
    (folder / "a" / "adapter_config.json").write_text(json.dumps({**config, "init_lora_weights": "pissa_niter_4"}))
    with pytest.raises(ml.FormatError, match="pissa_niter_4"):
        ml.load(folder / "a")


STYLE = {"unet.down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k": (640, 2048)}


def adapter(shapes: dict[str, tuple[int, int]], source: str) -> ml.Adapter:
    layers = {name: ml.LoraLayer(torch.ones(1, n), torch.ones(m, 1)) for name, (m, n) in shapes.items()}
    return ml.Adapter(layers, architecture="sdxl" if source == "style" else None, source=source)


@pytest.mark.parametrize(
    ("shapes", "why"),
    [
        ({"unet.down_blocks.1.attentions.0.proj_in": (640, 640)}, None),
        ({"unet.down_blocks.1.attentions.1.transformer_blocks.0.attn2.to_k": (640, 2048)}, None),
        ({"unet.down_blocks.2.attentions.1.transformer_blocks.0.attn2.to_q": (64, 64)}, None),
        ({"text_encoder.text_model.encoder.layers.0.mlp.fc1": (3072, 768)}, None),
        ({"unet.down_blocks.1.attentions.0.proj_on": (640, 640)}, "proj_on is none of SDXL's"),
        ({"model.layers.0.mlp.fc1": (64, 64)}, "model.layers.0.mlp.fc1 is none of SDXL's"),
        ({"text_encoder.encoder.block.0.layer.0.SelfAttention.q": (64, 64)}, "SelfAttention.q is none of SDXL's"),
        (
            {"unet.down_blocks.1.attentions.1.transformer_blocks.0.attn2.to_k": (640, 32)},
            r"has shape \(640, 32\), where",
        ),
    ],
)
def test_an_unknown_base_model_with_a_known_one(shapes: dict[str, tuple[int, int]], why: str | None) -> None:
    """They go together only if all layers of the one exist in the other, with fitting shapes."""
    style, other = adapter(STYLE, "style"), adapter(shapes, "other")
    if why is None:
        assert ml.merge([style, other]).architecture == "sdxl"
        return
    for act in (lambda: ml.merge([other, style]), lambda: style + other):
        with pytest.raises(ml.ArchitectureError, match=why):
            act()


def test_a_header_that_the_layers_belie_is_said() -> None:
    """Whether they prove another model or none."""
    for shapes, note in (
        (STYLE, "the header names SD 1.x, the layers are those of SDXL"),
        ({"transformer.proj": (4, 4)}, "the header names SD 1.x, which the layers do not bear out"),
    ):
        assert note in recognise(shapes, SD1_HEADER).notes


def test_the_user_may_say_which(tmp_path: Path) -> None:
    """`architecture=` decides what a file leaves open, and is held against what it does not."""
    module = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_k"
    layer = {f"{module}.lora_A.weight": torch.ones(1, 8), f"{module}.lora_B.weight": torch.ones(8, 1)}
    assert ml.load(layer).architecture is None
    assert "may be those of SD 1.x, SD 2.x or SDXL" in ml.load(layer).notes[0]
    assert ml.load(layer, architecture="sd2").architecture == "sd2"
    with pytest.raises(ml.OptionError, match="did you mean 'sdxl'"):
        ml.load(layer, architecture="sdxxl")
    with pytest.raises(ml.ArchitectureError, match=r"1 of 1 modules are none of FLUX\.1's"):
        ml.load(layer, architecture="flux")
    path = tmp_path / "some.safetensors"
    save_file(layer, path)
    out = str(tmp_path / "out.safetensors")
    assert cli.run(["convert", str(path), "-o", out, "--format", "diffusers", "--architecture", "sd15"]) == 0
    assert ml.load(out).architecture == "sd15"
    assert cli.run(["merge", str(path), str(path), "-o", out, "--force", "--architecture", "sdxl"]) == 0
    assert ml.load(out).architecture == "sdxl"


# The tables of names, against diffusers' class on the meta device.

KNOWN = pytest.mark.parametrize("architecture", ARCHITECTURES.values(), ids=lambda a: a.id)


def original_paths(architecture: Architecture) -> Iterator[str]:
    """Every path of the original model that the tables spell out, for each block that the diffusers model has."""
    naming, there = architecture.naming, [path for path, _ in model(architecture).named_modules()]
    yield from naming.top
    for block in naming.blocks:
        numbers = [0]
        if "{}" in block.canonical:
            stem = block.canonical.partition("{}")[0]
            numbers = [int(path.removeprefix(stem)) for path in there if path.removeprefix(stem).isdecimal()]
        for number in numbers[: block.count]:
            canonical, original = (part.replace("{}", str(number)) for part in (block.canonical, block.original))
            inside = (path.removeprefix(f"{canonical}.") for path in there if path.startswith(f"{canonical}."))
            yield from (f"{original}.{path}" for path in (inside if block.modules is None else block.modules))


@KNOWN
def test_published_shapes(architecture: Architecture) -> None:
    """The table is what diffusers' class says; `python -m tests.published` writes it."""
    table = json.loads(TABLE.read_text())
    assert table.get(architecture.id, kinds(architecture)) == kinds(architecture)
    if architecture.id in table:
        assert is_published(architecture.id, layers(architecture))


@KNOWN
def test_original_names_are_of_real_modules(architecture: Architecture) -> None:
    """What a module of the original model holds are modules of diffusers', of the sizes that the table says."""
    modules = dict(model(architecture).named_modules())
    paths = list(original_paths(architecture))
    assert len(paths) > 100
    for path in paths:
        module = architecture.naming.module(path)
        assert module is not None
        assert set(module.parts) <= set(modules), path
        if isinstance(modules[module.parts[0]], LAYERS):
            shapes = [modules[part].weight.shape for part in module.parts]
            assert len({shape[1:] for shape in shapes}) == 1
            rows = [shape[0] for shape in shapes]
            assert module.sizes(sum(rows), shapes[0][1]) == rows
            assert module.linear <= all(len(shape) == 2 for shape in shapes)


@KNOWN
def test_real_modules_have_original_names(architecture: Architecture) -> None:
    """Every linear layer and convolution has an original name that leads back; both can be read from a flat name."""
    component, naming = architecture.denoiser, architecture.naming
    found: dict[str, set[int]] = {}
    for path in layers(architecture):
        place = naming.place(path)
        assert place is not None, path
        assert place.module.parts[place.part] == path
        assert naming.module(place.module.path) == place.module
        found.setdefault(place.module.path, set()).add(place.part)
        for name in (path, place.module.path):
            flat = flatten(name, naming)
            assert flat is not None
            assert unflatten(flat, naming) == name
    dotted = locate([f"{component}.{path}" for path in layers(architecture)], architecture)
    for path, where in zip(layers(architecture), dotted.values()):
        assert (where.component, where.path, where.known) == (component, path, True)
    flat_names = locate([f"lora_unet_{flatten(path, naming)}" for path in found], architecture)
    for path, where in zip(found, flat_names.values()):
        assert (where.component, where.original, where.known) == (component, naming.module(path), True)
        assert len(found[path]) == len(where.original.parts), "a part is left out"  # type: ignore[union-attr]


@KNOWN
def test_norms_have_two_names(architecture: Architecture) -> None:
    """A norm that some adapters hold whole is a module of diffusers', under either name."""
    naming, modules = architecture.naming, dict(model(architecture).named_modules())
    norms = [path for path, m in modules.items() if naming.norm(path) and any(True for _ in m.parameters())]
    for path in norms:
        assert naming.norm(naming.original_norm(path) or "") == path
        assert not isinstance(modules[path], LAYERS)
    kinds = {re.sub(r"(?<=\.)\d+(?=\.)", "{}", path) for path in norms}
    named = {f"{block.canonical}.{norm}" for block in naming.blocks for norm in block.norms.values()}
    assert kinds == {re.sub(r"(?<=\.)\d+(?=\.)", "{}", path) for path in named}


# Models whose attention is named and shaped as another's: what its adapters are taken for where no header says.
# Of the blocks of LTX-Video 13B, LTX-2 has all.
ALIKE = {"chroma": "flux", "sd3": None, "ltx-video-13b": None}


@KNOWN
@pytest.mark.parametrize("part", ["all", "attention"])
def test_a_real_model_is_recognised(architecture: Architecture, part: str) -> None:
    """All layers tell it against wrong headers, those of attention with the right one, or alone if none is alike."""
    shapes = {
        f"{architecture.denoiser}.{path}": shape
        for path, shape in layers(architecture).items()
        if part == "all" or "attn" in path or "attention" in path
    }
    own = {"modelspec.architecture": architecture.modelspec}
    if part == "all":
        every = " ".join(other.modelspec for other in ARCHITECTURES.values())
        assert detect(shapes, {"modelspec.architecture": every}) == architecture.id
    else:
        assert detect(shapes, own) == architecture.id
        assert detect(shapes, {}) == ALIKE.get(architecture.id, architecture.id)


@KNOWN
def test_an_architecture_knows_its_own_header(architecture: Architecture) -> None:
    """What is written into a header is recognised by its own pattern alone."""
    for strings in (
        {"modelspec.architecture": architecture.modelspec},
        {"ss_base_model_version": architecture.base_version},
    ):
        evidence = Evidence.of({}, strings)
        assert [a.id for a in ARCHITECTURES.values() if evidence.says(a.header)] == [architecture.id]
