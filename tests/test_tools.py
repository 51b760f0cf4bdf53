"""A file for a tool holds the names that the tool knows, all of them and no others; what has no place is said.

Over the whole key sets of SD 1.5, SDXL and FLUX.1 with their text encoders; the expected names are in `tool_names`.
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import diffusers
import pytest
import torch

import mergelab as ml
from mergelab.formats import TOOLS
from mergelab.formats.architectures import ARCHITECTURES
from mergelab.formats.tools import other_tools
from tests.synthetic import difference
from tests.tool_names import ORIGINAL, TEXT

MODELS = tuple(ORIGINAL)
FACTOR = re.compile(r"\.(lora_down|lora_up|lora_A|lora_B)\.weight$|\.alpha$|\.lora_linear_layer\.(down|up)\.weight$")


@cache
def whole(id: str) -> ml.Adapter:
    """An adapter of every layer of a model and its text encoders: of rank 1, one value in each factor."""
    known = ARCHITECTURES[id]
    with torch.device("meta"):
        model = getattr(diffusers, known.model_class).from_config(dict(known.model_config))
    shapes = {
        f"{known.denoiser}.{path}": tuple(module.weight.shape)
        for path, module in model.named_modules()
        if isinstance(module, torch.nn.Linear | torch.nn.Conv2d)
    }
    layers = {}
    for name, shape in {**shapes, **TEXT.get(id, {})}.items():
        down = torch.zeros(1).expand(1, *shape[1:])
        layers[name] = ml.LoraLayer(down, torch.zeros(1).expand(shape[0], 1, *[1] * (len(shape) - 2)), 0.5)
    return ml.Adapter(layers, architecture=id, source=id)


def modules(id: str, tool: str) -> set[str]:
    """The names of modules in the file for a tool."""
    return {FACTOR.sub("", key) for key in whole(id).state_dict(for_=tool)}


def diffusers_names(id: str) -> set[str]:
    """Those of the denoiser."""
    return {name.partition(".")[2] for name in whole(id).layers if not name.startswith("text_")}


def flat(prefix: str, names: set[str] | list[str]) -> set[str]:
    return {f"{prefix}_{name.replace('.', '_')}" for name in names}


def text(id: str, component: str) -> list[str]:
    return [name.removeprefix(f"{component}.") for name in TEXT[id] if name.startswith(f"{component}.")]


def kohya(id: str, t5: str = "lora_te3", diffusers: bool = False) -> set[str]:
    """kohya's names of all modules."""
    names = diffusers_names(id) if id == "sd15" or diffusers else ORIGINAL[id]
    first = "lora_te" if id == "sd15" else "lora_te1"
    second = {"sdxl": "lora_te2", "flux": t5}.get(id, "")
    return flat("lora_unet", names) | flat(first, text(id, "text_encoder")) | flat(second, text(id, "text_encoder_2"))


def comfy(id: str) -> set[str]:
    """ComfyUI's own names of all modules."""
    encoders = {"text_encoder": "clip_l", "text_encoder_2": "t5xxl" if id == "flux" else "clip_g"}
    own = {f"text_encoders.{there}.transformer.{n}" for here, there in encoders.items() for n in text(id, here)}
    return {f"diffusion_model.{name}" for name in ORIGINAL[id]} | own


@pytest.mark.parametrize("id", MODELS)
def test_comfyui_knows_every_name(id: str) -> None:
    """354, 1059 and 554 modules: each weight of the checkpoint by its own name."""
    assert modules(id, "comfyui") == comfy(id)
    assert len(comfy(id)) == {"sd15": 354, "sdxl": 1059, "flux": 554}[id]


@pytest.mark.parametrize("id", MODELS)
def test_forge_knows_every_name(id: str) -> None:
    """kohya's names; more than twelve others, and Forge would leave the file aside."""
    assert modules(id, "forge") == kohya(id)


@pytest.mark.parametrize("id", MODELS)
def test_a1111_knows_every_name(id: str) -> None:
    """All but the text projection; FLUX is refused."""
    if id == "flux":
        with pytest.raises(ml.ArchitectureError, match=r"A1111 reads no adapters of FLUX.*SD 1.x, SD 2.x, SDXL"):
            modules(id, "a1111")
    else:
        assert modules(id, "a1111") == kohya(id) - {"lora_te2_text_projection"}


@pytest.mark.parametrize("id", MODELS)
def test_sd_scripts_knows_every_name(id: str) -> None:
    """350, 1052 and 552 modules."""
    ends = {"conv_in", "conv_out", "time_embedding_linear_1", "time_embedding_linear_2"}
    sgm = {"input_blocks_0_0", "out_2", "time_embed_0", "time_embed_2", "label_emb_0_0", "label_emb_0_2"}
    missing = {
        "sd15": {f"lora_unet_{name}" for name in ends},
        "sdxl": {f"lora_unet_{name}" for name in sgm} | {"lora_te2_text_projection"},
        "flux": {"lora_unet_final_layer_linear", "lora_unet_final_layer_adaLN_modulation_1"},
    }[id]
    assert modules(id, "sd-scripts") == kohya(id) - missing


@pytest.mark.parametrize("id", MODELS)
def test_aitoolkit_knows_every_name(id: str) -> None:
    """diffusers' names: under `lora_unet_` for a UNet, dotted for FLUX; every alpha is the rank, for none is read."""
    tensors = whole(id).state_dict(for_="aitoolkit")
    found = {FACTOR.sub("", key) for key in tensors}
    if id == "flux":
        assert found == {f"transformer.{name}" for name in diffusers_names(id)}
        return
    assert found == kohya(id, diffusers=True)
    attention = {name for name in found if "_attentions_" in name}
    assert len(attention) == {"sd15": 192, "sdxl": 722}[id]
    assert {float(tensor) for key, tensor in tensors.items() if key.endswith(".alpha")} == {1.0}


@pytest.mark.parametrize("id", MODELS)
def test_onetrainer_knows_every_name(id: str) -> None:
    """kohya's, with T5 as the second text encoder of FLUX."""
    assert modules(id, "onetrainer") == kohya(id, t5="lora_te2")


INVOKEAI_FLUX = (
    r"lora_unet_(double|single)_blocks_\d+_(img_attn|img_mlp|img_mod|txt_attn|txt_mlp|txt_mod|linear1|linear2|modulation)",
    r"lora_te1_text_model_encoder_layers_\d+_(mlp|self_attn)_\w+",
    r"lora_te2_encoder_block_\d+_layer_\d+_(DenseReluDense|SelfAttention)_\w+",
)


@pytest.mark.parametrize("id", MODELS)
def test_invokeai_knows_every_name(id: str) -> None:
    """kohya's; of FLUX nothing but blocks and text encoders, or it does not recognise the file."""
    found = modules(id, "invokeai")
    if id == "flux":
        assert all(any(re.match(pattern, name) for pattern in INVOKEAI_FLUX) for name in found)
        blocks = {name for name in kohya(id, t5="lora_te2") if "_blocks_" in name or not name.startswith("lora_unet")}
        assert found == blocks and len(found) == 554 - 10
    else:
        assert found == kohya(id)


def test_nunchaku_knows_every_name() -> None:
    """The transformer in diffusers' names."""
    assert modules("flux", "nunchaku") == {f"transformer.{name}" for name in diffusers_names("flux")}


@pytest.mark.parametrize("id", ARCHITECTURES)
@pytest.mark.parametrize("format", ["comfy", "kohya"])
def test_every_base_model_has_names_that_lead_back(id: str, format: str) -> None:
    """Every layer of every model that mergelab knows, written and read again; fused modules are split as before."""
    if format == "kohya" and ARCHITECTURES[id].kohya is None:
        pytest.skip("kohya's tools do not know it")
    tensors = whole(id).state_dict(format)
    prefixes = ("diffusion_model.", "text_encoders.") if format == "comfy" else ("lora_unet_", "lora_te")
    assert all(key.startswith(prefixes) for key in tensors)
    assert set(ml.load(tensors, architecture=id).layers) == set(whole(id).layers)


@pytest.mark.parametrize("id", ARCHITECTURES)
def test_every_tool_can_be_written_for(id: str) -> None:
    """Where the table has a way for a base model, its writer has a name for each of the layers."""
    for tool in TOOLS.values():
        if tool.name != "peft" and tool.way(id):
            assert len(whole(id).state_dict(for_=tool.name)) > 100


def test_the_table_names_base_models_that_there_are() -> None:
    """An id that is none would never be asked for."""
    assert {id for tool in TOOLS.values() for id in tool.ways} <= set(ARCHITECTURES)


# Small adapters, with values.

FLUX_SHAPES: dict[str, tuple[int, ...]] = {
    "transformer.transformer_blocks.0.attn.to_q": (16, 16),
    "transformer.transformer_blocks.0.ff.net.0.proj": (64, 16),
    "transformer.proj_out": (8, 16),
    "text_encoder.text_model.encoder.layers.0.mlp.fc1": (24, 12),
    "text_encoder_2.encoder.block.0.layer.0.SelfAttention.q": (12, 12),
}


def small(seed: int = 0, shapes: dict[str, tuple[int, ...]] = FLUX_SHAPES, id: str = "flux") -> ml.Adapter:
    generator = torch.Generator().manual_seed(seed)
    layers = {
        name: ml.LoraLayer(
            torch.randn(2 + i % 2, shape[1], generator=generator),
            torch.randn(shape[0], 2 + i % 2, generator=generator),
            0.5 + i,
        )
        for i, (name, shape) in enumerate(shapes.items())
    }
    return ml.Adapter(layers, architecture=id, source="small")


@pytest.mark.parametrize("tool", TOOLS)
def test_a_file_for_a_tool_holds_the_same_changes(tool: str, tmp_path: Path) -> None:
    """Whatever names, alphas and padding it has: read again, every layer that was not left out is the same."""
    adapter = small()
    if tool == "a1111":
        shapes = {"unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_k": (16, 768), "unet.conv_in": (8, 4)}
        adapter = small(shapes=shapes, id="sd15")
    written = adapter.write(tmp_path / ("out" if tool == "peft" else "out.safetensors"), for_=tool)
    again = ml.load(written.path, architecture=None if tool == "peft" else adapter.architecture)
    shared = {name: layer for name, layer in adapter.layers.items() if name in again.layers}
    assert len(shared) >= 2
    rest = {name: layer for name, layer in again.layers.items() if name not in shared}
    assert all(not bool(layer.delta_weight().any()) for layer in rest.values()), "an added layer does something"
    assert difference(ml.Adapter(shared), ml.Adapter({name: again.layers[name] for name in shared})) < 1e-6
    told = " ".join(written.notes)
    assert all(name in shared or "left out" in told for name in adapter.layers)


def test_what_is_left_out_is_said_with_its_share() -> None:
    """The share is that of the squared norm of the change, here by hand: 9 of 25."""
    layer = ml.LoraLayer(torch.ones(1, 4), torch.ones(4, 1))
    names = ["transformer.transformer_blocks.0.attn.to_q", *(n for n in FLUX_SHAPES if n.startswith("text_encoder_2"))]
    adapter = ml.Adapter({names[0]: layer.scaled(4.0), names[1]: layer.scaled(3.0)}, architecture="flux", source="x")
    from mergelab.formats import plan

    (note,) = plan(adapter, for_="diffusers").notes
    assert note == (
        f"diffusers has no place for T5 (1 layer, {names[1]} the first): left out, 36.00% of the squared norm of the "
        "change"
    )


def test_what_stays_is_said() -> None:
    """AI-toolkit passes over layers that its network does not have, and may have them: they are written."""
    from mergelab.formats import plan

    chosen = plan(small(), for_="aitoolkit")
    assert "transformer.proj_out" in chosen.data.layers
    assert any(
        "reads layers outside the blocks only if its network has them" in note and "stay in the file" in note
        for note in chosen.notes
    )
    assert any("rank 3 at least" in note for note in chosen.notes)


def test_nothing_is_left() -> None:
    """An adapter of which a tool reads nothing is refused."""
    with pytest.raises(ml.FormatError, match="nunchaku has no place for what the adapter holds, 2 layers"):
        small().select("text_encoder*").state_dict(for_="nunchaku")


def test_nunchaku_gets_whole_groups() -> None:
    """A file with `to_q` alone, or the first layer of an mlp, is one that nunchaku fails on."""
    tensors = small().state_dict(for_="nunchaku")
    for name, shape in {"attn.to_k": (16, 16), "attn.to_v": (16, 16), "ff.net.2": (16, 64)}.items():
        down, up = (tensors[f"transformer.transformer_blocks.0.{name}.lora_{x}.weight"] for x in "AB")
        assert (up.shape[0], down.shape[1]) == shape and not up.any()


def test_one_line_for_a_file_that_is_for_nobody(tmp_path: Path) -> None:
    """What each tool would not read of it, as measured."""
    adapter = small()
    line = other_tools(adapter, "diffusers")
    assert "\n" not in line and "ComfyUI, diffusers: T5" in line and "sd-scripts: everything" in line
    assert "Forge: everything, if it has T5" in line and "A1111" not in line
    assert "InvokeAI: everything, if it has text encoders" in line
    kohya_line = other_tools(adapter, "kohya")
    assert "AI-toolkit: everything" in kohya_line and "ComfyUI" not in kohya_line and "Forge" not in kohya_line
    assert "OneTrainer: everything, if it has T5" in kohya_line and "sd-scripts: the final layer" in kohya_line
    assert adapter.write(tmp_path / "x.safetensors").notes == (line,)
    assert (
        other_tools(ml.Adapter({"unet.conv_in": ml.LoraLayer(torch.ones(1, 3), torch.ones(4, 1))}), "diffusers") == ""
    )


def test_tools_that_cannot_be(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    """No such tool, a tool and a format, a base model that is not known; what a tool lacks is logged."""
    with pytest.raises(ml.OptionError, match="expected one of 'comfyui', 'forge', 'a1111'"):
        small().state_dict(for_="photoshop")
    with pytest.raises(ml.OptionError, match="give one"):
        small().save(tmp_path / "x.safetensors", format="kohya", for_="forge")
    unknown = ml.Adapter({"unet.conv_in": ml.LoraLayer(torch.ones(1, 3), torch.ones(4, 1))}, source="x")
    with pytest.raises(ml.ArchitectureError, match=r"x: the base model is unknown.*architecture="):
        unknown.state_dict(for_="comfyui")
    small().save(tmp_path / "x.safetensors", for_="diffusers")
    assert "diffusers has no place for T5" in caplog.text
    assert not list(tmp_path.glob("*.tmp"))


def test_the_readme_has_every_tool() -> None:
    """One row for each, with what it cannot hold."""
    rows = [row for row in (Path(__file__).parent.parent / "README.md").read_text().splitlines() if "`--for " in row]
    assert [re.search(r"`--for ([\w-]+)`", row)[1] for row in rows] == list(TOOLS)  # type: ignore[index]
    for row, tool in zip(rows, TOOLS.values()):
        lacks = [lack.what for id in ("sd15", "sdxl", "flux") if (way := tool.way(id)) for lack in way.lacks]
        assert all(what in row for what in lacks), (tool.name, set(lacks))
