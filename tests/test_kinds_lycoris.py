"""Kinds of adapters beside LoRA against the installed LyCORIS: its own modules, and real LoKr files."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from lycoris.modules.boft import ButterflyOFTModule
from lycoris.modules.diag_oft import DiagOFTModule
from lycoris.modules.full import FullModule
from lycoris.modules.glora import GLoRAModule
from lycoris.modules.ia3 import IA3Module
from lycoris.modules.locon import LoConModule
from lycoris.modules.loha import LohaModule
from lycoris.modules.lokr import LokrModule
from safetensors.torch import load_file
from torch import Tensor, nn

import mergelab as ml
from tests.test_golden import relative
from tests.test_keymaps import real_file

CLOSE = 1e-5
Modules = dict[str, tuple[type, dict[str, Any]]]

# LyCORIS' LoHa asks its own parameter for a number.
pytestmark = pytest.mark.filterwarnings("ignore:Converting a tensor with requires_grad:UserWarning")

# LoKr with a Tucker core raises in LyCORIS 4.1; `test_kinds` has it.
FREE: Modules = {
    "LoHa": (LohaModule, {"alpha": 1.0}),
    "LoHa, Tucker": (LohaModule, {"alpha": 3.0, "use_tucker": True}),
    "LoHa, rsLoRA": (LohaModule, {"alpha": 1.0, "rs_lora": True}),
    "LoKr": (LokrModule, {"alpha": 1.0, "lora_dim": 1}),
    "LoKr, both": (LokrModule, {"alpha": 1.0, "lora_dim": 1, "decompose_both": True}),
    "LoKr, whole": (LokrModule, {"alpha": 1.0, "lora_dim": 100, "full_matrix": True}),
    "LoKr, unbalanced": (LokrModule, {"alpha": 1.0, "lora_dim": 1, "factor": 2, "unbalanced_factorization": True}),
}
OF_THE_WEIGHT: Modules = {
    "DoRA, rows": (LoConModule, {"alpha": 1.0, "weight_decompose": True}),
    "DoRA, columns": (LoConModule, {"alpha": 1.0, "weight_decompose": True, "wd_on_out": False}),
    "DoRA of LoHa": (LohaModule, {"alpha": 1.0, "weight_decompose": True}),
    "DoRA of LoKr": (LokrModule, {"alpha": 1.0, "lora_dim": 1, "weight_decompose": True, "wd_on_out": False}),
    "OFT": (DiagOFTModule, {"lora_dim": 4}),
    "OFT, constraint": (DiagOFTModule, {"lora_dim": 4, "constraint": 0.01, "rescaled": True}),
    "BOFT": (ButterflyOFTModule, {}),
    "GLoRA": (GLoRAModule, {"alpha": 1.0}),
    "(IA)3, inputs": (IA3Module, {"train_on_input": True}),
    "(IA)3, outputs": (IA3Module, {}),
}
ALL = {**FREE, **OF_THE_WEIGHT}

UNET = {
    "lora_unet_mid_block_attentions_0_proj_out": ("unet.mid_block.attentions.0.proj_out", lambda: nn.Linear(8, 16)),
    "lora_unet_mid_block_resnets_0_conv1": ("unet.mid_block.resnets.0.conv1", lambda: nn.Conv2d(8, 16, 3)),
    "lora_unet_up_blocks_1_resnets_0_conv_shortcut": (
        "unet.up_blocks.1.resnets.0.conv_shortcut",
        lambda: nn.Conv2d(8, 16, 1),
    ),
}


def trained(kind: str, module: nn.Module, name: str = "") -> nn.Module:
    """LyCORIS' module around one of PyTorch's, with random parameters."""
    of, options = ALL[kind]
    # The blocks of a butterfly: a power of two of them.
    dim = len(module.weight) // 8 if of is ButterflyOFTModule else 2
    wrapper = of(name, module, **{"lora_dim": dim, **options})
    with torch.no_grad():
        for parameter in wrapper.parameters():
            # A start of zeros says nothing; scales and magnitudes stay near what they are.
            parameter.add_(0.3 * torch.randn_like(parameter))
    return wrapper.eval()


def applied(wrapper: nn.Module, module: nn.Module) -> Tensor:
    """What the wrapped module computes more than the bare one, as a weight: its answers to single ones."""
    weight = module.weight
    ones = torch.eye(math.prod(weight.shape[1:])).reshape(-1, *weight.shape[1:])
    with torch.no_grad():
        bias = 0 if module.bias is None else module.bias.reshape(-1, *[1] * (weight.dim() - 2))
        return (wrapper(ones) - bias).flatten(1).T.reshape(weight.shape) - weight


def tensors_of(wrapper: nn.Module, name: str) -> dict[str, Tensor]:
    """As LyCORIS saves a module."""
    return {f"{name}.{leaf}": tensor.detach().contiguous() for leaf, tensor in wrapper.state_dict().items()}


@pytest.mark.parametrize("kind", ALL)
@pytest.mark.parametrize("name", UNET)
def test_as_lycoris_applies_it(kind: str, name: str) -> None:
    """The change of a linear layer and of convolutions is what the module itself computes."""
    torch.manual_seed(len(kind) + len(name))
    canonical, make = UNET[name]
    module = make()
    wrapper = trained(kind, module, name)
    base = {f"{canonical}.weight": module.weight.detach()} if kind in OF_THE_WEIGHT else None
    # A rotation or a factor does not tell the shape of the weight, and so whose names these are.
    adapter = ml.load(tensors_of(wrapper, name), base=base, architecture="sd15" if base else None)
    assert list(adapter.layers) == [canonical] and not adapter.extras
    layer = adapter.layers[canonical]
    expected = applied(wrapper, module)
    assert math.prod(layer.shape) == expected.numel()
    assert relative(layer.delta_weight(), expected) < CLOSE
    assert float(expected.norm()) > 0.01 * float(module.weight.norm())


def test_full_differences() -> None:
    """A module that is trained whole saves the difference from the weight that it began with, and of its bias."""
    torch.manual_seed(0)
    name, (canonical, make) = next(iter(UNET.items()))
    module = make()
    before, bias = module.weight.detach().clone(), module.bias.detach().clone()
    wrapper = FullModule(name, module)
    wrapper.apply_to()
    with torch.no_grad():
        for parameter in wrapper.parameters():
            parameter.add_(torch.randn_like(parameter))
        after = wrapper(torch.eye(8))[:, :] - wrapper(torch.zeros(1, 8))
    adapter = ml.load(tensors_of(wrapper, name))
    assert relative(adapter.layers[canonical].delta_weight(), after.T - before) < CLOSE
    with torch.no_grad():
        assert relative(adapter.extras[f"{canonical}.lora_B.bias"], wrapper(torch.zeros(1, 8))[0] - bias) < CLOSE


FUSED = {
    "double_blocks.0.img_attn.qkv": ("transformer_blocks.0.attn", ("to_q", "to_k", "to_v"), 3),
    "single_blocks.3.linear1": ("single_transformer_blocks.3", ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"), 7),
    "final_layer.adaLN_modulation.1": ("norm_out", ("linear",), 2),
}


@pytest.mark.parametrize("kind", ALL)
@pytest.mark.parametrize("original", FUSED)
def test_fused_modules_of_flux(kind: str, original: str) -> None:
    """A module of the original FLUX is split after it is computed; its weight comes from diffusers' or BFL's parts."""
    torch.manual_seed(1)
    width, (block, parts, times) = 16, FUSED[original]
    module = nn.Linear(width, times * width)
    name = f"lora_unet_{original.replace('.', '_')}"
    wrapper = trained(kind, module, name)
    expected = applied(wrapper, module)
    weight = module.weight.detach()
    swapped = parts == ("linear",)

    def split(whole: Tensor) -> dict[str, Tensor]:
        if swapped:
            return {f"transformer.{block}.{parts[0]}": torch.cat(whole.chunk(2)[::-1])}
        sizes = [width] * 3 + [whole.shape[0] - 3 * width] * (len(parts) == 4)
        return {f"transformer.{block}.{part}": rows for part, rows in zip(parts, whole.split(sizes))}

    diffusers = {f"{key}.weight": rows for key, rows in split(weight).items()}
    for base in ({f"model.diffusion_model.{original}.weight": weight}, diffusers):
        given = base if kind in OF_THE_WEIGHT else None
        adapter = ml.load(tensors_of(wrapper, name), base=given, architecture="flux")
        found = {key: layer.delta_weight() for key, layer in adapter.layers.items()}
        assert set(found) == set(split(expected))
        for key, rows in split(expected).items():
            assert (found[key] - rows).norm() < CLOSE * expected.norm(), key


@pytest.mark.parametrize("rank", [4, 8])
def test_real_lokr_files(shared: Path, tmp_path: Path, rank: int) -> None:
    """Trained files of LoKr are the Kronecker products that they hold, merge with a LoRA, and are written as one."""
    file = real_file(shared, f"falcon_lokr{rank}")
    adapter, tensors = ml.load(file), load_file(file)
    assert adapter.architecture == "sd15" and len(adapter.layers) == 350
    assert sum(math.prod(x.shape) for x in adapter.layers.values()) > 3e8
    for name in ("unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_k", "unet.mid_block.resnets.0.conv1"):
        flat = f"lora_{name.replace('.', '_')}.lokr_"
        w1, w2 = (tensors[f"{flat}{w}_a"].double() @ tensors[f"{flat}{w}_b"].double() for w in ("w1", "w2"))
        assert float(tensors[flat.replace("lokr_", "alpha")]) == rank
        layer = adapter.layers[name]
        assert layer.rank == rank**2
        assert relative(layer.delta_weight(), torch.kron(w1, w2)) < CLOSE
    small = adapter.select("*mid_block*")
    resized = small.resize(rank**2 // 2)
    again = ml.load(resized.save(tmp_path / "small.safetensors", format="kohya"))
    assert set(again.layers) == set(small.layers)
    assert (again - resized).norm() < 1e-3 * resized.norm()
    pokemon = ml.load(real_file(shared, "pokemon_kohya")).select("*mid_block*")
    merged = ml.merge([small, pokemon], [0.5, 1.0], "cat")
    assert (merged - 0.5 * small - pokemon).norm() < CLOSE * merged.norm()
