"""Files against the golden cases: real key names in, the delta weights of the published readers out."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import mergelab as ml
from mergelab.layer import same_weight
from tests.test_golden import Golden, find, one_thread, relative  # noqa: F401 - one_thread is a fixture

# Modules of the original FLUX -> those of diffusers that its rows hold, from the first row to the last.
_BLOCKS = {
    "double_blocks": {
        "img_attn.qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
        "txt_attn.qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
        "img_attn.proj": ("attn.to_out.0",),
        "txt_attn.proj": ("attn.to_add_out",),
        "img_mlp.0": ("ff.net.0.proj",),
        "img_mlp.2": ("ff.net.2",),
        "txt_mlp.0": ("ff_context.net.0.proj",),
        "txt_mlp.2": ("ff_context.net.2",),
        "img_mod.lin": ("norm1.linear",),
        "txt_mod.lin": ("norm1_context.linear",),
    },
    "single_blocks": {
        "linear1": ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"),
        "linear2": ("proj_out",),
        "modulation.lin": ("norm.linear",),
    },
}
_OUTSIDE = {
    "img_in": "x_embedder",
    "txt_in": "context_embedder",
    "time_in.in_layer": "time_text_embed.timestep_embedder.linear_1",
    "final_layer.linear": "proj_out",
    "final_layer.adaLN_modulation.1": "norm_out.linear",
}
_SWAPPED = "norm_out.linear"

COMFY = (
    "aitoolkit_flux", "dif_sdxl_processor", "kohya_flux", "kohya_sd15", "kohya_sdxl_diffusers_names", "kohya_sdxl_sgm",
    "onetrainer_flux", "peft_flux", "peft_sdxl_processor", "sd15_diffusers_old",
)  # fmt: skip
LYCORIS = ("locon", "locon_rslora", "locon_tucker")
# A case whose name holds one of these is no LoRA or LoCon: `test_kinds` has it.
OTHER_KINDS = ("loha", "lokr", "dora", "oft", "glora", "ia3", "full_diff")


def file_of(case: Golden, i: int = 0) -> dict[str, Tensor]:
    """The tensors of an input file under its own keys."""
    return case.part(f"in.{i}.")


def diffusers_parts(module: str) -> tuple[str, ...]:
    """The canonical names of what a module of the original FLUX holds, in the order of its rows."""
    if module in _OUTSIDE:
        return (f"transformer.{_OUTSIDE[module]}",)
    block, number, rest = module.split(".", 2)
    prefix = {"double_blocks": "transformer_blocks", "single_blocks": "single_transformer_blocks"}[block]
    return tuple(f"transformer.{prefix}.{number}.{part}" for part in _BLOCKS[block][rest])


def canonical_parts(module: str, facts: dict[str, Any], model: str) -> tuple[str, ...]:
    """Canonical layer names that land in a module of ComfyUI."""
    name = facts["diffusers_name"]
    if isinstance(name, str) and name.startswith("text_encoder"):
        return (name.replace("(T5)", ""),)
    return diffusers_parts(module) if model == "Flux" else (f"unet.{name}",)


def assembled(parts: tuple[str, ...], found: dict[str, Tensor], shape: list[int]) -> Tensor:
    """The change of a module from those of its parts; rows of a part that the file lacks are zero."""
    if len(parts) == 1:
        delta = found.pop(parts[0])
        return torch.cat(delta.chunk(2)[::-1]) if parts[0].endswith(f".{_SWAPPED}") else delta
    width = shape[1]
    sizes = [width] * 3 + [shape[0] - 3 * width] * (len(parts) == 4)
    rows = [found.pop(part, torch.zeros(n, width)) for part, n in zip(parts, sizes)]
    assert [len(r) for r in rows] == sizes
    return torch.cat(rows)


@pytest.mark.parametrize("case", find(*(f"comfy_s0_{name}" for name in COMFY)))
def test_comfyui(case: Golden) -> None:
    """A file loads to the change that ComfyUI applies, module by module and at each strength; nothing is left over."""
    check_comfyui(case, ml.load(file_of(case)))


def check_comfyui(case: Golden, adapter: ml.Adapter) -> None:
    """Its layers make up the modules of ComfyUI, of their shapes, as the case has them."""
    assert not adapter.extras
    model = case.facts["model"]
    for suffix, strength in case.facts["strengths"].items():
        found = {name: layer.delta_weight() for name, layer in (strength * adapter).layers.items()}
        modules = case.facts["modules"].items()
        whole = {m: assembled(canonical_parts(m, facts, model), found, facts["shape"]) for m, facts in modules}
        assert not found
        assert all(same_weight(whole[m].shape, facts["shape"]) for m, facts in modules)
        case.check(whole, suffix)


@pytest.mark.parametrize("case", find(*(f"flux_H16_s0_{name}" for name in (
    "aitoolkit", "kohya", "kohya_blockdiag_qkv", "kohya_no_alpha", "peft_split", "xlabs",
))))  # fmt: skip
def test_flux_converters(case: Golden) -> None:
    """Every dialect of FLUX loads to the diffusers modules and changes that the published converters give."""
    adapter = ml.load(file_of(case))
    assert adapter.architecture == "flux"
    case.check({name.removeprefix("transformer."): x.delta_weight() for name, x in adapter.layers.items()})


@pytest.mark.parametrize("case", find("flux_H16_s0_compose"))
def test_flux_compose(case: Golden) -> None:
    """`cat` of two files in two dialects is nunchaku's `compose_lora`."""
    merged = ml.merge([file_of(case, 0), file_of(case, 1)], case.weights, "cat")
    case.check({name.removeprefix("transformer."): x.delta_weight() for name, x in merged.layers.items()})


@pytest.mark.parametrize("case", find("flux_H3072_s3_kohya"))
def test_flux_full_size(case: Golden) -> None:
    """A kohya file of full width, in float16, is split in the right rows; stored are some entries and the norm."""
    adapter = ml.load(file_of(case))
    found = {}
    for name, stored in case.facts["subsample"].items():
        layer = adapter.layers[f"transformer.{name}"]
        assert list(layer.shape) == stored["shape"]
        norm = adapter.select(f"transformer.{name}").norm()
        assert abs(norm - stored["fro"]) <= case.tolerance * stored["fro"]
        rows, columns = layer.lora_B[:: stored["row_step"]], layer.lora_A[:, :: stored["col_step"]]
        found[name] = ml.LoraLayer(columns, rows, layer.scaling).delta_weight()
    assert len(found) == len(adapter.layers)
    case.check(found, "delta_sub")


@pytest.mark.parametrize("case", find(*(f"lycoris_s0_{name}" for name in LYCORIS)))
def test_lycoris(case: Golden) -> None:
    """LoCon with and without a Tucker core, and with rsLoRA's alpha, is what LyCORIS applies at each strength."""
    adapter = ml.load(file_of(case))
    for suffix, strength in case.facts["strengths"].items():
        layers = (strength * adapter).layers
        case.check({name.replace("unet.", "lora_unet_"): x.delta_weight() for name, x in layers.items()}, suffix)


def kohya_layers(tensors: dict[str, Tensor]) -> Iterator[tuple[str, ml.LoraLayer]]:
    """The layers of a kohya file by the names it has; without alpha, alpha is the rank."""
    for name in dict.fromkeys(key.partition(".")[0] for key in tensors):
        down, up = tensors[f"{name}.lora_down.weight"], tensors[f"{name}.lora_up.weight"]
        rank = down.shape[0]
        yield name, ml.LoraLayer(down, up, float(tensors.get(f"{name}.alpha", torch.tensor(rank))) / rank)


def kohya_rank(hyper: dict[str, Any], layer: ml.LoraLayer) -> str | int:
    """What kohya's script was asked for, as a rank of ours; convolutions have a cap of their own there."""
    cap = hyper["new_conv_rank" if len(layer.shape) == 4 else "new_rank"]
    rule = hyper["dynamic_method"]
    return f"{rule}={hyper['dynamic_param']:g},max={cap}" if rule else int(cap)


@pytest.mark.parametrize("case", find("kohya_*_resize_*"))
def test_kohya_resize(case: Golden) -> None:
    """`resize` chooses the ranks that kohya's script chose, and gives its changes."""
    stored = dict(kohya_layers(case.part("out."))) if "factors" in case.facts["output_form"] else {}
    for name, layer in kohya_layers(file_of(case)):
        rank = int(case.facts["chosen_ranks"][name])
        asked = kohya_rank(case.hyper, layer)
        resized = ml.Adapter({f"unet.{name}": layer}).resize(asked).layers[f"unet.{name}"]
        assert resized.rank == rank
        outputs = case.part(f"out.{name}.")
        expected = stored[name].delta_weight() if name in stored else outputs[f"delta_rank{rank}"]
        assert relative(resized.delta_weight(), expected) <= case.tolerance
        if "delta" in outputs:
            assert relative(layer.delta_weight(), outputs["delta"]) <= case.tolerance


def test_every_lora_file_is_checked(shared: Path) -> None:
    """No golden file of LoRA or LoCon layers is left out."""
    marks = [m for f in list(globals().values()) for m in getattr(f, "pytestmark", []) if m.args[0] == "case"]
    checked = {p.id for m in marks for p in m.args[1]}
    files = {
        p.stem for kind in ("comfy", "flux", "lycoris", "kohya") for p in shared.glob(f"golden/{kind}_*.safetensors")
    }
    assert checked == {name for name in files if not any(kind in name for kind in OTHER_KINDS)}
