"""The columns of the grid: base, singles, stack and merges, each with the adapters that are active for it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from mergelab.adapter import Adapter, load
from mergelab.engine.merge import merge
from mergelab.evaluation.config import Config, expanded_merges
from mergelab.evaluation.failures import Failures
from mergelab.evaluation.merging import Planned, made_merges, planned_merges
from mergelab.evaluation.names import BASE, STACK, VariantName
from mergelab.evaluation.store import Store, hash_of
from mergelab.pipelines.combinations.combination import Combination
from mergelab.pipelines.combinations.registry import COMBINATIONS, combination_of
from mergelab.pipelines.fingerprints import adapter_hash


@dataclass
class Variant:
    """One column of the grid: the adapters that are active for it, and what they cost.

    Attributes:
        name: its kind, and which one of that kind.
        adapters: active together at strength 1; the weights are in them already.
        requests: (prompt, seed) -> key of the image.
        cost: seconds to merge, bytes of the file; seconds per image.
        layers: the report of a merge, one row for each layer.
        combination: what combines the adapters while an image is made; None adds them.
    """

    name: VariantName
    adapters: dict[str, Adapter]
    requests: dict[tuple[str, int], str] = field(default_factory=dict)
    cost: dict[str, float] = field(default_factory=dict)
    layers: list[dict[str, Any]] = field(default_factory=list)
    combination: Combination | None = None

    @cached_property
    def fingerprint(self) -> str:
        """A hash of what is active."""
        hashes = [adapter_hash(adapter) for adapter in self.adapters.values()]
        if self.combination:  # has an order, as a sum has not
            return hash_of({"adapters": hashes, "combination": repr(self.combination)})
        return hash_of({"adapters": sorted(hashes)})


def make_variants(
    config: Config,
    loras: Mapping[str, Adapter],
    scaled: dict[str, Adapter],
    store: Store,
    failures: Failures,
) -> list[Variant]:
    """Base, singles, stack, merges and combinations; a merge that fails is recorded and left out."""
    variants = [Variant(BASE, {})]
    variants += [Variant(VariantName("single", name), {name: one}) for name, one in scaled.items()]
    if len(loras) > 1:
        variants.append(Variant(STACK, scaled))
    expanded = expanded_merges(config)
    merges = {label: keywords for label, keywords in expanded.items() if keywords["method"] not in COMBINATIONS}
    planned = planned_merges(merges, config, loras, store)
    made = made_merges(planned, config, loras)
    for label, keywords in expanded.items():
        if label not in merges:
            options = {key: value for key, value in keywords.items() if key != "method"}
            combination = combination_of(keywords["method"], options)
            variants.append(Variant(VariantName("merge", label), scaled, combination=combination))
        elif isinstance(found := made[label], Exception):
            failures.add(found, VariantName("merge", label))
        else:
            variants.append(_merged(label, planned[label], found))
    return variants


def at_weights(config: Config, loras: Mapping[str, Adapter]) -> dict[str, Adapter]:
    """The adapters at their weights, under their names."""
    scaled = {}
    for lora in config.loras:
        adapter = loras[lora.name]
        if isinstance(lora.weight, dict):
            adapter = merge([adapter], [lora.weight], method="cat", device=config.device)
        else:
            adapter = lora.weight * adapter
        scaled[lora.name] = replace(adapter, source=lora.name)
    return scaled


def _merged(label: str, planned: Planned, known: Mapping[str, Any]) -> Variant:
    """A merge that is kept in the run."""
    cost = {"seconds to merge": known["seconds"], "bytes": planned.path.stat().st_size}
    return Variant(
        VariantName("merge", label),
        {label: load(planned.path)},
        cost=cost | {"retained energy": known["retained_energy"]},
        layers=known["layers"],
    )
