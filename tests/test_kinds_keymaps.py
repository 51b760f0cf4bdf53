"""Key by key: layouts of real files of other kinds than LoRA, at their size."""

from __future__ import annotations

import math
from collections import defaultdict

import pytest
import torch
from torch import Tensor

import mergelab as ml
from tests.keymaps import keymaps
from tests.test_golden import relative
from tests.test_keymaps import OTHER_KINDS

Leaves = dict[str, Tensor]
DORA = [name for name in OTHER_KINDS if "dora" in name or name.startswith("larsupb")]


def synthetic(name: str) -> dict[str, Tensor]:
    """Tensors of a file's shapes, views of one pool of numbers, and alphas of 3."""
    pool = torch.randn(1 << 20, generator=torch.Generator().manual_seed(0))
    tensors = {}
    for i, (key, shape) in enumerate(keymaps()[name].shapes.items()):
        start = 997 * i % (1 << 16)
        tensors[key] = pool[start : start + math.prod(shape)].reshape(shape) if shape else torch.tensor(3.0)
    return tensors


def modules_of(tensors: dict[str, Tensor]) -> dict[str, Leaves]:
    modules: dict[str, Leaves] = defaultdict(dict)
    for key, tensor in tensors.items():
        module, _, leaf = key.partition(".")
        modules[module][leaf] = tensor
    return modules


def product(leaves: Leaves) -> Tensor:
    """The change of a module of LoHa or LoKr as LyCORIS' papers have it, dense, in float64."""
    t = {leaf: tensor.double() for leaf, tensor in leaves.items()}
    if "hada_w1_a" in t:
        halves = [
            torch.einsum("ijhw,ip,jq->pqhw", t[f"hada_t{i}"], t[f"hada_w{i}_a"], t[f"hada_w{i}_b"])
            if f"hada_t{i}" in t
            else t[f"hada_w{i}_a"] @ t[f"hada_w{i}_b"]
            for i in (1, 2)
        ]
        return float(t["alpha"]) / len(t["hada_w1_b"]) * halves[0] * halves[1]
    first = t["lokr_w1"] if "lokr_w1" in t else t["lokr_w1_a"] @ t["lokr_w1_b"]
    if "lokr_t2" in t:
        second = torch.einsum("ijhw,ip,jq->pqhw", t["lokr_t2"], t["lokr_w2_a"], t["lokr_w2_b"])
        first = first[:, :, None, None]
    else:
        second = t["lokr_w2"] if "lokr_w2" in t else t["lokr_w2_a"] @ t["lokr_w2_b"]
    dim = len(t["lokr_w2_b"]) if "lokr_w2_b" in t else 1
    scaling = float(t["alpha"]) / dim if "lokr_w2_b" in t else 1.0
    return scaling * torch.kron(first, second.contiguous())


def most(leaves: Leaves) -> int:
    """The most that the rank of a change can be."""
    if "hada_w1_a" in leaves:
        return len(leaves["hada_w1_b"]) * len(leaves["hada_w2_b"])
    return min(leaves["lokr_w1"].shape) * (
        len(leaves["lokr_w2_b"]) if "lokr_w2_b" in leaves else min(leaves["lokr_w2"].shape)
    )


@pytest.mark.parametrize("name", [name for name in OTHER_KINDS if name not in DORA])
def test_loha_and_lokr(name: str) -> None:
    """Every module is a layer of the base model's, of a module's shape there and of the rank that its tensors have."""
    tensors = synthetic(name)
    adapter, modules = ml.load(tensors), modules_of(tensors)
    assert adapter.architecture == OTHER_KINDS[name] and not adapter.extras
    assert len(adapter.layers) == len(modules)
    assert len(adapter.report.notes) == 1 and f"{len(modules)} layers of kind Lo" in adapter.report.notes[0]
    kinds = defaultdict(list)
    for leaves, (canonical, layer) in zip(modules.values(), adapter.layers.items(), strict=True):
        outputs, inputs = layer.shape[0], math.prod(layer.shape[1:])
        assert layer.rank == min(most(leaves), outputs, inputs), canonical
        kinds[len(layer.shape), layer.shape[2:], "t" in "".join(sorted(leaves)), outputs].append((leaves, layer))
    assert {(3, 3), (1, 1), ()} >= {taps for _, taps, _, _ in kinds} >= {()}
    chosen = {key[:3]: found[0] for key, found in sorted(kinds.items(), key=lambda item: -item[0][3])}
    for leaves, layer in chosen.values():
        assert relative(layer.delta_weight(), product(leaves)) < 1e-5


@pytest.mark.parametrize("name", DORA)
def test_dora(name: str) -> None:
    """Without the base model a sentence says what is wanted; with it the rows or columns get their norms."""
    tensors = synthetic(name)
    with pytest.raises(ml.FormatError, match=r"DoRA \(\d+ layers, .*base=") as caught:
        ml.load(tensors)
    assert any(key in str(caught.value) for key in tensors)
    inner = ml.load({key: tensor for key, tensor in tensors.items() if not key.endswith(".dora_scale")})
    base = {f"{key}.weight": torch.zeros(1).expand(layer.shape) for key, layer in inner.layers.items()}
    small = min(inner.layers, key=lambda key: math.prod(inner.layers[key].shape))
    weight = base[f"{small}.weight"] = torch.randn(inner.layers[small].shape)
    adapter = ml.load(tensors, base=base)
    assert adapter.architecture == inner.architecture == OTHER_KINDS[name]
    assert {key: x.shape for key, x in adapter.layers.items()} == {key: x.shape for key, x in inner.layers.items()}
    index = list(inner.layers).index(small)
    scale = list(modules_of(tensors).values())[index]["dora_scale"].double()
    moved = weight.double() + inner.layers[small].delta_weight().double()
    kept = scale.shape.index(max(scale.shape))
    norm = torch.linalg.vector_norm(moved, dim=tuple(d for d in range(moved.dim()) if d != kept), keepdim=True)
    expected = moved / norm * scale.reshape(norm.shape) - weight.double()
    assert relative(adapter.layers[small].delta_weight(), expected) < 1e-5


def test_flat_convolutions_unfold_under_original_names() -> None:
    """LyCORIS writes 3 x 3 kernels flat: a LoKr in sgm names meets a LoCon of the same layer."""
    torch.manual_seed(0)
    name = "lora_unet_input_blocks_1_0_in_layers_2"
    lokr = {"lokr_w1": torch.randn(4, 4), "lokr_w2_a": torch.randn(80, 2), "lokr_w2_b": torch.randn(2, 80 * 9)}
    loha = {"hada_w1_a": torch.randn(320, 2), "hada_w1_b": torch.randn(2, 2880)}
    loha |= {key.replace("w1", "w2"): tensor for key, tensor in loha.items()}
    locon = {"lora_down.weight": torch.randn(2, 320, 3, 3), "lora_up.weight": torch.randn(320, 2, 1, 1)}
    adapters = [ml.load({f"{name}.{key}": tensor for key, tensor in part.items()}) for part in (lokr, loha, locon)]
    assert [layer.shape for adapter in adapters for layer in adapter.layers.values()] == [(320, 320, 3, 3)] * 3
    (merged,) = ml.merge(adapters, method="linear", rank=4).layers.values()
    assert merged.shape == (320, 320, 3, 3)
    whole = torch.kron(lokr["lokr_w1"], lokr["lokr_w2_a"] @ lokr["lokr_w2_b"]).reshape(320, 320, 3, 3)
    torch.testing.assert_close(next(iter(adapters[0].layers.values())).delta_weight(), whole, atol=1e-4, rtol=1e-4)
