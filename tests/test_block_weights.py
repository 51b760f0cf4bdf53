"""Block weights: the tables of each layout and preset, and files that are the weighted sums by hand."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from diffusers import FluxTransformer2DModel, UNet2DConditionModel

import mergelab as ml
from mergelab import cli
from mergelab.formats.architectures import ARCHITECTURES
from mergelab.formats.block_layouts import FAMILIES, FLUX
from mergelab.formats.block_presets import PRESETS
from tests.conftest import ROOT
from tests.synthetic import adapter

# Name -> values, as ComfyUI's Inspire Pack lists them; sd-webui-lora-block-weight has the same for SD.
LISTS: dict[str, list[float]] = json.loads((ROOT / "tests" / "data" / "block_presets.json").read_text())
# What the tools have no list for, after their pattern: the values of one model for another.
OWN = {
    "sd15": {"MIDALL": "1,0,0,0,0,0,0,1,0,0,0,0,0,0,0,0,0"},
    "sdxl": {"ALL0.5": "0.5," * 11 + "0.5"},
    "flux": {"NONE": "0," * 57 + "0", "ALL0.5": "0.5," * 57 + "0.5"},
}
DOWN, MID, UP = "unet.down_blocks", "unet.mid_block", "unet.up_blocks"


def _sd_block(path: str) -> str:
    """The block of a module of a UNet, counted as sd-scripts counts it: three blocks for each level."""
    if path == "conv_in":
        return "IN00"
    if path.startswith("mid_block"):
        return "MID"
    found = re.match(r"(down|up)_blocks\.(\d)\.(\w+)\.(\d)", path)
    if not found:
        return "BASE"
    way, level, kind, place = found[1], int(found[2]), found[3], int(found[4])
    if way == "down":
        return f"IN{3 * level + (3 if kind == 'downsamplers' else place + 1):02}"
    return f"OUT{3 * level + (2 if kind == 'upsamplers' else place):02}"


def _flux_block(path: str) -> str:
    if found := re.match(r"(single_)?transformer_blocks\.(\d+)\.", path):
        return f"{'S' if found[1] else 'D'}{int(found[2]):02}"
    return "OUT" if path.startswith(("proj_out", "norm_out")) else "IN"


def _modules(name: str) -> list[str]:
    """Every linear and convolutional layer of diffusers' own class."""
    config = dict(ARCHITECTURES[name].model_config)
    with torch.device("meta"):
        model = FluxTransformer2DModel(**config) if name == "flux" else UNet2DConditionModel(**config)
    return [path for path, m in model.named_modules() if isinstance(m, (torch.nn.Linear, torch.nn.Conv2d))]


@pytest.mark.parametrize("name", ["sd15", "sd2", "sdxl", "flux"])
def test_every_layer_is_in_its_block(name: str) -> None:
    """Of the published model, by a rule of thumb; and each block has layers."""
    family = next(known for known in FAMILIES if name in known.architectures)
    count, component = len(family.blocks), "transformer" if name == "flux" else "unet"
    weights = ml.block_weights(",".join(map(str, range(1, count + 1))), architecture=name)
    block_of = _flux_block if name == "flux" else _sd_block
    found = {path: weights.block(f"{component}.{path}") for path in _modules(name)}
    assert found == {path: block_of(path) for path in found}
    assert set(found.values()) | {"CLIP", "T5"} >= set(family.blocks)
    assert weights.block("text_encoder.text_model.encoder.layers.0.mlp.fc1") == ("CLIP" if name == "flux" else "BASE")
    assert weights.block("transformer.nonsense.0") is None


@pytest.mark.parametrize(("family", "prefix"), [("sd15", "SD-"), ("sdxl", "SDXL-"), ("flux", "FLUX-")])
def test_presets_are_the_tools_lists(family: str, prefix: str) -> None:
    """Every preset, block by block; as a list it is the same weights on the blocks that the list names."""
    table = {name.removeprefix(prefix).upper(): v for name, v in LISTS.items() if name.startswith(prefix)}
    assert set(PRESETS[family]) == {*table, *OWN[family]}
    for name, values in (table | OWN[family]).items():
        text = values if isinstance(values, str) else ",".join(map(str, values))
        listed, named = ml.block_weights(f"{family}:{text}"), ml.block_weights(f"{family}:{name}")
        assert {block: named.blocks[block] for block in listed.blocks} == dict(listed.blocks), name
        assert len(named.blocks) == {"sd15": 26, "sdxl": 20, "flux": 61}[family]


@pytest.mark.parametrize("name", [name for name in LISTS if name.startswith("FLUX-")])
def test_lists_of_flux_go_on_with_their_last_value(name: str) -> None:
    """As the Inspire Pack walks along the blocks: a value for each, and past the end of the list the last ratio."""
    base, *values = LISTS[name]
    numbered = [*(f"D{i:02}" for i in range(19)), *(f"S{i:02}" for i in range(38))]
    walked = dict(zip(numbered, [*values, *[values[-1]] * (57 - len(values))]))
    expected = {block: walked.get(block, base) for block in FLUX.blocks}
    assert ml.block_weights(name).blocks == expected
    assert ml.block_weights("flux:" + ",".join(map(str, LISTS[name]))).blocks == expected


@pytest.mark.parametrize(
    "text",
    [
        "sdxl:OUTALL",
        "SDXL-OUTALL",
        "sdxl:SDXL-OUTALL",
        "xl:outall",
        "0,0,0,0,0,0,1,1,1,1,1,1",
        "[0, 0,0,0,0,0,1,1,1,1,1,1]",
    ],
)
def test_spellings(text: str) -> None:
    """A colon, a dash, small letters; values alone, whose number tells the model; JSON, as sd-scripts has it."""
    weights = ml.block_weights(text, 0.5)
    assert (
        weights[f"{UP}.0.attentions.0"] == 0.5 and weights[f"{DOWN}.1.attentions.0"] == weights[f"{MID}.resnets.0"] == 0
    )


@pytest.mark.parametrize(
    ("count", "first", "last"),
    [
        (12, ("IN04", f"{DOWN}.1.attentions.0"), ("OUT05", f"{UP}.1.attentions.2")),
        (17, ("IN01", f"{DOWN}.0.attentions.0"), ("OUT11", f"{UP}.3.attentions.2")),
        (20, ("IN00", "unet.conv_in"), ("OUT08", f"{UP}.2.resnets.2")),
        (26, ("IN00", "unet.conv_in"), ("OUT11", f"{UP}.3.resnets.2")),
        (58, ("D00", "transformer.transformer_blocks.0"), ("S37", "transformer.single_transformer_blocks.37")),
    ],
)
def test_layouts_by_their_number_of_values(count: int, first: tuple[str, str], last: tuple[str, str]) -> None:
    """The second value and the last one, by block and by layer; the first is that of the text encoders."""
    weights = ml.block_weights(",".join(f"0.{i:02}" for i in range(1, count + 1)))
    for (block, place), number in ((first, 0.02), (last, count / 100)):
        assert weights.blocks[block] == weights[place] == number
    assert weights["text_encoder"] == 0.01
    if count == 58:
        assert {weights.blocks[block] for block in ("CLIP", "T5", "IN", "OUT")} == {0.01}


def test_flux_with_an_entry_for_each_encoder() -> None:
    """61 values: CLIP, T5, IN before the blocks, OUT behind."""
    weights = ml.block_weights("flux:0.1,0.2,0.3," + "0," * 57 + "0.4")
    places = ("text_encoder", "text_encoder_2", "transformer.x_embedder", "transformer.proj_out")
    assert [weights[place] for place in places] == [0.1, 0.2, 0.3, 0.4]


@pytest.mark.parametrize(
    ("text", "architecture", "needle"),
    [
        ("sdxl:OUTAL", None, "did you mean 'OUTALL'? known: NONE, ALL, INALL, MIDALL, OUTALL, ALL0.5"),
        ("sdxl:SD-OUTALL", None, "no such preset of sdxl"),
        ("SDXL-MIDD", None, "no such preset of sdxl"),
        ("MIDALLL", "sdxl", "did you mean 'MIDALL'"),
        ("flux:DBL-FRONT", None, "did you mean 'DBL-FRONT7'"),
        ("sdx:ALL", None, "did you mean 'sdxl'"),
        ("ALL", None, "say sd15:ALL or sdxl:ALL or flux:ALL"),
        ("sdxl:1,0,1", None, "3 values, and sdxl has 12 or 20"),
        ("1,0,1", None, "sd15 has 17 or 26; sdxl has 12 or 20; flux has 20 or 58 or 61"),
        ("0," * 16 + "1", "sdxl", "17 values, and sdxl has 12 or 20"),
        ("sdxl:1,0,0,x,1,1,1,1,1,1,1,1", None, "IN07 is 'x'"),
        ("sdxl:1,0,0,nan,1,1,1,1,1,1,1,1", None, "IN07 is 'nan'"),
        ("sdxl:ALL", "flux", "are for sdxl, and the adapter is for flux"),
        ("ALL", "z-image", "no tool has numbered the blocks of z-image"),
        (1.0, None, "expected a text"),
    ],
)
def test_refused(text: str, architecture: str | None, needle: str) -> None:
    """In one sentence, with what is nearest, or what there is."""
    with pytest.raises((ml.OptionError, ml.ArchitectureError)) as caught:
        ml.block_weights(text, architecture=architecture)
    assert needle in str(caught.value)


@pytest.mark.parametrize(
    ("strength", "needle"), [(float("nan"), "nan"), ({"unet": "x"}, "'x'"), ({"unet.mid_block.*": 1.0}, "no pattern")]
)
def test_refused_strengths(strength: object, needle: str) -> None:
    """What is no number, and what is no component."""
    with pytest.raises(ml.OptionError, match=re.escape(needle)):
        ml.block_weights("sdxl:ALL", strength)  # type: ignore[arg-type]


SHAPES: dict[str, tuple[int, ...]] = {
    f"{DOWN}.1.attentions.0.proj_in": (12, 9),
    f"{DOWN}.2.attentions.1.proj_in": (12, 9),
    f"{MID}.attentions.0.proj_out": (8, 10),
    f"{UP}.0.attentions.1.proj_in": (9, 12),
    f"{UP}.1.attentions.2.proj_out": (9, 12),
    "text_encoder.text_model.encoder.layers.0.mlp.fc1": (7, 5),
}
VALUES = (0.5, 1.0, 0.0, 0.25, -1.0, 2.0, 0.0, 0.75, 0.0, 0.0, 0.0, 0.125)
BY_HAND = dict(zip(SHAPES, (1.0, -1.0, 2.0, 0.75, 0.125, 0.5)))
TEXT = "sdxl:" + ",".join(map(str, VALUES))


def test_a_merge_is_the_weighted_sum(tmp_path: Path) -> None:
    """In Python and on the command line, the second adapter with weights of its own; fused, too."""
    a, b = (adapter(seed, rank=2, shapes=SHAPES) for seed in (1, 2))
    files = [x.save(tmp_path / f"{x.name}.safetensors") for x in (a, b)]
    merged = ml.merge([a, b], [ml.block_weights(TEXT, 0.8), 0.5], method="cat")
    for name in SHAPES:
        expected = 0.8 * BY_HAND[name] * a.layers[name].delta_weight() + 0.5 * b.layers[name].delta_weight()
        torch.testing.assert_close(merged.layers[name].delta_weight(), expected)
    out = tmp_path / "out.safetensors"
    line = ["merge", f"{files[0]}:0.8", f"{files[1]}=0.5", "--method", "cat", "-o", str(out)]
    assert cli.run([*line, "--block-weights", TEXT, "--block-weights", "sdxl:ALL"]) == 0
    written = ml.load(out)
    assert max((written - merged).norm() / merged.norm(), 0) < 1e-6
    assert cli.run([*line, "--force", "--block-weights", TEXT]) == 0
    both = ml.merge([a, b], [ml.block_weights(TEXT, 0.8), ml.block_weights(TEXT, 0.5)], method="cat")
    assert (ml.load(out) - both).norm() < 1e-6 * both.norm()


def test_convert_and_resize_bake_them_in(tmp_path: Path) -> None:
    """A file for a tool that knows no block weights."""
    a = adapter(3, rank=2, shapes=SHAPES)
    file, out = a.save(tmp_path / "a.safetensors"), tmp_path / "out.safetensors"
    for command in (["convert", "--format", "kohya"], ["resize", "--rank", "2"]):
        assert cli.run([*command, str(file), "-o", str(out), "--block-weights", TEXT, "--force"]) == 0
        written = ml.load(out)
        for name in SHAPES:
            torch.testing.assert_close(
                written.layers[name].delta_weight(), BY_HAND[name] * a.layers[name].delta_weight()
            )


def test_weights_of_components_are_multiplied() -> None:
    """A component without a weight is an error, as it is without block weights."""
    a = adapter(4, rank=2, shapes=SHAPES)
    merged = ml.merge([a], [ml.block_weights(TEXT, {"unet": 2.0, "text_encoder": 4.0})], method="cat")
    for name in SHAPES:
        factor = BY_HAND[name] * (4 if name.startswith("text") else 2)
        torch.testing.assert_close(merged.layers[name].delta_weight(), factor * a.layers[name].delta_weight())
    with pytest.raises(ml.OptionError, match="no weight for the component 'text_encoder'"):
        ml.merge([a], [ml.block_weights(TEXT, {"unet": 2.0})])


def test_weights_for_another_base_model_are_refused() -> None:
    """SD 1.5 and SDXL have blocks of the same names."""
    a = ml.Adapter(adapter(9, rank=2, shapes=SHAPES).layers, architecture="sdxl", source="a")
    wrong = ml.block_weights("sd15:ALL")
    for take in (lambda: ml.merge([a], [wrong]), lambda: ml.fuse_checkpoint("miniature/sdxl", a, "out", wrong)):
        with pytest.raises(
            ml.ArchitectureError, match="a: the block weights are for sd15, and the adapter is for sdxl"
        ):
            take()


def test_a_layer_outside_of_the_layout_is_asked_for() -> None:
    """The tools disagree on such layers: sd-scripts leaves them at 1, others drop them."""
    a = adapter(5, rank=2, shapes={f"{DOWN}.0.resnets.0.conv1": (8, 8, 3, 3), f"{MID}.attentions.0.proj_in": (8, 8)})
    with pytest.raises(ml.OptionError, match=r"leave 1 layer without one, .*conv1 the first, in block IN01; give 20"):
        ml.merge([a], [ml.block_weights(TEXT)])
    with pytest.raises(ml.OptionError, match="in no block of flux"):
        ml.merge([a], [ml.block_weights("flux:ALL")])
    assert len(ml.merge([a], [ml.block_weights("sdxl:ALL")], method="cat").layers) == 2
