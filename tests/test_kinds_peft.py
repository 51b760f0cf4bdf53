"""PEFT's adapters beside LoRA, against PEFT's own merged weights."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import mergelab as ml
from mergelab.formats.kinds.oft import turned
from mergelab.formats.kinds.peft_boft import _order
from tests.test_golden import relative

CLOSE = 1e-5
LINEAR, ALL = ["q", "ff"], ["q", "ff", "conv", "conv1"]
# PEFT has a CUDA extension for BOFT, and says that it is not there.
pytestmark = [
    pytest.mark.filterwarnings("ignore:Failed to load the CUDA extension:UserWarning"),
    pytest.mark.filterwarnings("ignore:Setting boft_n_butterfly_factor to 1:UserWarning"),
]

CONFIGS: dict[str, tuple[type, dict[str, Any]]] = {
    "LoHa": (peft.LoHaConfig, {"r": 3, "alpha": 5, "alpha_pattern": {"ff": 2}, "target_modules": ALL}),
    "LoHa, Tucker": (peft.LoHaConfig, {"r": 2, "alpha": 5, "use_effective_conv2d": True, "target_modules": ALL}),
    "LoKr": (peft.LoKrConfig, {"r": 1, "alpha": 3, "target_modules": ALL}),
    "LoKr, both": (peft.LoKrConfig, {"r": 1, "alpha": 3, "decompose_both": True, "target_modules": ALL}),
    "LoKr, Tucker": (peft.LoKrConfig, {"r": 1, "alpha": 3, "use_effective_conv2d": True, "target_modules": ALL}),
    # Both factors whole: PEFT scales them by its config's alpha and rank all the same.
    "LoKr, whole": (
        peft.LoKrConfig,
        {"r": 16, "alpha": 8, "rank_pattern": {"ff": 32, "conv": 20}, "alpha_pattern": {"q": 4}, "target_modules": ALL},
    ),
    "OFT": (peft.OFTConfig, {"oft_block_size": 4, "target_modules": ALL}),
    "OFT, few terms": (
        peft.OFTConfig,
        {"oft_block_size": 4, "num_cayley_neumann_terms": 3, "target_modules": ALL},
    ),
    "OFT, exact": (peft.OFTConfig, {"oft_block_size": 4, "use_cayley_neumann": False, "target_modules": ALL}),
    "OFT, shared": (peft.OFTConfig, {"oft_block_size": 4, "block_share": True, "target_modules": ALL}),
    "OFT, bounded": (peft.OFTConfig, {"oft_block_size": 4, "coft": True, "eps": 0.5, "target_modules": ALL}),
    "BOFT": (peft.BOFTConfig, {"boft_block_size": 4, "target_modules": ALL}),
    "(IA)3": (peft.IA3Config, {"target_modules": ALL, "feedforward_modules": ["ff", "conv1"]}),
    "DoRA": (peft.LoraConfig, {"r": 3, "lora_alpha": 2, "use_dora": True, "target_modules": ALL}),
    "DoRA, rsLoRA": (
        peft.LoraConfig,
        {"r": 4, "lora_alpha": 2, "use_dora": True, "use_rslora": True, "target_modules": LINEAR},
    ),
    "PiSSA": (peft.LoraConfig, {"r": 3, "lora_alpha": 2, "init_lora_weights": "pissa", "target_modules": LINEAR}),
    "OLoRA": (peft.LoraConfig, {"r": 3, "lora_alpha": 2, "init_lora_weights": "olora", "target_modules": LINEAR}),
    "PiSSA and DoRA": (
        peft.LoraConfig,
        {"r": 3, "lora_alpha": 2, "init_lora_weights": "pissa", "use_dora": True, "target_modules": LINEAR},
    ),
}
FREE = [kind for kind in CONFIGS if kind.startswith("Lo")]


class Net(nn.Module):
    """Linear layers and convolutions."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.q, self.ff = nn.Linear(8, 12), nn.Linear(12, 16)
        self.conv, self.conv1 = nn.Conv2d(4, 8, 3), nn.Conv2d(8, 12, 1)


def trained(kind: str, folder: Path) -> tuple[nn.Module, dict[str, Tensor]]:
    """What PEFT makes of a model and random parameters, which it saves; and the weights that it began with."""
    before = Net().state_dict()
    config, options = CONFIGS[kind]
    model = peft.get_peft_model(Net(), config(**options))
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.3 * torch.randn_like(parameter))
    model.save_pretrained(str(folder))
    return model.merge_and_unload(), before


@pytest.mark.parametrize("kind", CONFIGS)
def test_as_peft_merges_it(kind: str, tmp_path: Path) -> None:
    """The change of each layer, and of its bias, is that of PEFT's merged model."""
    after, before = trained(kind, tmp_path)
    if kind not in FREE:
        with pytest.raises(ml.FormatError, match=r"base="):
            ml.load(tmp_path)
    adapter = ml.load(tmp_path, base=before if kind not in FREE else None)
    expected = {key: value - before[key] for key, value in after.state_dict().items() if not value.equal(before[key])}
    assert {name.removeprefix("model.") for name in adapter.layers} == set(CONFIGS[kind][1]["target_modules"])
    for name, layer in adapter.layers.items():
        assert relative(layer.delta_weight(), expected.pop(f"{name.removeprefix('model.')}.weight")) < CLOSE, name
    for name, bias in adapter.extras.items():
        change = expected.pop(f"{name.removeprefix('model.').removesuffix('.lora_B.bias')}.bias")
        assert relative(bias, change) < CLOSE, name
    assert not expected
    if kind.startswith("PiSSA"):
        assert {layer.rank for layer in adapter.layers.values()} <= {6, 8, 12}


def test_dora_in_a_file_of_diffusers(tmp_path: Path) -> None:
    """As a pipeline saves it: the config in the header, the scalings by it."""
    after, before = trained("DoRA, rsLoRA", tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    header = {"lora_adapter_metadata": json.dumps({f"unet.{field}": value for field, value in config.items()})}
    file = tmp_path / "dora.safetensors"
    save_file({key.replace("base_model.model", "unet"): t for key, t in tensors.items()}, file, header)
    adapter = ml.load(file, base={f"unet.{key}": value for key, value in before.items()})
    for name, layer in adapter.layers.items():
        key = f"{name.removeprefix('unet.')}.weight"
        assert relative(layer.delta_weight(), after.state_dict()[key] - before[key]) < CLOSE


def test_butterflies_of_several_stages() -> None:
    """Without its CUDA extension PEFT has one stage; the orders of more are its own, and rotations stay rotations."""
    boft = peft.tuners.boft.layer.BOFTLayer
    for count, size, stages in ((4, 2, 3), (4, 6, 2), (8, 4, 3)):
        for stage in range(stages):
            inputs = count * size
            own = boft.block_butterfly_perm(None, inputs, count // 2**stage, size // 2, stages - 1)
            assert torch.equal(_order(inputs, size, stage), own)


def test_a_butterfly_by_hand(tmp_path: Path) -> None:
    """Two stages are the product of their matrices, each between a permutation and back."""
    torch.manual_seed(0)
    blocks, factors, weight = 0.2 * torch.randn(2, 2, 4, 4), 1 + 0.1 * torch.randn(6, 1), torch.randn(6, 8)
    whole = torch.eye(8)
    for stage, own in enumerate(blocks):
        skew = 0.5 * (own - own.mT)
        rotation = torch.block_diag(*((torch.eye(4) - s) @ torch.linalg.inv(torch.eye(4) + s) for s in skew))
        order = torch.eye(8)[_order(8, 4, stage)]
        whole = order @ rotation @ order.T @ whole
    key = "base_model.model.q"
    save_file({f"{key}.boft_R": blocks, f"{key}.boft_s": factors}, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "BOFT", "boft_n_butterfly_factor": 2}')
    layer = ml.load(tmp_path, base={"q.weight": weight}).layers["model.q"]
    assert relative(layer.delta_weight(), factors * (weight @ whole.T) - weight) < CLOSE
    assert relative(whole @ whole.T, torch.eye(8)) < CLOSE
    assert torch.equal(turned(torch.eye(4).expand(2, 4, 4), weight.T), weight.T)


def changed(folder: Path, **fields: object) -> Path:
    """The folder with other fields in its config; of None without."""
    config = json.loads((folder / "adapter_config.json").read_text())
    config = {name: value for name, value in {**config, **fields}.items() if value is not None}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize(
    ("kind", "fields", "match"),
    [
        ("LoHa", {"peft_type": "LOKR"}, r"its config says LOKR, and '\S+hada_w1_a' is of LoHa"),
        ("LoHa", {"peft_type": "VERA"}, r"peft_type is 'VERA', expected 'LORA', or one of LOHA, LOKR"),
        ("LoHa", {"a_field_to_come": 3}, r"sets 'a_field_to_come' to 3, which no LOHA has"),
        ("LoHa", {"alpha": "x"}, r"alpha or alpha_pattern holds 'x'"),
        ("LoKr", {"r": math.nan}, r"r or rank_pattern holds nan"),
        ("OFT", {"num_cayley_neumann_terms": 10**9}, r"num_cayley_neumann_terms is 1000000000, expected 1 to 100"),
        ("OFT", {"coft": True, "eps": "x"}, r"eps is 'x', expected a finite number"),
        ("OFT", {"bias": "all"}, r"bias is 'all'"),
        ("OFT", {"fan_in_fan_out": True}, r"sets 'fan_in_fan_out' to True, which no OFT has"),
        ("DoRA", {"fan_in_fan_out": True}, r"stores as \(in, out\) \(fan_in_fan_out\)"),
        ("(IA)3", {"feedforward_modules": 3}, r"feedforward_modules is 3, expected names of modules"),
        ("(IA)3", {"feedforward_modules": "("}, r"feedforward_modules is '\('"),
        ("PiSSA", {"init_lora_weights": "pissa_niter_4"}, r"init_lora_weights is 'pissa_niter_4'.*save_pretrained"),
        ("PiSSA", {"use_dora": True}, r"its config says that it is a DoRA \(use_dora\)"),
    ],
)
def test_what_makes_no_sense_is_refused(kind: str, fields: dict[str, Any], match: str, tmp_path: Path) -> None:
    """By the field or the tensor, whatever else is right."""
    _, before = trained(kind, tmp_path)
    with pytest.raises(ml.MergelabError, match=match) as caught:
        ml.load(changed(tmp_path, **fields), base=before)
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize("kind", ["OFT", "(IA)3"])
def test_a_config_is_asked_for(kind: str, tmp_path: Path) -> None:
    """The tensors alone do not tell what they are the angles, or the factors, of."""
    _, before = trained(kind, tmp_path)
    with pytest.raises(ml.LayerError, match=r"whose config says .* load its folder"):
        ml.load(load_file(tmp_path / "adapter_model.safetensors"), base=before)


def test_a_feed_forward_pattern(tmp_path: Path) -> None:
    """As an expression for the whole path it is matched as PEFT does."""
    _, before = trained("(IA)3", tmp_path)
    listed = ml.load(tmp_path, base=before)
    again = ml.load(changed(tmp_path, feedforward_modules="ff|conv1"), base=before)
    for name, layer in listed.layers.items():
        assert torch.equal(layer.delta_weight(), again.layers[name].delta_weight())


def test_a_wrong_base_model(tmp_path: Path) -> None:
    """The sentence names the layer, or the shapes."""
    _, before = trained("DoRA", tmp_path)
    with pytest.raises(ml.LayerError, match=r"layer model\.\w+: the base model has no such layer"):
        ml.load(tmp_path, base={"other.weight": torch.ones(4, 4)})
    with pytest.raises(ml.LayerError, match=r"is for a weight of shape .*is the adapter for another base model"):
        ml.load(tmp_path, base={**before, "q.weight": torch.ones(4, 4)})
