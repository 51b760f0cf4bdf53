"""Merges against the golden cases: results of the published implementations, computed in float64."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import mergelab as ml
from mergelab.engine.blocks import coordinates_of, merge_layer
from mergelab.engine.job import LayerChance
from mergelab.linalg.dense import svd_dense
from mergelab.linalg.draws import EntryDraws
from mergelab.linalg.lowrank import Factors
from mergelab.methods.method import Part, Strategy
from mergelab.methods.registry import strategy_of
from mergelab.spaces import Merged, dense
from tests.conftest import SHARED

COPIES = Path(__file__).parent / "data" / "golden"
WHOLE = 10**6  # a rank above that of every layer: nothing is truncated

# Cases whose stored truncation is a known fault of the peer; their untruncated delta is checked all the same.
PEFT_FAULTS = {
    "peft_s0_svd_clamp97": "svd_clamp clips one side of a spectrum whose signs are arbitrary: no definite result",
    "peft_s0_svd_rslora_bug": "PEFT 0.21.2 stores alpha = r with use_rslora: sqrt(r) times too large (PEFT #3449)",
}
# Cases near one of ours whose published semantics is another; a prefix stands for all cases that begin with it.
OTHER_SEMANTICS = {
    "mergekit_s0_ties_": "divides by the sum of the agreeing weights, or by nothing; ours by their count",
    "mergekit_s0_dare_linear": "rescales to the same L1 norm; ours by 1 / density (_norescale is checked)",
    "mergekit_s0_dare_ties": "rescales to the same L1 norm and sums; ours by 1 / density, and averages",
    "s0_cs_knots_ties_w": "core-space's own 'knots' trims V_i without the singular values",
    "s0_knots_ties_sum": "adds what agrees; ours averages",
}


@dataclass(frozen=True)
class Golden:
    """One golden case: inputs, expected outputs and what was done, read when it is asked for."""

    path: Path

    @cached_property
    def facts(self) -> dict[str, Any]:
        return json.loads(self.path.with_suffix(".json").read_text(encoding="utf-8"))

    @cached_property
    def tensors(self) -> dict[str, Tensor]:
        return load_file(self.path)

    @property
    def name(self) -> str:
        return self.path.stem

    @property
    def weights(self) -> list[float]:
        return [float(w) for w in self.facts["weights"]]

    @property
    def hyper(self) -> dict[str, Any]:
        return self.facts["hyper"]

    @property
    def tolerance(self) -> float:
        """Largest relative Frobenius error of a float32 implementation."""
        return self.facts["tolerance"]["suggested_rel"]

    def part(self, prefix: str) -> dict[str, Tensor]:
        """The tensors under `in.0.`, `out.` or `mask.`, without that prefix."""
        return {k.removeprefix(prefix): t for k, t in self.tensors.items() if k.startswith(prefix)}

    @cached_property
    def adapters(self) -> list[ml.Adapter]:
        """The inputs as adapters, for the cases that store `lora_A` and `lora_B` under plain layer names."""
        return [self._adapter(i) for i in range(len(self.weights))]

    def _adapter(self, i: int) -> ml.Adapter:
        factors, scalings = self.part(f"in.{i}."), self.facts["scalings"][i]
        names = sorted({key.rpartition(".")[0] for key in factors})
        layers = {}
        for name in names:
            scaling = float(scalings[name] if isinstance(scalings, dict) else scalings)
            layers[f"model.{name}"] = ml.LoraLayer(factors[f"{name}.lora_A"], factors[f"{name}.lora_B"], scaling)
        return ml.Adapter(layers)

    def check(self, found: dict[str, Tensor], suffix: str = "delta", tolerance: float | None = None) -> None:
        """Compare every layer with `out.<layer>.<suffix>`; `found` is by layer name and must have all of them."""
        wanted = {k.rpartition(".")[0]: t for k, t in self.part("out.").items() if k.rpartition(".")[2] == suffix}
        assert set(found) == set(wanted)
        assert wanted
        for layer, expected in wanted.items():
            error = relative(found[layer], expected)
            assert error <= (self.tolerance if tolerance is None else tolerance), f"{layer}.{suffix}: {error:.2e}"


def relative(found: Tensor, expected: Tensor) -> float:
    assert found.numel() == expected.numel()
    difference = found.double().reshape(expected.shape) - expected.double()
    return float(torch.linalg.norm(difference) / torch.linalg.norm(expected.double()))


def deltas(adapter: ml.Adapter) -> dict[str, Tensor]:
    """Delta weights by the golden case's layer names."""
    return {name.removeprefix("model."): layer.delta_weight() for name, layer in adapter.layers.items()}


def find(*patterns: str) -> list[Any]:
    """One parameter for each golden case of these patterns: the copies always, the others where they are."""
    folders = (COPIES, SHARED / "golden")
    found = {
        path.stem: path for folder in reversed(folders) for p in patterns for path in folder.glob(f"{p}.safetensors")
    }
    return [pytest.param(Golden(path), id=name) for name, path in sorted(found.items()) if not other_semantics(name)]


def other_semantics(name: str) -> bool:
    return not name.endswith("_norescale") and any(name.startswith(prefix) for prefix in OTHER_SEMANTICS)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny matrices are fastest on one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


# PEFT.


def peft_strategy(case: Golden) -> tuple[str, dict[str, Any]]:
    """The method and the options that a case of PEFT asks for."""
    kind = case.hyper["combination_type"]
    method = kind.removesuffix("_svd")
    options: dict[str, Any] = {}
    if "density" in case.hyper:
        options["density"] = float(case.hyper["density"])
    if "majority_sign_method" in case.hyper:
        options["majority_sign"] = case.hyper["majority_sign_method"]
    if kind.endswith("ties_svd"):
        options["variant"] = "peft"
    elif not kind.endswith("svd") and kind != "cat":
        options["space"] = "factors"
    return method, options


@pytest.mark.parametrize("case", find("peft_*"))
def test_peft(case: Golden) -> None:
    """Each combination type gives PEFT's delta before and after its truncation, and in space="factors" its factors."""
    method, options = peft_strategy(case)
    rank = case.facts["output"]["rank"]
    tolerance = None
    if case.name in PEFT_FAULTS:
        # The suggestion is for the truncated result; for the other one it is formed as the README says.
        tolerance = max(2e-6, 4 * case.facts["tolerance"]["delta_fp32_vs_fp64"]["rel_fro_max"])
    if "dare" in method:
        strategy = strategy_of(method, options)
        found = {name: masked_merge(case, strategy, name) for name in case.facts["layers"]}
        case.check({name: dense(m) for name, m in found.items()}, tolerance=tolerance)
        truncated = {name: cut(m, rank) for name, m in found.items() if isinstance(m, Tensor)}
    elif method == "cat":
        whole = ml.merge(case.adapters, case.weights, "cat")
        case.check(deltas(whole), tolerance=tolerance)
        return
    else:
        whole = ml.merge(case.adapters, case.weights, method, rank=WHOLE, **options)
        case.check(deltas(whole), tolerance=tolerance)
        truncated = {}
        if case.facts["output"]["truncated"]:
            truncated = deltas(ml.merge(case.adapters, case.weights, method, rank=rank, **options))
        if options.get("space") == "factors":
            check_factors(case, whole)
    if case.facts["output"]["truncated"] and case.name not in PEFT_FAULTS:
        case.check(truncated, f"delta_rank{rank}")


def check_factors(case: Golden, merged: ml.Adapter) -> None:
    for label in ("lora_A", "lora_B"):
        factors = {n.removeprefix("model."): getattr(layer, label) for n, layer in merged.layers.items()}
        case.check(factors, label)


class Mask(EntryDraws):
    """A stored mask in the place of draws."""

    def __init__(self, mask: Tensor) -> None:
        super().__init__(0)
        self.__dict__["mask"] = mask

    def keep_(self, x: Tensor, probability: float, rows: slice) -> Tensor:
        """Rows of the mask."""
        return x.mul_(self.__dict__["mask"][rows])


class Stored(LayerChance):
    """Stored masks in the place of the draws of a layer."""

    def __init__(self, masks: list[Tensor]) -> None:
        super().__init__(0, "")
        self.__dict__["masks"] = masks

    def draws(self, place: int) -> EntryDraws:
        """The mask of one part."""
        return Mask(self.__dict__["masks"][place])


def masked_merge(case: Golden, strategy: Strategy, layer: str) -> Merged:
    """One layer of a random merge with the masks that are stored."""
    density = strategy.density  # type: ignore[attr-defined]
    stored = case.part("mask.")
    parts = []
    for i, adapter in enumerate(case.adapters):
        if f"model.{layer}" in adapter.layers:
            x = adapter.layers[f"model.{layer}"]
            in_factors = strategy.acts_in.acts_on_factors
            up = x.lora_B.flatten(1)
            change = Factors(up if in_factors else up * x.scaling, x.lora_A.flatten(1))
            parts.append(Part(change, case.weights[i] * (x.scaling if in_factors else 1.0), i))
    if not strategy.acts_in.acts_on_factors:
        masks = [stored[f"{part.adapter}.{layer}.delta"].flatten(1) for part in parts]
        return merge_layer(strategy, parts, Stored(masks))
    method: Any = strategy
    coordinates = coordinates_of(method, parts)
    results = []
    for stacked, label in zip(coordinates.stacks, ("lora_A", "lora_B")):
        masks = [stored[f"{part.adapter}.{layer}.{label}"].flatten(1) for part in parts]
        masked = torch.stack([x * mask / density for x, mask in zip(stacked.matrices, masks)])  # type: ignore[operator]
        results.append(method.rule(masked, torch.tensor(stacked.weights)))
    return coordinates.restore(results)


def cut(matrix: Tensor, rank: int) -> Tensor:
    return svd_dense(matrix, rank).factors().delta()


@pytest.mark.parametrize("case", find("peft_*_same_adapter_twice"))
def test_peft_same_adapter_twice_is_not_the_sum(case: Golden) -> None:
    """PEFT's `linear` at (0.5, 0.5) doubles an adapter; ours, in space="delta", gives it back."""
    single = deltas(case.adapters[0])
    if case.hyper["combination_type"] == "linear":
        case.check({name: 2 * delta for name, delta in single.items()})
    halves = ml.merge(case.adapters, [0.5, 0.5], "linear")
    for name, delta in deltas(halves).items():
        assert relative(delta, single[name]) <= case.tolerance


# mergekit, on dense changes.


@pytest.mark.parametrize("case", find("mergekit_s0_task_arithmetic*", "mergekit_s0_linear*"))
@pytest.mark.parametrize("space", ["delta", "core", "knots"])
def test_mergekit_weighted_sum(case: Golden, space: str) -> None:
    """The weighted sum, with mergekit's lambda and normalisation in the weights, is the same in every space."""
    total = sum(case.weights) if case.hyper["normalize"] else 1.0
    weights = [w * case.hyper.get("lam", 1.0) / total for w in case.weights]
    case.check(deltas(ml.merge(case.adapters, weights, "linear", space=space, rank=WHOLE)))


@pytest.mark.parametrize("case", find("mergekit_s0_dare_linear_norescale"))
def test_mergekit_dare_without_rescale(case: Golden) -> None:
    """Ours divides by the density; without that, and with mergekit's masks, it is mergekit's."""
    density = float(case.hyper["density"])
    strategy = strategy_of("dare", {"density": density})
    case.check({name: dense(masked_merge(case, strategy, name)) * density for name in case.facts["layers"]})


# The published spaces: core, knots, and whole-model TIES.


def official_density(top_k_percent: float, entries: int) -> float:
    """The density at which floor(density * n) is the int(K n) + 1 entries that the official code keeps."""
    return (int(top_k_percent / 100 * entries) + 1.5) / entries


def entries(case: Golden, space: str, *names: str) -> int:
    """How many entries the trimmed vector of one adapter has, over these layers (all, if none is named)."""
    count = 0
    for name in names or case.adapters[0].layers:
        out, *columns = case.adapters[0].layers[name].shape
        ranks = sum(a.layers[name].rank for a in case.adapters)
        count += {"delta": out * math.prod(columns), "core": ranks**2, "knots": ranks * math.prod(columns)}[space]
    return count


def ties_per_layer(case: Golden, space: str, top_k: float, **options: Any) -> dict[str, Tensor]:
    """TIES with the official number of entries kept; layer by layer, as that number is another for each."""
    found: dict[str, Tensor] = {}
    for name in case.adapters[0].layers:
        alone = [a.select(name) for a in case.adapters]
        density = official_density(top_k, entries(case, space, name))
        found |= deltas(ml.merge(alone, case.weights, "ties", space=space, density=density, rank=WHOLE, **options))
    return found


def ties_whole_model(case: Golden, space: str) -> dict[str, Tensor]:
    """TIES with the trim over all layers of an adapter together, as in the paper."""
    density = official_density(case.hyper["topK_percent"], entries(case, space))
    lam = float(case.hyper["lambda_"])
    merged = ml.merge(
        case.adapters, case.weights, "ties", space=space, scope="adapter", density=density, lam=lam, rank=WHOLE
    )
    return deltas(merged)


@pytest.mark.parametrize("case", find("s0_cs_*_ta_w", "s0_cs_*_ta_neg", "s0_knots_tv_sum"))
@pytest.mark.parametrize("space", ["delta", "core", "knots"])
def test_published_sums(case: Golden, space: str) -> None:
    """The sum of KnOTS and of Core Space is the weighted sum, in whichever space ours is taken."""
    weights = [w * float(case.hyper["lambda_"]) for w in case.weights]
    case.check(deltas(ml.merge(case.adapters, weights, "linear", space=space, rank=WHOLE)))


@pytest.mark.parametrize("case", find("s0_cs_core_ties_w", "s0_cs_core_ties_neg"))
def test_core_space_ties(case: Golden) -> None:
    """space="core", basis="factors" is the official Core Space TIES."""
    lam = float(case.hyper["lambda_"])
    case.check(ties_per_layer(case, "core", case.hyper["topK"], basis="factors", lam=lam))


@pytest.mark.parametrize("case", find("s0_cs_full_ties_*"))
def test_dense_ties_per_layer(case: Golden) -> None:
    """space="delta" is Core Space's "full" TIES."""
    case.check(ties_per_layer(case, "delta", case.hyper["topK"], lam=float(case.hyper["lambda_"])))


@pytest.mark.parametrize("case", find("s0_knots_ties_*"))
def test_knots_ties(case: Golden) -> None:
    """space="knots" is the official KnOTS-TIES, with the trim over the whole model and layer by layer."""
    if case.hyper["scope"] == "whole model":
        found = ties_whole_model(case, "knots")
    else:
        lam = float(case.hyper["lambda_"])
        found = ties_per_layer(case, "knots", case.hyper["topK_percent"], lam=lam)
    case.check(found)


@pytest.mark.parametrize("case", find("s0_ties_official_*"))
def test_official_ties(case: Golden) -> None:
    """scope="adapter" is the official TIES of the paper, which trims a whole model at once."""
    case.check(ties_whole_model(case, "delta"))


# Completeness.

# Files (test_golden_files.py), and methods that are none of these.
METHODS_ELSEWHERE = (
    *("comfy_", "flux_", "lycoris_", "kohya_"),
    *(f"mergekit_s0_{name}" for name in ("arcee", "breadcrumbs", "della", "karcher", "model_stock", "multislerp")),
    *(f"mergekit_s0_{name}" for name in ("nearswap", "nuslerp", "ram", "sce", "slerp")),
    *(f"s0_{name}_" for name in ("iso", "tsvm", "lego", "robustmerge")),
    *(f"s0_cs_{name}" for name in ("core_cart", "core_tsv", "core_ta_iso", "core_ties_iso", "full_cart")),
)


def test_every_case_of_these_methods_is_checked(shared: Path) -> None:
    """No golden case of linear, cat, svd, ties, dare or magnitude_prune is left out without a reason above."""
    marks = [m for f in list(globals().values()) for m in getattr(f, "pytestmark", []) if m.name == "parametrize"]
    checked = {p.id for m in marks if m.args[0] == "case" for p in m.args[1]}
    there = {path.stem for path in (shared / "golden").glob("*.safetensors")}
    left = {name for name in there if not name.startswith(METHODS_ELSEWHERE) and not other_semantics(name)}
    assert left == checked


def test_copies_are_the_golden_cases(shared: Path) -> None:
    """The copies in this repository are the files of the full set, byte for byte."""
    copies = list(COPIES.iterdir())
    assert copies
    for copy in copies:
        assert copy.read_bytes() == (shared / "golden" / copy.name).read_bytes(), copy.name
