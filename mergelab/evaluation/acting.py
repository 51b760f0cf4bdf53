"""What acts while an image is drawn, in a form that can be sent; and the adapters of a run that it speaks of."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mergelab.adapter import Adapter, load
from mergelab.engine.merge import merge
from mergelab.errors import BaseModelNeeded
from mergelab.evaluation.config import Config, Weight
from mergelab.evaluation.store import hash_of
from mergelab.formats.base_models import check_base_models
from mergelab.pipelines.combinations.combination import Combination
from mergelab.pipelines.fingerprints import adapter_hash
from mergelab.pipelines.opening import Pipeline


@dataclass(frozen=True)
class Acting:
    """What acts while an image is drawn, all of it at strength 1.

    Attributes:
        fingerprint: a hash of it.
        weights: adapters of the run that act together, each at its weight.
        merged: label -> file of a merged adapter, which acts in their place.
        combination: what combines the adapters while an image is made; None adds them.
    """

    fingerprint: str
    weights: Mapping[str, Weight] = field(default_factory=dict)
    merged: Mapping[str, Path] = field(default_factory=dict)
    combination: Combination | None = None

    @property
    def anything(self) -> bool:
        """Whether it is more than the base model."""
        return bool(self.weights or self.merged)

    def loaded(self, pool: Pool, found: Callable[[Path], Path] = Path) -> dict[str, Adapter]:
        """The adapters.

        Args:
            pool: those of the run.
            found: where a file of the run lies here.
        """
        if self.merged:
            return {label: load(found(path)) for label, path in self.merged.items()}
        return {name: pool.weighed(name, weight) for name, weight in self.weights.items()}


def added(weights: Mapping[str, Weight], pool: Pool, combination: Combination | None = None) -> Acting:
    """Adapters that act together."""
    hashes = [pool.hash(name, weight) for name, weight in weights.items()]
    if combination is None:
        return Acting(hash_of({"adapters": sorted(hashes)}), weights)
    known = hash_of({"adapters": hashes, "combination": repr(combination)})  # has an order, as a sum has not
    return Acting(known, weights, combination=combination)


@dataclass
class Pool:
    """The adapters of a run, as they are and at weights; each is hashed once.

    Attributes:
        loras: by their names.
        device: where they are merged.
        progress: whether each merge has a bar.
    """

    loras: Mapping[str, Adapter]
    device: str | None
    progress: bool | None = None
    _hashes: dict[str, str] = field(default_factory=dict)

    def hash(self, name: str, weight: Weight | None = None) -> str:
        """Of an adapter as it is, or at a weight."""
        key = f"{name} {weight}"
        if key not in self._hashes:
            adapter = self.loras[name] if weight is None else self.weighed(name, weight)
            self._hashes[key] = adapter_hash(adapter)
        return self._hashes[key]

    def weighed(self, name: str, weight: Weight) -> Adapter:
        """An adapter at a weight, under its name."""
        adapter = self.loras[name]
        if isinstance(weight, Mapping):
            adapter = merge([adapter], [weight], method="cat", device=self.device, progress=self.progress)
        else:
            adapter = weight * adapter
        return replace(adapter, source=name)


def open_pool(config: Config, given: Pipeline | None, progress: bool | None, found: Callable[[str], str] = str) -> Pool:
    """The adapters of a configuration, for one base model.

    Args:
        config: what is run.
        given: a pipeline that is here already: adapters that are functions of the base model's weights get its.
        progress: whether each merge has a bar.
        found: where a path of the configuration lies here.

    Raises:
        SourceError, FormatError, LayerError: one cannot be read.
        ArchitectureError: they are for different base models.
    """
    loras = {lora.name: _adapter(found(lora.path), config, given) for lora in config.loras}
    check_base_models(list(loras.values()), list(loras))
    return Pool(loras, config.device, progress)


def _adapter(path: str, config: Config, given: Pipeline | None) -> Adapter:
    try:
        return load(path)
    except BaseModelNeeded:
        if given is None and not (config.miniature or Path(config.pipeline).is_dir()):
            raise
        base: Any = config.pipeline if given is None else given
        return load(path, base=base)
