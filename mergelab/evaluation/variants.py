"""The columns of the grid: base, singles, stack and merges, each with the adapters that are active for it."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from mergelab.adapter import Adapter, load
from mergelab.engine.merge import merge
from mergelab.engine.provenance import package_version
from mergelab.evaluation.config import Config, expanded_merges
from mergelab.evaluation.failures import Failures
from mergelab.evaluation.names import BASE, STACK, VariantName
from mergelab.evaluation.store import Store, file_name, hash_of, to_json, write
from mergelab.methods.registry import METHODS
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
    inputs = {name: adapter_hash(adapter) for name, adapter in loras.items()}
    for label, keywords in expanded_merges(config).items():
        if keywords["method"] in COMBINATIONS:
            options = {key: value for key, value in keywords.items() if key != "method"}
            combination = combination_of(keywords["method"], options)
            variants.append(Variant(VariantName("merge", label), scaled, combination=combination))
            continue
        try:
            variants.append(_merged(label, keywords, config, loras, inputs, store))
        except Exception as error:  # out of memory, a rule of the user's own: this merge alone
            failures.add(error, VariantName("merge", label))
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


def _merged(
    label: str,
    keywords: Mapping[str, Any],
    config: Config,
    loras: Mapping[str, Adapter],
    inputs: Mapping[str, str],
    store: Store,
) -> Variant:
    """Merges once: the file of an earlier run is used again if it was made from the same inputs in the same way."""
    weights = [lora.weight for lora in config.loras]
    key = hash_of({"inputs": inputs, "weights": weights, "keywords": keywords, "version": package_version()})
    path = store.adapters / f"{file_name(label)}.safetensors"
    record = path.with_suffix(".json")
    known = json.loads(record.read_text(encoding="utf-8")) if record.exists() and path.exists() else {}
    if known.get("key") != key or keywords["method"] not in METHODS:  # a rule of the user's own may have been edited
        start = time.perf_counter()
        merged = merge(list(loras.values()), weights, device=config.device, **keywords)
        seconds = time.perf_counter() - start
        record.unlink(missing_ok=True)  # a kill between the two files must not leave the new one under the old record
        merged.save(path)
        known = {
            "key": key,
            "seconds": seconds,
            "retained_energy": merged.report.retained_energy,
            "shares": merged.report.shares,
            "layers": json.loads(merged.report.to_frame().to_json(orient="records")),
        }
        write(record, to_json(known))
    cost = {"seconds to merge": known["seconds"], "bytes": path.stat().st_size}
    return Variant(
        VariantName("merge", label),
        {label: load(path)},
        cost=cost | {"retained energy": known["retained_energy"]},
        layers=known["layers"],
    )
