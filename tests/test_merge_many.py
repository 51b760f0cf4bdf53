"""Several recipes for the same adapters: the bytes of their own merges, for less work."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from pandas.testing import assert_frame_equal
from torch import Tensor

import mergelab as ml
from mergelab.engine import batches, layers, storing, thresholds
from mergelab.formats import files
from mergelab.layer import BIAS_SUFFIX
from mergelab.linalg import span
from mergelab.linalg.lowrank import Factors, stack
from mergelab.methods.method import Part
from mergelab.methods.registry import METHODS, options_of
from mergelab.methods.sparsify import Sparsifier, Thresholds, Trim
from mergelab.spaces import SPACES
from tests.synthetic import SHAPES, adapter

LARGER = {**SHAPES, "unet.up_blocks.2.attentions.0.proj_in": (270, 300)}
HALF = {"*": 0.5, "unet.mid_block.*": -1.0}


def given() -> list[ml.Adapter]:
    """Three of unequal ranks and layers, with biases; the last is the first once more."""
    first, second = adapter(1, rank=5, shapes=LARGER), adapter(2, rank=[3, 4, 2, 1], scaling=0.5)
    name = next(iter(SHAPES))
    extras = {name + BIAS_SUFFIX: torch.linspace(-1, 1, SHAPES[name][0])}
    first, second = replace(first, extras=extras), replace(second, extras={key: x**2 for key, x in extras.items()})
    return [first, second, first]


def check(loras: Any, recipes: list[dict[str, Any]], **settings: Any) -> list[ml.Adapter]:
    """Every result is that of its own merge: tensors bit for bit, header, report."""
    found = ml.merge_many(loras, recipes, **settings)
    assert len(found) == len(recipes)
    for merged, recipe in zip(found, recipes):
        alone = ml.merge(loras, **recipe, **settings)
        assert list(merged.layers) == list(alone.layers), recipe
        for name, layer in alone.layers.items():
            assert torch.equal(layer.lora_A, merged.layers[name].lora_A), (recipe, name)
            assert torch.equal(layer.lora_B, merged.layers[name].lora_B), (recipe, name)
        assert merged.extras.keys() == alone.extras.keys()
        assert all(torch.equal(x, merged.extras[key]) for key, x in alone.extras.items())
        assert (merged.metadata, merged.source) == (alone.metadata, alone.source)
        # The numbers of a report are sums over several layers at once, whose last bit is the processor's.
        assert_frame_equal(merged.report.to_frame(), alone.report.to_frame(), rtol=1e-9)
    return found


def test_every_method_and_space_in_one_sweep() -> None:
    """At two ranks, with and without weights of zero and weights by layer."""
    recipes = []
    for name, method in METHODS.items():
        for space in method.spaces:
            for basis in SPACES[space].bases:
                own = {"method": name, "space": space, "basis": basis}
                recipes += [own, {**own, "weights": [0.7, 0.0, HALF]}]
                recipes += [] if method.stores_factors else [{**own, "rank": 2}]
    check(given(), recipes)


def test_ranks_of_every_kind() -> None:
    """Of merges that differ in the rank alone, where the factors, a small core or a dense matrix is cut."""
    ranks: list[Any] = [1, 2, 40, 1000, "max", "sum", 0.5, 0.95, "mean=2", ml.RankBudget(mean=2, max=3)]
    kinds: list[dict[str, Any]] = [{"method": "svd"}, {"method": "ties"}, {"method": "ties", "space": "core"}]
    check(given(), [{**kind, "rank": rank} for rank in ranks for kind in kinds])


def test_densities_weights_seeds_variants_and_scopes() -> None:
    """All that a threshold or a draw depends on; the same recipe twice."""
    densities = [{"method": "ties", "density": d, "weights": w} for d in (0.1, 0.5, 1.0) for w in (None, [1, 0.5, 1])]
    scoped = [{**recipe, "scope": "adapter"} for recipe in densities]
    peft = [{**recipe, "variant": "peft"} for recipe in densities + scoped]
    core = [{**recipe, "space": "core", "rank": 3} for recipe in scoped]
    drawn = [{"method": m, "seed": seed} for m in ("dare", "dare_ties") for seed in (0, 1, 1)]
    check(given(), [*densities, *scoped, *peft, *core, *drawn])


def test_equal_changes_at_unequal_weights() -> None:
    """Where only the weights tell the order of the changes, each recipe has its own."""
    weights = [[0.3, 1.0, 0.7], [0.7, 1.0, 0.3]]
    recipes = [{"method": m, "weights": w} for m in ("svd", "ties", "dare") for w in weights]
    found = check(given(), recipes)
    for one, other in zip(found[::2], found[1::2]):
        assert all(torch.equal(x.lora_A, other.layers[name].lora_A) for name, x in one.layers.items())


@pytest.mark.parametrize("threads", [1, 3])
def test_large_layers_and_threads(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Layers that all threads compute together, in several blocks and from sampled thresholds; batches of several."""
    monkeypatch.setattr(layers, "LARGE", 10_000)
    monkeypatch.setattr(thresholds, "MAX_SEARCHED", 1 << 12)
    monkeypatch.setattr(batches, "MOST_ON_CPU", 3)
    recipes: list[dict[str, Any]] = [{"method": "ties", "density": d, "rank": r} for d in (0.3, 0.6) for r in (2, 4)]
    torch.set_num_threads(threads)
    try:
        check(given(), [*recipes, {"method": "svd"}, {"method": "dare", "weights": [0, 1, 1]}])
    finally:
        torch.set_num_threads(1)


@dataclass(frozen=True)
class Between(Sparsifier):
    """Between two thresholds, as a user might write it: it says of one share that it will ask for it."""

    density: float = 0.5

    @property
    def shares(self) -> tuple[float, ...]:
        """One of two."""
        return (0.1,)

    def prepare(self, thresholds: Thresholds) -> list[tuple[float, float]]:
        """Two for each matrix."""
        return list(zip(thresholds(self.density), thresholds(0.1)))

    def apply(self, x: Tensor, prepared: tuple[float, float], draws: Any, rows: slice) -> Tensor:
        """Neither the small nor the largest."""
        return torch.where((x.abs() >= prepared[0]) & (x.abs() < prepared[1]), x, 0.0)

    def as_peft(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """As it is."""
        return x


@dataclass(frozen=True)
class Middle(ml.Linear):
    """A method of the user's own with it; its scale is a tensor, which cannot be compared."""

    scale: Any = None

    @property
    def sparsifier(self) -> Sparsifier:
        """Of its own."""
        return Between()

    @property
    def output_scale(self) -> float:
        """Of two values the first."""
        return 1.0 if self.scale is None else float(self.scale[0])


def test_methods_of_ones_own() -> None:
    """Functions, some that draw; methods of layers, whose results may be stored as they are."""

    def noisy(changes: Tensor, weights: Tensor, generator: torch.Generator) -> Tensor:
        return changes.sum(0) + torch.randn(changes.shape[1:], generator=generator)

    class Beside(ml.Svd):
        """The factors side by side, stored as they are where the rank allows."""

        def combine(self, parts: Sequence[Part]) -> Factors:
            return stack([part.weighted for part in parts])

    ml.register("noisy_in_a_sweep")(noisy)
    own: list[Any] = [Middle(), Middle(scale=torch.tensor([2.0, 1.0])), "noisy_in_a_sweep", Beside()]
    found = check(given(), [{"method": method, "rank": rank} for method in own for rank in (2, 50, 60)])
    before = found[-1].layers[next(iter(SHAPES))].lora_A.clone()
    found[-2].layers[next(iter(SHAPES))].lora_A.fill_(0.0)
    assert torch.equal(found[-1].layers[next(iter(SHAPES))].lora_A, before)


def counting(monkeypatch: pytest.MonkeyPatch, calls: Counter[str], home: Any, name: str) -> None:
    """Count the calls of a function."""
    inner = getattr(home, name)

    def counted(*args: Any, **kwargs: Any) -> Any:
        calls[name] += 1
        return inner(*args, **kwargs)

    monkeypatch.setattr(home, name, counted)


def test_what_is_shared_is_done_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Twelve recipes: every file is read and hashed, every layer uploaded and spanned once; a trim for each density."""
    shapes = {name: shape for name, shape in LARGER.items() if "conv" not in name}
    paths = [adapter(i, shapes=shapes).save(tmp_path / f"{i}.safetensors") for i in range(2)]
    recipes: list[dict[str, Any]] = [{"method": "svd", "rank": r} for r in (1, 2, 3, 4)]
    recipes += [{"method": "ties", "density": d, "rank": r} for d in (0.3, 0.5) for r in (2, 3, 4)]
    recipes += [{"method": "ties", "space": "core", "density": d} for d in (0.3, 0.5)]
    calls: Counter[str] = Counter()
    functions = [(files, "sha256_of"), (layers, "upload"), (span, "gram"), (span, "roots")]
    functions += [(storing, "merge_together"), (thresholds, "_pass"), (storing, "squared_norms")]
    functions += [(storing, "svd_dense")]
    for home, name in functions:
        counting(monkeypatch, calls, home, name)
    ml.merge_many(paths, recipes)
    count = len(shapes)
    assert calls == {
        "sha256_of": 2,
        "upload": count,
        "gram": 2 * count,
        "roots": count,
        "merge_together": 4 * count,
        "_pass": 3 * count,  # one for both densities of the dense changes, one for each core
        "squared_norms": 2 * count,
        "svd_dense": 6 * count,
    }


def test_a_sum_is_decomposed_once_for_all_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of every layer, for every set of weights."""
    calls: Counter[str] = Counter()
    counting(monkeypatch, calls, torch.linalg, "eigh")
    ranks = [{"method": "svd", "rank": rank, "weights": [1, w]} for rank in (1, 2, 0.9, "mean=3") for w in (1, 2)]
    ml.merge_many([adapter(1, rank=2), adapter(2, rank=2)], ranks)
    assert calls["eigh"] == 2 * len(SHAPES)


def test_a_threshold_of_a_change_serves_every_weight_of_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the weight that differs makes another matrix."""
    searched: list[int] = []
    inner = thresholds._searched
    monkeypatch.setattr(thresholds, "_searched", lambda w, *rest: searched.append(len(w)) or inner(w, *rest))
    loras = [adapter(i, shapes={"unet.conv_in": (9, 7)}) for i in range(3)]
    ml.merge_many(loras, [{"method": "ties", "weights": [1, 1, w]} for w in (0.5, 0.6, 0.7)])
    assert searched == [3, 1, 1]
    searched.clear()
    ml.merge_many(loras, [{"method": "ties", "weights": [1, 1, w], "variant": "peft"} for w in (0.5, 0.6, 0.7)])
    assert searched == [3]


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ({"method": "tise"}, r"^recipe 2: there is no method 'tise'; did you mean 'ties'"),
        ({"rank": 0}, r"^recipe 2: rank=0: expected an integer"),
        ({"seed": 0.5}, r"^recipe 2: seed=0\.5: expected an integer"),
        ({"weights": [1]}, r"^recipe 2: weights has 1 value for 2 adapters"),
        ({"weights": [0, 0]}, r"^recipe 2: the merge is empty"),
        ({"method": "svd", "density": 0.5}, r"^recipe 2: method 'svd' has no option 'density'"),
        ({"method": "cat", "rank": 3}, r"^recipe 2: cat keeps the sum of the ranks"),
        (
            {"device": "cpu"},
            r"^recipe 2: 'device' is one for all recipes: expected merge_many\(loras, recipes, device=",
        ),
        ({"loras": []}, r"^recipe 2: 'loras' is one for all recipes"),
        ({3: 4}, r"^recipe 2: 3: expected the name of an argument of merge"),
        (["svd"], r"^recipe 2: expected a mapping as \{'method': 'svd', 'rank': 16\}, found \['svd'\]"),
    ],
)
def test_what_is_wrong_in_a_recipe(recipe: Any, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It says in which, before anything is computed."""
    monkeypatch.setattr(layers, "upload", None)
    with pytest.raises(ml.OptionError, match=message):
        ml.merge_many([adapter(1), adapter(2)], [{"method": "svd"}, recipe])


def test_what_goes_wrong_in_the_arithmetic_of_a_recipe() -> None:
    """It is named; what is wrong with an adapter is not the recipe's fault."""

    @ml.register("broken_in_a_sweep")
    def broken(changes: Tensor, weights: Tensor) -> Tensor:
        raise KeyError("no")

    loras = [adapter(1), adapter(2)]
    with pytest.raises(ml.LayerError, match=r"^recipe 2: method 'broken_in_a_sweep' failed in layer .*KeyError"):
        ml.merge_many(loras, [{"method": "svd"}, {"method": "broken_in_a_sweep"}])

    @ml.register("endless_in_a_sweep")
    def endless(changes: Tensor, weights: Tensor) -> Tensor:
        return changes[0] / 0

    own: list[dict[str, Any]] = [{"method": "endless_in_a_sweep", "rank": rank} for rank in (1, 2)]
    with pytest.raises(ml.LayerError, match=r"^recipe 2: layer .* returned values that are NaN, infinite"):
        ml.merge_many(loras, [{"method": "svd"}, *own])
    next(iter(loras[1].layers.values())).lora_A.fill_(float("nan"))
    with pytest.raises(ml.LayerError, match=r"^adapter2: layer"):
        ml.merge_many(loras, [{"method": "svd"}, {"method": "ties"}])


def test_lists_of_recipes(capsys: pytest.CaptureFixture[str]) -> None:
    """None, one, a generator, no list; one bar over layers and recipes."""
    loras = [adapter(1), adapter(2)]
    assert ml.merge_many(loras, []) == []
    assert json.loads(ml.merge_many(loras, [{}])[0].metadata["mergelab"])["method"] == "svd"
    assert len(ml.merge_many(loras, ({"weights": (w for w in (1, 2))} for _ in "ab"), progress=True)) == 2
    assert f"{2 * len(SHAPES)}/{2 * len(SHAPES)}" in (said := capsys.readouterr().err) and "merging (2 recipes)" in said
    for wrong in ("svd", {"method": "svd"}, 3):
        with pytest.raises(ml.OptionError, match="expected a list of mappings"):
            ml.merge_many(loras, wrong)  # type: ignore[arg-type]


def test_shares_are_what_a_trim_asks_for() -> None:
    """So that one look serves all."""
    asked: list[float] = []
    Trim(0.3).prepare(lambda share: asked.append(share) or [])
    assert asked == [*Trim(0.3).shares]


def test_options_are_those_of_merge() -> None:
    """Every option of every method can be in a recipe."""
    for name in METHODS:
        recipe: Mapping[str, Any] = {"method": name, **options_of(name)}
        assert len(ml.merge_many([adapter(1)], [recipe])) == 1
