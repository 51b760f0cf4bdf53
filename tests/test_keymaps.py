"""Key by key: no tensor of a real file's layout is lost on the way in, through any format, and back."""

from __future__ import annotations

import math
import re
import shutil
import zlib
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import torch
from keymaps import from_folder, keymaps
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

import mergelab as ml
from mergelab import Adapter, LoraLayer
from mergelab.layer import Layer

FORMATS = ("diffusers", "kohya", "peft")

# Plain LoRA and LoCon layouts, and the base model each is for.
PLAIN = {
    "gen_diffusers__sdxl_peft_attn_r8": "sdxl",
    "gen_lycoris__sdxl_locon_tucker": "sdxl",
    "gen_sdscripts__flux_lora_r16_clip_t5": "flux",
    "gen_sdscripts__sd15_lora_r16": "sd15",
    "gen_sdscripts__sdxl_lora_c3lier_r16_conv8": "sdxl",
    "invokeai__flux_control_lora_format": "flux",
    "invokeai__flux_lora_aitoolkit_format": "flux",
    "invokeai__flux_lora_diffusers_base_model_format": "flux",
    "invokeai__flux_lora_diffusers_format": "flux",
    "invokeai__flux_lora_kohya_format": "flux",
    "muchai__real_flux1": "flux",
    "muchai__real_sdxl": "sdxl",
}
# Of other kinds than LoRA: `test_kinds_keymaps` has these.
OTHER_KINDS = {
    "gen_lycoris__sd15_loha_tucker": "sd15",
    "gen_lycoris__sd15_lokr_tucker": "sd15",
    "gen_lycoris__sdxl_dora_r8": "sdxl",
    "gen_lycoris__sdxl_loha_r4": "sdxl",
    "gen_lycoris__sdxl_lokr_r4": "sdxl",
    "invokeai__flux_dora_onetrainer_format": "flux",
    "larsupb__sdxl_lora__rank8_assumed": "sdxl",
}

# What follows the module in a key of the layouts above. Written by hand from FORMATS.md: this is the test's own
# account of a file, and shares nothing with the tables of mergelab.
LEAVES = {
    "lora_down.weight": "down",
    "lora_up.weight": "up",
    "lora_mid.weight": "mid",
    "lora_A.weight": "down",
    "lora_B.weight": "up",
    "lora_B.bias": "bias",
    "down.weight": "down",
    "up.weight": "up",
    "alpha": "alpha",
    "scale": "scale",
}


@pytest.fixture
def scratch(tmp_path: Path) -> Iterator[Path]:
    """A folder that is emptied at once: pytest keeps the last three, and these files are large."""
    yield tmp_path
    shutil.rmtree(tmp_path)


def synthetic(shapes: Mapping[str, list[int]], seed: int) -> dict[str, Tensor]:
    """float16 tensors of these shapes, of small odd integers, and alphas that differ from the rank.

    All sums of their products are integers that float32 holds exactly, so nothing below depends on rounding.
    """
    generator = torch.Generator().manual_seed(seed)
    pool = torch.randint(-2, 2, (1 << 22,), generator=generator).half() * 2 + 1
    tensors: dict[str, Tensor] = {}
    for index, (key, shape) in enumerate(shapes.items()):
        if key.endswith(".alpha"):
            module = key.removesuffix(".alpha")
            rank = shapes[f"{module}.lora_down.weight"][0]
            tensors[key] = torch.tensor((1.0, 0.5, 0.7, 1.75)[index % 4] * rank, dtype=torch.float16)
            continue
        start = int(torch.randint(1 << 20, (), generator=generator))
        tensors[key] = pool[start : start + math.prod(shape)].reshape(shape).clone()
    return tensors


def modules_of(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """The tensors of a file by module and role; a key that is not understood is an error."""
    modules: dict[str, dict[str, Tensor]] = defaultdict(dict)
    for key, tensor in tensors.items():
        leaf = next(leaf for leaf in sorted(LEAVES, key=len, reverse=True) if key.endswith(f".{leaf}"))
        role = LEAVES[leaf]
        assert role not in modules[key.removesuffix(f".{leaf}")]
        modules[key.removesuffix(f".{leaf}")][role] = tensor
    return modules


def rows_of(module: str, rows: int, columns: int) -> list[int]:
    """How many rows each layer has that a module of a file stands for."""
    if re.search(r"(attn[._]|processor\.)qkv", module):
        return [columns] * 3
    if re.search(r"single_blocks.*linear1$", module):
        return [columns] * 3 + [rows - 3 * columns]
    return [rows]


def squared_norms(leaves: Mapping[str, Tensor], sizes: list[int]) -> list[float]:
    """Squared Frobenius norm of each part of `alpha / rank * up @ mid @ down`, from Gram matrices."""
    down, up = leaves["down"].float().flatten(1), leaves["up"].float().flatten(1)
    gram = (down @ down.T).double()
    if "mid" in leaves:
        mid = leaves["mid"].double().flatten(2)
        gram = torch.einsum("pqk,qs,tsk->pt", mid, gram, mid)
    scaling = float(leaves["alpha"]) / len(down) if "alpha" in leaves else 1.0
    return [scaling**2 * float(((part.T @ part) * gram).sum()) for part in up.split(sizes)]


def squared_norm(layer: Layer) -> float:
    """Squared Frobenius norm of a layer's change, by the same arithmetic as above."""
    leaves = {"down": layer.lora_A, "up": layer.lora_B}
    return layer.scaling**2 * squared_norms(leaves, [len(layer.lora_B)])[0]


def difference(x: Layer, y: Layer) -> float:
    """`|x - y| / |x|` for the changes of two layers that have one factor in common, or any two small layers."""
    assert x.shape == y.shape
    if x.lora_A.shape == y.lora_A.shape and torch.equal(x.lora_A, y.lora_A):
        if x.scaling == y.scaling and torch.equal(x.lora_B, y.lora_B):
            return 0.0
        up = x.lora_B.double() * x.scaling - y.lora_B.double() * y.scaling
        squared = squared_norms({"down": x.lora_A, "up": up}, [len(up)])[0]
    else:
        assert math.prod(x.shape) < 1 << 22
        one, other = (s.scaling * (s.lora_B.double().flatten(1) @ s.lora_A.double().flatten(1)) for s in (x, y))
        squared = float((one - other).square().sum())
    return math.sqrt(squared / squared_norm(x))


def assert_same(loaded: Adapter, adapter: Adapter, tolerance: float = 1e-6) -> None:
    """The same layers with the same changes, and the same extras."""
    assert set(loaded.layers) == set(adapter.layers)
    worst = max((difference(layer, loaded.layers[name]), name) for name, layer in adapter.layers.items())
    assert worst[0] <= tolerance, worst
    assert set(loaded.extras) == set(adapter.extras)
    for key, tensor in adapter.extras.items():
        torch.testing.assert_close(loaded.extras[key].float(), tensor.float(), rtol=1e-6, atol=0)
    assert loaded.architecture == adapter.architecture


def shapes_of(name: str) -> dict[str, list[int]]:
    """Keys and shapes of a file; ranks are halved, to 4 at most, which changes nothing but the time it takes."""
    shapes = {key: list(shape) for key, shape in keymaps()[name].shapes.items()}
    if any(key.endswith(".lora_mid.weight") for key in shapes):
        return shapes
    for key, shape in shapes.items():
        if re.search(r"(lora_A|lora_down|\bdown)\.weight$", key):
            shape[0] = min(shape[0] // 2, 4)
        elif re.search(r"(lora_B|lora_up|\bup)\.weight$", key):
            shape[1] = min(shape[1] // 2, 4)
    return shapes


def test_every_keymap_is_tested() -> None:
    """No list of keys is left out of the two tables above."""
    assert set(keymaps()) == set(PLAIN) | set(OTHER_KINDS)


def test_the_copy_is_that_of_the_shared_folder(shared: Path) -> None:
    """The key maps of this repository are those of the shared folder, key by key."""
    assert keymaps() == from_folder(shared / "keymaps")


@pytest.mark.parametrize("name", PLAIN)
def test_every_key_counts_in_every_format(scratch: Path, name: str) -> None:
    """Each input tensor is part of some layer or an extra, and all of them survive each format.

    The layers' norms, one by one and in total, are those that the test finds in the file itself, so a module that was
    lost, put twice, given another's alpha or cut at the wrong rows would show.
    """
    tensors = synthetic(shapes_of(name), zlib.crc32(name.encode()))
    file = scratch / "input.safetensors"
    save_file(tensors, file, metadata=keymaps()[name].metadata)
    modules = modules_of(tensors)
    del tensors
    adapter = ml.load(file)
    assert adapter.architecture == PLAIN[name]

    expected: list[float] = []
    ups = downs = 0
    biases: list[Tensor] = []
    norms: list[Tensor] = []
    for module, leaves in modules.items():
        if "up" in leaves:
            down, up = leaves["down"], leaves["up"]
            sizes = rows_of(module, len(up), down.shape[1])
            expected += squared_norms(leaves, sizes)
            ups += up.numel()
            kernel = leaves["mid"][0, 0].numel() if "mid" in leaves else 1
            downs += len(sizes) * down.numel() * kernel
            if "bias" in leaves:
                biases += leaves["bias"].split(sizes)
        else:
            assert set(leaves) == {"scale"}
            norms.append(leaves["scale"])
    found = [squared_norm(layer) for layer in adapter.layers.values()]
    assert len(found) == len(expected)
    torch.testing.assert_close(sorted(found), sorted(expected), rtol=1e-6, atol=0)
    assert adapter.norm() ** 2 == pytest.approx(sum(expected), rel=1e-6)
    assert sum(layer.lora_B.numel() for layer in adapter.layers.values()) == ups
    assert sum(layer.lora_A.numel() for layer in adapter.layers.values()) == downs
    assert len(adapter.extras) == len(biases) + len(norms)
    kept = [float(tensor.double().square().sum()) for tensor in adapter.extras.values()]
    given = [float(tensor.double().square().sum()) for tensor in biases + norms]
    torch.testing.assert_close(sorted(kept), sorted(given), rtol=1e-6, atol=0)
    del modules

    for format in FORMATS:
        target = adapter.save(scratch / ("folder" if format == "peft" else "output.safetensors"), format=format)
        assert_same(ml.load(target), adapter)


def real_file(shared: Path, name: str) -> Path:
    path = shared / "loras" / f"sd15_{name}.safetensors"
    if not path.is_file():
        pytest.skip(f"{path} is not here")
    return path


@pytest.mark.parametrize("name", ["pokemon_diffusers", "pokemon_kohya", "catundchat_attnprocs"])
@pytest.mark.parametrize("format", FORMATS)
def test_real_files_survive_every_format(shared: Path, tmp_path: Path, name: str, format: str) -> None:
    """A trained adapter converted and loaded again has bit for bit the same changes."""
    file = real_file(shared, name)
    adapter = ml.load(file)
    assert adapter.architecture == "sd15"
    with safe_open(file, "pt") as content:
        tensors = {key: content.get_tensor(key) for key in content.keys()}  # noqa: SIM118 - no mapping
    assert len(adapter.layers) == sum("up.weight" in key for key in tensors) == 128
    assert not adapter.extras
    target = adapter.save(tmp_path / ("folder" if format == "peft" else "output.safetensors"), format=format)
    assert_same(ml.load(target), adapter, tolerance=0.0)


def test_a_real_file_of_another_dialect_is_refused_by_name(shared: Path) -> None:
    """The refusal names the file and the dialect."""
    with pytest.raises(ml.FormatError, match="cloneofsimo") as caught:
        ml.load(real_file(shared, "analog_cloneofsimo"))
    assert "sd15_analog_cloneofsimo.safetensors" in str(caught.value)


def test_two_dialects_of_one_training_set_meet(shared: Path, tmp_path: Path) -> None:
    """Two adapters of the same layers in two dialects have the same names, shapes and ranks.

    Converted to the other's dialect, the one has exactly the other's keys and shapes.
    """
    one, other = (ml.load(real_file(shared, f"pokemon_{dialect}")) for dialect in ("diffusers", "kohya"))
    assert {n: (x.shape, x.rank) for n, x in one.layers.items()} == {
        n: (x.shape, x.rank) for n, x in other.layers.items()
    }
    one.save(tmp_path / "converted.safetensors", format="kohya")

    def shapes(path: Path) -> dict[str, list[int]]:
        with safe_open(path, "pt") as content:
            return {key: content.get_slice(key).get_shape() for key in content.keys()}  # noqa: SIM118 - no mapping

    assert shapes(tmp_path / "converted.safetensors") == shapes(real_file(shared, "pokemon_kohya"))


# One module of each dialect, as the stem of its two keys and the words for down and up -> the canonical layers.
DOWN_UP = ("lora_down.weight", "lora_up.weight")
A_B = ("lora_A.weight", "lora_B.weight")
OLD = ("lora.down.weight", "lora.up.weight")
SPLIT_Q = "attn.to_q", "attn.to_k", "attn.to_v"
DOUBLE, SINGLE = "transformer.transformer_blocks.7.", "transformer.single_transformer_blocks.7."
ATTENTION = "down_blocks.1.attentions.0.transformer_blocks.0.attn1"
FLAT_ATTENTION = ATTENTION.replace(".", "_")

KEYS: list[tuple[str, tuple[str, str], tuple[str, ...]]] = [
    # kohya, SD 1.x and SDXL with the names of diffusers
    (f"lora_unet_{FLAT_ATTENTION}_to_q.", DOWN_UP, (f"unet.{ATTENTION}.to_q",)),
    (f"lora_unet_{FLAT_ATTENTION}_to_out_0.", DOWN_UP, (f"unet.{ATTENTION}.to_out.0",)),
    (
        "lora_unet_up_blocks_3_attentions_2_transformer_blocks_0_ff_net_0_proj.",
        DOWN_UP,
        ("unet.up_blocks.3.attentions.2.transformer_blocks.0.ff.net.0.proj",),
    ),
    ("lora_unet_mid_block_attentions_0_proj_in.", DOWN_UP, ("unet.mid_block.attentions.0.proj_in",)),
    ("lora_unet_up_blocks_1_resnets_0_conv_shortcut.", DOWN_UP, ("unet.up_blocks.1.resnets.0.conv_shortcut",)),
    ("lora_unet_down_blocks_2_resnets_1_time_emb_proj.", DOWN_UP, ("unet.down_blocks.2.resnets.1.time_emb_proj",)),
    ("lora_unet_down_blocks_0_downsamplers_0_conv.", DOWN_UP, ("unet.down_blocks.0.downsamplers.0.conv",)),
    (
        "lora_te_text_model_encoder_layers_11_self_attn_k_proj.",
        DOWN_UP,
        ("text_encoder.text_model.encoder.layers.11.self_attn.k_proj",),
    ),
    # kohya, SDXL with the names of sgm
    ("lora_unet_input_blocks_4_1_proj_in.", DOWN_UP, ("unet.down_blocks.1.attentions.0.proj_in",)),
    (
        "lora_unet_input_blocks_8_1_transformer_blocks_9_attn2_to_out_0.",
        DOWN_UP,
        ("unet.down_blocks.2.attentions.1.transformer_blocks.9.attn2.to_out.0",),
    ),
    (
        "lora_unet_middle_block_1_transformer_blocks_3_ff_net_2.",
        DOWN_UP,
        ("unet.mid_block.attentions.0.transformer_blocks.3.ff.net.2",),
    ),
    ("lora_unet_middle_block_2_out_layers_3.", DOWN_UP, ("unet.mid_block.resnets.1.conv2",)),
    ("lora_unet_input_blocks_3_0_op.", DOWN_UP, ("unet.down_blocks.0.downsamplers.0.conv",)),
    ("lora_unet_output_blocks_2_2_conv.", DOWN_UP, ("unet.up_blocks.0.upsamplers.0.conv",)),
    ("lora_unet_output_blocks_8_0_skip_connection.", DOWN_UP, ("unet.up_blocks.2.resnets.2.conv_shortcut",)),
    ("lora_unet_input_blocks_5_0_emb_layers_1.", DOWN_UP, ("unet.down_blocks.1.resnets.1.time_emb_proj",)),
    ("lora_unet_output_blocks_3_0_in_layers_2.", DOWN_UP, ("unet.up_blocks.1.resnets.0.conv1",)),
    ("lora_unet_input_blocks_0_0.", DOWN_UP, ("unet.conv_in",)),
    ("lora_unet_out_2.", DOWN_UP, ("unet.conv_out",)),
    ("lora_unet_time_embed_0.", DOWN_UP, ("unet.time_embedding.linear_1",)),
    ("lora_unet_label_emb_0_2.", DOWN_UP, ("unet.add_embedding.linear_2",)),
    (
        "lora_te1_text_model_encoder_layers_0_mlp_fc1.",
        DOWN_UP,
        ("text_encoder.text_model.encoder.layers.0.mlp.fc1",),
    ),
    (
        "lora_te2_text_model_encoder_layers_31_self_attn_out_proj.",
        DOWN_UP,
        ("text_encoder_2.text_model.encoder.layers.31.self_attn.out_proj",),
    ),
    # kohya, FLUX
    ("lora_unet_double_blocks_7_img_attn_qkv.", DOWN_UP, tuple(DOUBLE + part for part in SPLIT_Q)),
    (
        "lora_unet_double_blocks_7_txt_attn_qkv.",
        DOWN_UP,
        tuple(f"{DOUBLE}attn.add_{part}_proj" for part in "qkv"),
    ),
    ("lora_unet_double_blocks_7_img_attn_proj.", DOWN_UP, (f"{DOUBLE}attn.to_out.0",)),
    ("lora_unet_double_blocks_7_txt_attn_proj.", DOWN_UP, (f"{DOUBLE}attn.to_add_out",)),
    ("lora_unet_double_blocks_7_img_mlp_0.", DOWN_UP, (f"{DOUBLE}ff.net.0.proj",)),
    ("lora_unet_double_blocks_7_txt_mlp_2.", DOWN_UP, (f"{DOUBLE}ff_context.net.2",)),
    ("lora_unet_double_blocks_7_img_mod_lin.", DOWN_UP, (f"{DOUBLE}norm1.linear",)),
    ("lora_unet_double_blocks_7_txt_mod_lin.", DOWN_UP, (f"{DOUBLE}norm1_context.linear",)),
    ("lora_unet_single_blocks_7_linear1.", DOWN_UP, tuple(SINGLE + part for part in (*SPLIT_Q, "proj_mlp"))),
    ("lora_unet_single_blocks_7_linear2.", DOWN_UP, (f"{SINGLE}proj_out",)),
    ("lora_unet_single_blocks_7_modulation_lin.", DOWN_UP, (f"{SINGLE}norm.linear",)),
    ("lora_unet_img_in.", DOWN_UP, ("transformer.x_embedder",)),
    ("lora_unet_txt_in.", DOWN_UP, ("transformer.context_embedder",)),
    ("lora_unet_time_in_in_layer.", DOWN_UP, ("transformer.time_text_embed.timestep_embedder.linear_1",)),
    ("lora_unet_vector_in_out_layer.", DOWN_UP, ("transformer.time_text_embed.text_embedder.linear_2",)),
    ("lora_unet_guidance_in_in_layer.", DOWN_UP, ("transformer.time_text_embed.guidance_embedder.linear_1",)),
    ("lora_unet_final_layer_linear.", DOWN_UP, ("transformer.proj_out",)),
    ("lora_unet_final_layer_adaLN_modulation_1.", DOWN_UP, ("transformer.norm_out.linear",)),
    (
        "lora_te3_encoder_block_5_layer_1_DenseReluDense_wi_0.",
        DOWN_UP,
        ("text_encoder_2.encoder.block.5.layer.1.DenseReluDense.wi_0",),
    ),
    # OneTrainer, whose T5 is lora_te2_
    ("lora_transformer_single_transformer_blocks_7_attn_to_k.", DOWN_UP, (f"{SINGLE}attn.to_k",)),
    (
        "lora_te2_encoder_block_0_layer_0_SelfAttention_q.",
        DOWN_UP,
        ("text_encoder_2.encoder.block.0.layer.0.SelfAttention.q",),
    ),
    # TheLastBen
    ("lora_unet_single_transformer_blocks_7_attn_to_q_.", DOWN_UP, (f"{SINGLE}attn.to_q",)),
    # AI-toolkit, fal Kontext, BFL Control
    ("diffusion_model.double_blocks.7.img_attn.qkv.", A_B, tuple(DOUBLE + part for part in SPLIT_Q)),
    ("diffusion_model.single_blocks.7.linear2.", A_B, (f"{SINGLE}proj_out",)),
    ("base_model.model.double_blocks.7.img_mod.lin.", A_B, (f"{DOUBLE}norm1.linear",)),
    ("double_blocks.7.txt_mlp.0.", A_B, (f"{DOUBLE}ff_context.net.0.proj",)),
    ("final_layer.adaLN_modulation.1.", A_B, ("transformer.norm_out.linear",)),
    # XLabs and USO
    (
        "double_blocks.7.processor.qkv_lora1.",
        ("down.weight", "up.weight"),
        tuple(DOUBLE + part for part in SPLIT_Q),
    ),
    (
        "double_blocks.7.processor.qkv_lora2.",
        ("down.weight", "up.weight"),
        tuple(f"{DOUBLE}attn.add_{part}_proj" for part in "qkv"),
    ),
    ("double_blocks.7.processor.proj_lora1.", ("down.weight", "up.weight"), (f"{DOUBLE}attn.to_out.0",)),
    ("double_blocks.7.processor.proj_lora2.", ("down.weight", "up.weight"), (f"{DOUBLE}attn.to_add_out",)),
    ("single_blocks.7.processor.qkv_lora.", ("down.weight", "up.weight"), tuple(SINGLE + part for part in SPLIT_Q)),
    ("single_blocks.7.processor.proj_lora.", ("down.weight", "up.weight"), (f"{SINGLE}proj_out",)),
    # diffusers and PEFT, old and new
    (f"{DOUBLE}attn.to_q.", A_B, (f"{DOUBLE}attn.to_q",)),
    (f"{DOUBLE}attn.to_q.", ("lora_A.default.weight", "lora_B.default.weight"), (f"{DOUBLE}attn.to_q",)),
    ("base_model.model.transformer_blocks.7.attn.to_k.", A_B, (f"{DOUBLE}attn.to_k",)),
    ("transformer_blocks.7.attn.to_k.", DOWN_UP, (f"{DOUBLE}attn.to_k",)),
    (f"unet.{ATTENTION}.to_k.", A_B, (f"unet.{ATTENTION}.to_k",)),
    (f"unet.{ATTENTION}.to_k.", OLD, (f"unet.{ATTENTION}.to_k",)),
    (f"unet.{ATTENTION}.processor.to_k_", OLD, (f"unet.{ATTENTION}.to_k",)),
    (f"{ATTENTION}.processor.to_k_", OLD, (f"unet.{ATTENTION}.to_k",)),
    (f"{ATTENTION}.processor.to_out_", OLD, (f"unet.{ATTENTION}.to_out.0",)),
    (f"unet.{ATTENTION}.processor.to_out_", OLD, (f"unet.{ATTENTION}.to_out.0",)),
    (
        "text_encoder.text_model.encoder.layers.4.self_attn.q_proj.",
        ("lora_linear_layer.down.weight", "lora_linear_layer.up.weight"),
        ("text_encoder.text_model.encoder.layers.4.self_attn.q_proj",),
    ),
    (
        "text_encoder_2.text_model.encoder.layers.4.mlp.fc2.",
        A_B,
        ("text_encoder_2.text_model.encoder.layers.4.mlp.fc2",),
    ),
    # a text encoder saved from transformers 5, where `text_model` is gone
    ("text_encoder.encoder.layers.4.mlp.fc2.", A_B, ("text_encoder.text_model.encoder.layers.4.mlp.fc2",)),
]


# Alone, these may be another model's as well.
SHARED_STEMS = ("lora_unet_img_in.", "lora_unet_txt_in.", "lora_unet_final_layer", "final_layer.")


@pytest.mark.parametrize(("stem", "leaves", "names"), KEYS, ids=[f"{stem}{leaves[0]}" for stem, leaves, _ in KEYS])
def test_single_keys(stem: str, leaves: tuple[str, str], names: tuple[str, ...]) -> None:
    """One module of each dialect becomes the layers it stands for, with the right change."""
    rows = {1: 16, 3: 24, 4: 56}[len(names)]
    down, up = torch.randn(2, 8), torch.randn(rows, 2)
    said = "flux" if stem.startswith(SHARED_STEMS) else None
    adapter = ml.load({stem + leaves[0]: down, stem + leaves[1]: up}, architecture=said)
    assert tuple(adapter.layers) == names
    delta = torch.cat([layer.delta_weight() for layer in adapter.layers.values()])
    expected = up @ down
    if (
        names == ("transformer.norm_out.linear",) and "final_layer" in stem
    ):  # BFL: (shift, scale); diffusers: (scale, shift)
        expected = torch.cat([expected[8:], expected[:8]])
    torch.testing.assert_close(delta, expected)


@pytest.mark.parametrize(
    "alpha", [torch.tensor(4), torch.tensor(4.0), torch.tensor([4.0]), torch.tensor(4.0).bfloat16()]
)
def test_alpha_of_any_kind(alpha: Tensor) -> None:
    """An integer alpha (Qwen's hybrid files), one with a dimension, one in bfloat16: all give alpha / rank."""
    stem = "transformer_blocks.0.attn.to_k"
    file = {f"{stem}.lora_down.weight": torch.ones(2, 8), f"{stem}.lora_up.weight": torch.ones(8, 2)}
    layer = ml.load({**file, f"{stem}.alpha": alpha}).layers[f"transformer.{stem}"]
    assert layer.scaling == 2.0


def test_embeddings_of_a_bundle_are_extras() -> None:
    """OneTrainer's textual-inversion embeddings are kept beside the layers."""
    stem = "lora_transformer_single_transformer_blocks_0_attn_to_k"
    file = {f"{stem}.lora_down.weight": torch.ones(2, 8), f"{stem}.lora_up.weight": torch.ones(8, 2)}
    adapter = ml.load({**file, "bundle_emb.token.clip_l": torch.ones(3, 8)})
    assert set(adapter.extras) == {"bundle_emb.token.clip_l"}
    assert len(adapter.layers) == 1


# FLUX with a width of 8: fused modules and their parts.

WIDTH = 8
FUSED = {
    "double_blocks_0_img_attn_qkv": ([f"transformer_blocks.0.{part}" for part in SPLIT_Q], 3 * WIDTH),
    "double_blocks_0_txt_attn_qkv": ([f"transformer_blocks.0.attn.add_{part}_proj" for part in "qkv"], 3 * WIDTH),
    "single_blocks_0_linear1": (
        [f"single_transformer_blocks.0.{part}" for part in (*SPLIT_Q, "proj_mlp")],
        7 * WIDTH,
    ),
}


def fused_and_split(seed: int, rank: int, alpha: float) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """One adapter twice: as kohya writes it, with fused qkv, and as diffusers does, split and without alpha."""
    generator = torch.Generator().manual_seed(seed)
    fused: dict[str, Tensor] = {}
    split: dict[str, Tensor] = {}
    for module, (parts, rows) in FUSED.items():
        down = torch.randn(rank, WIDTH, generator=generator)
        up = torch.randn(rows, rank, generator=generator)
        fused[f"lora_unet_{module}.lora_down.weight"] = down
        fused[f"lora_unet_{module}.lora_up.weight"] = up
        fused[f"lora_unet_{module}.alpha"] = torch.tensor(alpha)
        for part, piece in zip(parts, up.split(rows_of(f"{module}", rows, WIDTH))):
            split[f"transformer.{part}.lora_A.weight"] = down.clone()
            split[f"transformer.{part}.lora_B.weight"] = piece * (alpha / rank)
    return fused, split


@pytest.mark.parametrize(
    "options",
    [
        {"method": "cat"},
        {"method": "svd"},
        {"method": "ties", "density": 0.5},
        {"method": "ties", "density": 0.5, "space": "core"},
        {"method": "dare", "density": 0.5},
    ],
    ids=lambda options: "-".join(str(value) for value in options.values()),
)
def test_fused_and_split_files_give_the_same_merge(options: dict[str, str | float]) -> None:
    """Law 4: whether a FLUX file holds fused or split q, k, v changes nothing, for ties either."""
    files = [fused_and_split(0, 4, 2.0), fused_and_split(1, 2, 2.0)]
    fused, split = (ml.merge([ml.load(pair[i]) for pair in files], [0.7, 1.0], seed=3, **options) for i in (0, 1))
    assert len(fused.layers) == 10
    assert_same(fused, split)


def parts_adapter(ranks: Mapping[int, int], scalings: Mapping[int, float], module: str, dtype: torch.dtype) -> Adapter:
    """Parts of one fused module, each with factors of its own."""
    generator = torch.Generator().manual_seed(5)
    parts, _ = FUSED[module]
    layers = {}
    for index, rank in ranks.items():
        rows = 4 * WIDTH if index == 3 else WIDTH
        down = torch.randn(rank, WIDTH, generator=generator).to(dtype)
        up = torch.randn(rows, rank, generator=generator).to(dtype)
        layers[f"transformer.{parts[index]}"] = LoraLayer(down, up, scalings.get(index, 1.0))
    return Adapter(layers, architecture="flux")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("module", "ranks", "scalings"),
    [
        ("double_blocks_0_img_attn_qkv", {0: 2, 1: 2, 2: 2}, {}),
        ("double_blocks_0_txt_attn_qkv", {0: 2, 1: 3, 2: 1}, {}),
        ("double_blocks_0_img_attn_qkv", {0: 2, 1: 2, 2: 2}, {0: 0.5, 1: 0.5, 2: 0.5}),
        ("double_blocks_0_img_attn_qkv", {0: 2, 1: 3, 2: 1}, {0: 0.5, 1: 2.0, 2: 0.7}),
        ("double_blocks_0_img_attn_qkv", {0: 2, 1: 3, 2: 1}, {0: -0.5, 1: 1.0, 2: 0.7}),
        ("double_blocks_0_img_attn_qkv", {0: 2}, {0: 0.7}),
        ("double_blocks_0_img_attn_qkv", {2: 2}, {}),
        ("double_blocks_0_img_attn_qkv", {1: 2, 2: 3}, {1: 0.5}),
        ("single_blocks_0_linear1", {0: 2, 1: 3, 2: 1, 3: 4}, {3: 0.5}),
        ("single_blocks_0_linear1", {0: 2, 2: 1}, {}),
        ("single_blocks_0_linear1", {1: 2, 3: 2}, {1: 3.0}),
        ("single_blocks_0_linear1", {3: 2}, {3: 0.5}),
    ],
    ids=str,
)
def test_parts_are_joined_and_split_again(
    tmp_path: Path, module: str, ranks: dict[int, int], scalings: dict[int, float], dtype: torch.dtype
) -> None:
    """Parts with different factors, ranks and scalings, or some missing, are one module in kohya's file, exactly.

    Loaded again, each part has its own rank back, and a part that was not there is still not there.
    """
    adapter = parts_adapter(ranks, scalings, module, dtype)
    path = adapter.save(tmp_path / "joined.safetensors", format="kohya")
    with safe_open(path, "pt") as content:
        assert set(content.keys()) == {f"lora_unet_{module}.{leaf}" for leaf in (*DOWN_UP, "alpha")}
        up = content.get_tensor(f"lora_unet_{module}.lora_up.weight").double()
        down = content.get_tensor(f"lora_unet_{module}.lora_down.weight").double()
        scaling = float(content.get_tensor(f"lora_unet_{module}.alpha")) / len(down)
    loaded = ml.load(path)
    assert_same(loaded, adapter)
    assert loaded.ranks == adapter.ranks
    parts, rows = FUSED[module]
    assert up.shape == (rows, sum(ranks.values()))
    pieces = (scaling * up @ down).split(rows_of(module, rows, WIDTH))
    for part, piece in zip(parts, pieces):
        layer = adapter.layers.get(f"transformer.{part}")
        expected = torch.zeros_like(piece) if layer is None else layer.delta_weight().double()
        torch.testing.assert_close(piece, expected, rtol=1e-6, atol=1e-6)


def test_equal_parts_share_their_down_factor(tmp_path: Path) -> None:
    """A file that was split without change is fused again at its old rank, bit for bit."""
    fused, _ = fused_and_split(0, 4, 2.0)
    ml.load(fused).save(tmp_path / "again.safetensors", format="kohya")
    with safe_open(tmp_path / "again.safetensors", "pt") as content:
        again = {key: content.get_tensor(key) for key in content.keys()}  # noqa: SIM118 - no mapping
    assert set(again) == set(fused)
    for key, tensor in fused.items():
        assert torch.equal(again[key], tensor), key
