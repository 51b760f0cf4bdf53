"""Kinds of adapters beside LoRA against the golden cases: what LyCORIS and ComfyUI make of a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import mergelab as ml
from mergelab.formats.base_weights import open_base
from tests.test_golden import Golden, find, one_thread, relative  # noqa: F401 - one_thread is a fixture
from tests.test_golden_files import OTHER_KINDS, canonical_parts, check_comfyui, file_of

FREE = (
    "full_diff", "loha", "loha_tucker", "lokr_both", "lokr_full_full", "lokr_tucker", "lokr_unbalanced",
    "lokr_w1full_w2ab", "lokr_w1full_w2full_alpha_ne_dim",
)  # fmt: skip
OF_THE_WEIGHT = (
    "boft", "diag_oft", "diag_oft_rescale_constraint", "dora_in", "dora_loha", "dora_lokr", "dora_out", "glora",
    "ia3_in", "ia3_out",
)  # fmt: skip
# At other strengths than 1 LyCORIS computes another change than that strength times the whole one: it leaves the change
# of the direction of a DoRA as it is, blends each rotation of a BOFT with none, and keeps a rescaling. Here a weight
# multiplies the change, whatever its kind.
NOT_LINEAR_THERE = ("boft", "diag_oft_rescale_constraint", "dora_in", "dora_loha", "dora_lokr", "dora_out")
COMFY = ("loha_sd15", "lokr_sd15", "onetrainer_flux_dora", "onetrainer_sdxl_dora", "simpletuner_flux_lokr")


def base_of(case: Golden) -> dict[str, Tensor] | None:
    """The base model's weights as a single file has them; None where the case has none."""
    weights = case.part("base.")
    own = ("clip_l.", "clip_g.", "t5xxl.", "lora_unet_")
    return {k if k.startswith(own) else f"model.diffusion_model.{k}": t for k, t in weights.items()} or None


@pytest.mark.parametrize("case", find(*(f"lycoris_s0_{name}" for name in (*FREE, *OF_THE_WEIGHT))))
def test_lycoris(case: Golden) -> None:
    """Each kind is what LyCORIS applies, at each strength where that is linear."""
    adapter = ml.load(file_of(case), base=base_of(case))
    assert not adapter.extras
    assert case.facts["strengths"]["delta"] == 1.0
    for suffix, strength in case.facts["strengths"].items():
        if strength != 1.0 and case.name.removeprefix("lycoris_s0_") in NOT_LINEAR_THERE:
            continue
        layers = (strength * adapter).layers
        case.check({name.replace("unet.", "lora_unet_"): x.delta_weight() for name, x in layers.items()}, suffix)


@pytest.mark.parametrize("case", find(*(f"lycoris_s0_{name}" for name in OF_THE_WEIGHT)))
def test_the_weight_is_asked_for(case: Golden) -> None:
    """Without the base model's weights the sentence says what needs them, and where they are given."""
    with pytest.raises(ml.FormatError, match=r"changes the base model's own weights: give them too.*base=.*--base"):
        ml.load(file_of(case))


@pytest.mark.parametrize("case", find(*(f"comfy_s0_{name}" for name in COMFY)))
def test_comfyui(case: Golden) -> None:
    """Each file is what ComfyUI applies, modules of convolutions that a file has flat in their own shape."""
    check_comfyui(case, ml.load(file_of(case), base=base_of(case)))


@pytest.mark.parametrize("case", find("comfy_s0_lycoris_sdxl_dora_out"))
def test_norms_of_dora(case: Golden) -> None:
    """Magnitudes of rows are for the norms of weight and change together, as in LyCORIS; ComfyUI has the weight's.

    So the new weights of the two differ by the ratio of these norms, row by row.
    """
    base = case.part("base.")
    found = ml.load(file_of(case), base=base_of(case))
    inner = ml.load({key: tensor for key, tensor in file_of(case).items() if not key.endswith(".dora_scale")})
    assert any("norms those of the sum of weight and change" in note for note in found.report.notes)
    comfy: dict[str, Tensor] = {}
    apart = []
    for module, facts in case.facts["modules"].items():
        (name,) = canonical_parts(module, facts, case.facts["model"])
        weight, delta = base[f"{module}.weight"].double(), found.layers[name].delta_weight().double()
        moved = weight + inner.layers[name].delta_weight().double().reshape(weight.shape)
        ratio = moved.flatten(1).norm(dim=1) / weight.flatten(1).norm(dim=1)
        whole = (weight + delta.reshape(weight.shape)) * ratio.reshape(-1, *[1] * (weight.dim() - 1))
        comfy[module] = whole - weight
        apart.append(relative(delta, comfy[module]))
    case.check(comfy)
    assert min(apart) > 1e-3


def test_every_case_is_checked(shared: Path) -> None:
    """No golden file of these kinds is left out."""
    marks: list[Any] = [m for f in list(globals().values()) for m in getattr(f, "pytestmark", [])]
    checked = {p.id for m in marks if m.args[0] == "case" for p in m.args[1]}
    files = {p.stem for kind in ("comfy", "lycoris") for p in shared.glob(f"golden/{kind}_*.safetensors")}
    assert checked == {name for name in files if any(kind in name for kind in OTHER_KINDS)}


def test_what_is_no_factor_of_a_matrix(tmp_path: Path) -> None:
    """A change of another kind is written as the factors that it is exactly, and read again as they are."""
    torch.manual_seed(0)
    name = "unet.mid_block.resnets.0.conv1"
    shapes = {"a": (6, 2), "b": (2, 36)}
    halves = {f"{name}.hada_w{i}_{s}": torch.randn(*shape) for i in (1, 2) for s, shape in shapes.items()}
    adapter = ml.load(halves | {f"{name}.alpha": torch.tensor(1.0)})
    layer = adapter.layers[name]
    assert (layer.shape, layer.rank) == ((6, 4, 3, 3), 4)
    products = [halves[f"{name}.hada_w{i}_a"] @ halves[f"{name}.hada_w{i}_b"] for i in (1, 2)]
    assert relative(layer.delta_weight(), 0.5 * products[0] * products[1]) < 1e-6
    again = ml.load(adapter.save(tmp_path / "as-lora.safetensors")).layers[name]
    assert (again.shape, again.rank) == (layer.shape, 4)
    assert relative(again.delta_weight(), layer.delta_weight()) < 1e-6


def test_the_base_model_tells_what_a_file_does_not() -> None:
    """Rotations say nothing of the weight's shape, so that only the base model tells whose names a file has."""
    torch.manual_seed(0)
    name = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    weight = open_base("miniature/sdxl").weight(name)
    tensors = {f"lora_{name.replace('.', '_')}.oft_blocks": 0.1 * torch.randn(8, len(weight) // 8, len(weight) // 8)}
    adapter = ml.load(tensors, base="miniature/sdxl")
    assert adapter.architecture == "sdxl" and list(adapter.layers) == [name]
    changed = weight + adapter.layers[name].delta_weight()
    # A rotation of the outputs leaves products of the inputs' columns as they were.
    torch.testing.assert_close(changed.T @ changed, weight.T @ weight, rtol=1e-4, atol=1e-4)
    with pytest.raises(ml.LayerError, match="the base model has no such layer"):
        ml.load(tensors, base="miniature/flux")
    with pytest.raises(ml.LayerError, match="expected square blocks for 8 outputs, found oft_blocks"):
        ml.load(tensors, base={f"{name}.weight": weight[:8]}, architecture="sdxl")
