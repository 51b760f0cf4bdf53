"""The columns of the grid: base, singles, stack and merges of every set, each with the adapters that act in it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mergelab.adapter import Adapter, load
from mergelab.engine.merge import merge
from mergelab.evaluation.config import Config, Weight
from mergelab.evaluation.failures import Failures
from mergelab.evaluation.merging import Planned, made_merges, planned_merges
from mergelab.evaluation.names import BASE, STACK, VariantName
from mergelab.evaluation.recipes import Recipe, recipes
from mergelab.evaluation.sets import AdapterSet
from mergelab.evaluation.store import Store, file_name, hash_of
from mergelab.pipelines.combinations.combination import Combination
from mergelab.pipelines.combinations.registry import COMBINATIONS, combination_of
from mergelab.pipelines.fingerprints import adapter_hash


@dataclass
class Variant:
    """One column of the grid: the adapters that act in it, and what they cost.

    Attributes:
        name: its kind, and which one of that kind.
        set: the name of the set of adapters.
        adapters: act together at strength 1; the weights are in them already. A path is loaded when it is drawn.
        fingerprint: a hash of what acts.
        requests: (prompt, seed) -> key of the image.
        cost: seconds to merge, bytes of the file; seconds per image.
        layers: the report of a merge, one row for each layer.
        combination: what combines the adapters while an image is made; None adds them.
        recipe: of a merge.
    """

    name: VariantName
    set: str
    adapters: Mapping[str, Adapter | Path]
    fingerprint: str
    requests: dict[tuple[str, int], str] = field(default_factory=dict)
    cost: dict[str, float] = field(default_factory=dict)
    layers: list[dict[str, Any]] = field(default_factory=list)
    combination: Combination | None = None
    recipe: Recipe | None = None

    def loaded(self) -> dict[str, Adapter]:
        """The adapters that act."""
        return {name: load(one) if isinstance(one, Path) else one for name, one in self.adapters.items()}


@dataclass
class Pool:
    """The adapters of a run: as they are, and at their weights; each is scaled and hashed once.

    Attributes:
        loras: by their names.
        device: where they are merged.
        progress: whether each merge has a bar.
    """

    loras: Mapping[str, Adapter]
    device: str | None
    progress: bool | None = None
    _scaled: dict[str, tuple[Adapter, str]] = field(default_factory=dict)
    _hashes: dict[str, str] = field(default_factory=dict)

    def hash(self, name: str) -> str:
        """Of an adapter as it is."""
        if name not in self._hashes:
            self._hashes[name] = adapter_hash(self.loras[name])
        return self._hashes[name]

    def scaled(self, name: str, weight: Weight) -> tuple[Adapter, str]:
        """An adapter at a weight, under its name; and its hash."""
        key = f"{name} {weight}"
        if key not in self._scaled:
            adapter = self.loras[name]
            if isinstance(weight, dict):
                adapter = merge([adapter], [weight], method="cat", device=self.device, progress=self.progress)
            else:
                adapter = weight * adapter
            self._scaled[key] = replace(adapter, source=name), adapter_hash(adapter)
        return self._scaled[key]


def make_variants(config: Config, of: AdapterSet, pool: Pool, store: Store, failures: Failures) -> list[Variant]:
    """Base, singles, stack, merges and combinations of a set; a merge that fails is recorded and left out."""
    names = [lora.name for lora in of.adapters.values()]
    usual = [lora.strength for lora in of.adapters.values()]

    def together(weights: Mapping[str, Weight]) -> tuple[dict[str, Adapter], list[str]]:
        scaled = {name: pool.scaled(name, weight) for name, weight in weights.items()}
        return {name: one for name, (one, _) in scaled.items()}, [known for _, known in scaled.values()]

    def added(name: VariantName, weights: Mapping[str, Weight]) -> Variant:
        adapters, hashes = together(weights)
        return Variant(name, of.name, adapters, hash_of({"adapters": sorted(hashes)}))

    variants = [added(BASE, {})]
    variants += [added(VariantName("single", name), {name: weight}) for name, weight in zip(names, usual)]
    if len(names) > 1:
        variants.append(added(STACK, dict(zip(names, usual))))
    asked = recipes(config, of)
    merges = [recipe for recipe in asked if recipe.keywords["method"] not in COMBINATIONS]
    folder = store.adapters / file_name(of.name) if len(config.sets) > 1 else store.adapters
    planned = planned_merges(merges, usual, {name: pool.hash(name) for name in names}, folder)
    made = made_merges(planned, [pool.loras[name] for name in names], config.device, pool.progress)
    for recipe in asked:
        name = VariantName("merge", recipe.label)
        if recipe.keywords["method"] in COMBINATIONS:
            options = {key: value for key, value in recipe.keywords.items() if key != "method"}
            combination = combination_of(recipe.keywords["method"], options)
            adapters, hashes = together(dict(zip(names, usual if recipe.weights is None else recipe.weights)))
            known = hash_of({"adapters": hashes, "combination": repr(combination)})  # has an order, as a sum has not
            variants.append(Variant(name, of.name, adapters, known, combination=combination, recipe=recipe))
        elif isinstance(found := made[recipe.label], Exception):
            failures.add(found, name, set=of.name)
        else:
            variants.append(_merged(name, of.name, recipe, planned[recipe.label], found))
    return variants


def _merged(name: VariantName, of: str, recipe: Recipe, planned: Planned, known: Mapping[str, Any]) -> Variant:
    """A merge that is kept in the run."""
    cost = {"seconds to merge": known["seconds"], "bytes": planned.path.stat().st_size}
    return Variant(
        name,
        of,
        {name.label: planned.path},
        hash_of({"adapters": [known["tensors"]]}),
        cost=cost | {"retained energy": known["retained_energy"]},
        layers=known["layers"],
        recipe=recipe,
    )
