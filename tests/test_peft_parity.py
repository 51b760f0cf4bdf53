"""The eleven combination types of the installed PEFT, reproduced from the same adapters."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, get_args, get_type_hints

import peft
import pytest
import torch
from peft.tuners.lora import LoraModel
from torch import Tensor, nn

import mergelab as ml
from mergelab.engine.blocks import merge_layer
from mergelab.engine.job import LayerChance
from mergelab.linalg.dense import svd_dense
from mergelab.linalg.draws import EntryDraws
from mergelab.linalg.lowrank import Factors
from mergelab.methods.method import Part
from mergelab.methods.registry import strategy_of

ALPHAS = (8, 12, 4)
EQUAL_RANKS = (8, 8, 8)
MIXED_RANKS = (8, 4, 12)
WEIGHTS = {"positive": (0.8, 0.5, 0.6), "negative": (1.0, -0.45, 0.7)}
DENSITIES = (0.3, 0.5, 0.8)
SIGNS = ("total", "frequency")
SVD_RANK = 6
# Of some hundred seeds the best conditioned: no two singular values at a cut are so close that rounding mixes them.
SEED = 386

# PEFT's combination type -> mergelab's method, and the options that are not defaults.
FACTORS: dict[str, tuple[str, dict[str, Any]]] = {
    "linear": ("linear", {}),
    "ties": ("ties", {}),
    "magnitude_prune": ("magnitude_prune", {}),
    "dare_linear": ("dare_linear", {}),
    "dare_ties": ("dare_ties", {}),
}
DELTAS: dict[str, tuple[str, dict[str, Any]]] = {
    "svd": ("svd", {}),
    "ties_svd": ("ties", {"variant": "peft"}),
    "magnitude_prune_svd": ("magnitude_prune", {}),
    "dare_linear_svd": ("dare_linear", {}),
    "dare_ties_svd": ("dare_ties", {"variant": "peft"}),
}


def settings(*types: str) -> list[tuple[str, dict[str, Any]]]:
    """Each combination type with every density and majority sign that it takes, as PEFT's keywords."""
    rows: list[tuple[str, dict[str, Any]]] = []
    for name in types:
        for density in (None,) if name in ("linear", "svd") else DENSITIES:
            for sign in SIGNS if "ties" in name else (None,):
                keywords = {"density": density, "majority_sign_method": sign}
                rows.append((name, {key: value for key, value in keywords.items() if value is not None}))
    return rows


def setting_id(value: object) -> str | None:
    return "-".join(str(v) for v in value.values()) or "plain" if isinstance(value, dict) else None


class Net(nn.Module):
    """Every kind of layer that a LoRA of a diffusion model changes."""

    def __init__(self) -> None:
        super().__init__()
        self.lin_a = nn.Linear(28, 36)
        self.block = nn.Sequential(nn.Linear(44, 28))
        self.conv3 = nn.Conv2d(8, 12, 3)
        self.conv1 = nn.Conv2d(12, 16, 1)


PATHS = ("lin_a", "block.0", "conv3", "conv1")


@pytest.fixture(autouse=True)
def own_randomness() -> Iterator[None]:
    """PEFT draws from the global generator: leave it as it was. Tiny matrices are fastest on one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        yield
    torch.set_num_threads(threads)


def injected(ranks: tuple[int, ...]) -> peft.PeftModel:
    """A model with one LoRA adapter for each rank, named "0", "1", ..., random in both factors."""
    model: Any = Net()
    for i, (rank, alpha) in enumerate(zip(ranks, ALPHAS)):
        config = peft.LoraConfig(r=rank, lora_alpha=alpha, target_modules=list(PATHS))
        if i == 0:
            model = peft.get_peft_model(model, config, adapter_name="0")
        else:
            model.add_adapter(str(i), config)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = torch.randn(parameter.shape)
    return model


def layer_of(model: peft.PeftModel, adapter: str, path: str) -> ml.LoraLayer:
    """The factors of one adapter in one module of a PEFT model."""
    module: Any = model.get_submodule(f"base_model.model.{path}")
    lora_a, lora_b = module.lora_A[adapter].weight.detach(), module.lora_B[adapter].weight.detach()
    return ml.LoraLayer(lora_a.clone(), lora_b.clone(), float(module.scaling[adapter]))


def adapters_of(model: peft.PeftModel, count: int) -> list[ml.Adapter]:
    return [ml.Adapter({f"model.{path}": layer_of(model, str(i), path) for path in PATHS}) for i in range(count)]


def merged_by_peft(
    model: peft.PeftModel, weights: tuple[float, ...], combination_type: str, **keywords: Any
) -> dict[str, ml.LoraLayer]:
    """What `add_weighted_adapter` makes of the adapters "0", "1", ..., by module path."""
    names = [str(i) for i in range(len(weights))]
    target: Any = model
    target.add_weighted_adapter(names, list(weights), "merged", combination_type=combination_type, **keywords)
    return {path: layer_of(model, "merged", path) for path in PATHS}


def options(own: dict[str, Any], keywords: dict[str, Any]) -> dict[str, Any]:
    """PEFT's keywords under mergelab's names, with a method's own options."""
    names = {"majority_sign_method": "majority_sign"}
    return {**own, **{names.get(key, key): value for key, value in keywords.items()}}


def relative(found: Tensor, expected: Tensor) -> float:
    found, expected = found.double().flatten(1), expected.double().flatten(1)
    return float(torch.linalg.norm(found - expected) / torch.linalg.norm(expected))


def test_every_combination_type_of_peft_is_in_the_tables() -> None:
    """The installed PEFT has no combination type that is not reproduced here."""
    hint = get_type_hints(LoraModel.add_weighted_adapter)["combination_type"]
    assert set(get_args(hint)) == {"cat", *FACTORS, *DELTAS}


@pytest.mark.parametrize("weights", WEIGHTS.values(), ids=WEIGHTS)
@pytest.mark.parametrize(("name", "keywords"), settings("linear", "ties", "magnitude_prune"), ids=setting_id)
def test_factor_family_is_bit_identical(name: str, keywords: dict[str, Any], weights: tuple[float, ...]) -> None:
    """space="factors" gives PEFT's lora_A and lora_B to the last bit."""
    model = injected(EQUAL_RANKS)
    adapters = adapters_of(model, 3)
    expected = merged_by_peft(model, weights, name, **keywords)
    method, own = FACTORS[name]
    found = ml.merge(adapters, list(weights), method, space="factors", **options(own, keywords))
    for path, layer in expected.items():
        ours = found.layers[f"model.{path}"]
        assert torch.equal(ours.lora_A, layer.lora_A), path
        assert torch.equal(ours.lora_B, layer.lora_B), path
        assert ours.scaling == layer.scaling == 1.0


@pytest.mark.parametrize("weights", WEIGHTS.values(), ids=WEIGHTS)
def test_cat_is_the_same_change(weights: tuple[float, ...]) -> None:
    """`cat` has PEFT's rank and its delta weight (PEFT puts weight and scaling into lora_A, mergelab into lora_B)."""
    model = injected(MIXED_RANKS)
    adapters = adapters_of(model, 3)
    expected = merged_by_peft(model, weights, "cat")
    found = ml.merge(adapters, list(weights), "cat")
    for path, layer in expected.items():
        ours = found.layers[f"model.{path}"]
        assert ours.rank == layer.rank == sum(MIXED_RANKS)
        assert relative(ours.delta_weight(), layer.delta_weight()) < 1e-6, path


@pytest.mark.parametrize("svd_rank", [None, SVD_RANK])
@pytest.mark.parametrize("weights", WEIGHTS.values(), ids=WEIGHTS)
@pytest.mark.parametrize(("name", "keywords"), settings("svd", "ties_svd", "magnitude_prune_svd"), ids=setting_id)
def test_svd_family_is_the_same_change(
    name: str, keywords: dict[str, Any], weights: tuple[float, ...], svd_rank: int | None
) -> None:
    """space="delta" truncated to PEFT's rank is PEFT's `*_svd`, with mixed ranks and negative weights."""
    model = injected(MIXED_RANKS)
    adapters = adapters_of(model, 3)
    expected = merged_by_peft(model, weights, name, svd_rank=svd_rank, **keywords)
    method, own = DELTAS[name]
    found = ml.merge(adapters, list(weights), method, rank=svd_rank or "max", **options(own, keywords))
    for path, layer in expected.items():
        ours = found.layers[f"model.{path}"]
        assert ours.rank == layer.rank
        assert relative(ours.delta_weight(), layer.delta_weight()) < 1e-5, path


def peft_with_draws(
    model: peft.PeftModel, weights: tuple[float, ...], name: str, svd_rank: int | None, keywords: dict[str, Any]
) -> tuple[dict[str, ml.LoraLayer], torch.Generator]:
    """PEFT's random merge, and a generator in the state in which PEFT drew its first mask.

    Creating the new adapter draws its initial values first; a merge without masks, of the same rank and from the same
    seed, leaves the global generator just behind them.
    """
    target: Any = model
    rehearsal = "svd" if name.endswith("svd") else "linear"
    torch.manual_seed(SEED)
    names = [str(i) for i in range(len(weights))]
    target.add_weighted_adapter(names, list(weights), "rehearsal", combination_type=rehearsal, svd_rank=svd_rank)
    generator = torch.Generator()
    generator.set_state(torch.get_rng_state())
    torch.manual_seed(SEED)
    return merged_by_peft(model, weights, name, svd_rank=svd_rank, **keywords), generator


class PeftDraws(EntryDraws):
    """Masks drawn from one generator, one after the other, as PEFT draws them; the layers here are one block."""

    def keep_(self, x: Tensor, probability: float, rows: slice) -> Tensor:
        """The next mask."""
        return x.mul_(torch.bernoulli(torch.full(x.shape, probability), generator=self.__dict__["generator"]))


class PeftChance(LayerChance):
    """One generator for all parts of a layer."""

    def __init__(self, generator: torch.Generator) -> None:
        super().__init__(0, "")
        self.__dict__["one"] = generator

    def generator(self, place: int) -> torch.Generator:
        """The one."""
        return self.__dict__["one"]

    def draws(self, place: int) -> EntryDraws:
        """From the one."""
        draws = PeftDraws(0)
        draws.__dict__["generator"] = self.__dict__["one"]
        return draws


@pytest.mark.parametrize("weights", WEIGHTS.values(), ids=WEIGHTS)
@pytest.mark.parametrize(("name", "keywords"), settings("dare_linear", "dare_ties"), ids=setting_id)
def test_random_factor_family_is_bit_identical(name: str, keywords: dict[str, Any], weights: tuple[float, ...]) -> None:
    """From the same draws, `dare_linear` and `dare_ties` in space="factors" are PEFT's to the last bit."""
    model = injected(EQUAL_RANKS)
    adapters = adapters_of(model, 3)
    expected, generator = peft_with_draws(model, weights, name, None, keywords)
    method, own = FACTORS[name]
    strategy = strategy_of(method, {"space": "factors", **options(own, keywords)})
    chance = PeftChance(generator)
    for path, layer in expected.items():
        layers = [a.layers[f"model.{path}"] for a in adapters]
        changes = [Factors(x.lora_B.flatten(1), x.lora_A.flatten(1)) for x in layers]
        parts = [Part(c, w * x.scaling, i) for i, (c, w, x) in enumerate(zip(changes, weights, layers))]
        merged = merge_layer(strategy, parts, chance)
        assert isinstance(merged, Factors)
        assert torch.equal(merged.A.reshape(layer.lora_A.shape), layer.lora_A), path
        assert torch.equal(merged.B.reshape(layer.lora_B.shape), layer.lora_B), path


@pytest.mark.parametrize("weights", WEIGHTS.values(), ids=WEIGHTS)
@pytest.mark.parametrize(("name", "keywords"), settings("dare_linear_svd", "dare_ties_svd"), ids=setting_id)
def test_random_svd_family_is_the_same_change(name: str, keywords: dict[str, Any], weights: tuple[float, ...]) -> None:
    """From the same draws, `dare_linear` and `dare_ties` in space="delta" are PEFT's `dare_*_svd`."""
    model = injected(MIXED_RANKS)
    adapters = adapters_of(model, 3)
    expected, generator = peft_with_draws(model, weights, name, SVD_RANK, keywords)
    method, own = DELTAS[name]
    strategy = strategy_of(method, options(own, keywords))
    chance = PeftChance(generator)
    for path, layer in expected.items():
        layers = [a.layers[f"model.{path}"] for a in adapters]
        changes = [Factors(x.lora_B.flatten(1) * x.scaling, x.lora_A.flatten(1)) for x in layers]
        parts = [Part(c, w, i) for i, (c, w) in enumerate(zip(changes, weights))]
        matrix = merge_layer(strategy, parts, chance)
        assert isinstance(matrix, Tensor)
        found = svd_dense(matrix, SVD_RANK).factors().delta()
        assert relative(found, layer.delta_weight()) < 1e-5, path


@pytest.mark.parametrize("weights", WEIGHTS.values(), ids=WEIGHTS)
def test_a_merge_of_factors_is_not_the_merge_of_the_changes(weights: tuple[float, ...]) -> None:
    """PEFT's `linear` is about as far from the weighted sum as the sum is long; space="delta" is that sum."""
    model = injected(EQUAL_RANKS)
    adapters = adapters_of(model, 3)
    from_peft = merged_by_peft(model, weights, "linear")
    exact = ml.merge(adapters, list(weights), "linear", space="delta", rank="sum")
    factors = ml.merge(adapters, list(weights), "linear", space="factors")
    for path in PATHS:
        name = f"model.{path}"
        layers = [a.layers[name] for a in adapters]
        products = [
            torch.tensordot(x.lora_B.double().flatten(1), x.lora_A.double(), dims=1) * w * x.scaling
            for w, x in zip(weights, layers)
        ]
        truth = torch.stack(products).sum(dim=0)
        assert 0.5 < relative(from_peft[path].delta_weight(), truth) < 1.5
        assert 0.5 < relative(factors.layers[name].delta_weight(), truth) < 1.5
        assert relative(exact.layers[name].delta_weight(), truth) < 1e-6
