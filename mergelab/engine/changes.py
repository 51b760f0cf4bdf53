"""What adapters at their weights add to a model, tensor by tensor: the same for a live pipeline and for a file."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from mergelab.adapter import Adapter, Source
from mergelab.checks import is_number
from mergelab.engine.aligning import load_all, unique_names
from mergelab.engine.extras import replacing, without_layer
from mergelab.engine.weights import Weight, resolve, weight_record
from mergelab.errors import LayerError, OptionError
from mergelab.formats.base_models import check_base_models
from mergelab.layer import BIAS_SUFFIX, Layer, LoraLayer, is_difference, owner_of
from mergelab.linalg.lowrank import Factors
from mergelab.linalg.workspace import each_layer

Loras = Adapter | Source | Sequence[Adapter | Source]
Weights = Weight | Sequence[Weight]


@dataclass(frozen=True, eq=False)
class Change:
    """What one adapter adds to one tensor.

    Attributes:
        adapter, owner: the adapter, and its name among those given.
        layer: canonical name of the layer.
        weight: factor of the change.
        extra: of the adapter's, where that is the change: a difference of the layer's bias, or of a norm.
    """

    adapter: Adapter
    owner: str
    layer: str
    weight: float
    extra: str = ""

    @property
    def tensor(self) -> str:
        """Canonical name of the tensor that is changed."""
        return f"{self.layer}.{'bias' if self.extra.endswith(BIAS_SUFFIX) else 'weight'}"

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the tensor that is changed."""
        return tuple(self._vector.shape if self.extra else self.adapter.layers[self.layer].shape)

    def factors(self, device: torch.device | str | None = None) -> Factors:
        """In float32, the weight included; a vector is a matrix of one column.

        Raises:
            LayerError: a value is NaN, infinite, or far beyond those of any adapter.
        """
        if not self.extra:
            return self.adapter.matrices(self.layer, device).scaled(self.weight)
        vector = self._vector.detach().to(device=device, dtype=torch.float32)
        if not torch.isfinite(vector).all():
            raise LayerError(f"{self.adapter.source}: {self.tensor}: a value is not finite; the file is damaged")
        return Factors(vector[:, None] * self.weight, vector.new_ones(1, 1))

    def copied(self) -> Change:
        """The same, of tensors that nobody else has."""
        layers: dict[str, Layer] = {}
        extras: dict[str, torch.Tensor] = {}
        if self.extra:
            extras[self.extra] = self._vector.detach().clone()
        else:
            layer = self.adapter.layers[self.layer]
            stored = layer.as_lora()
            a, b = stored.lora_A.detach().clone(), stored.lora_B.detach().clone()
            layers[self.layer] = LoraLayer(a, b, stored.scaling)
        return replace(self, adapter=replace(self.adapter, layers=layers, extras=extras))

    @property
    def _vector(self) -> torch.Tensor:
        return self.adapter.extras[self.extra]


@dataclass(frozen=True, eq=False)
class Changes:
    """All that adapters add to a model.

    Attributes:
        adapters, names: those that were given.
        weights: as a recipe has them, one for each adapter.
        by_tensor: canonical name of a layer, with ".weight" or ".bias" -> its changes.
    """

    adapters: tuple[Adapter, ...]
    names: tuple[str, ...]
    weights: tuple[float | Mapping[str, float], ...]
    by_tensor: Mapping[str, tuple[Change, ...]]

    @property
    def architecture(self) -> str | None:
        """Of the base model, where an adapter tells."""
        return next((a.architecture for a in self.adapters if a.architecture), None)


def collect(loras: Loras, weights: Weights | None = None) -> Changes:
    """Changes by tensor; every value is looked at, and none is kept.

    Args:
        loras: an adapter or several, or anything that `load` takes.
        weights: as for `merge`; for one adapter without a list, one without a list.

    Raises:
        OptionError: weights that do not fit, or all 0; an adapter holds what replaces tensors rather than adds to them.
        ArchitectureError: adapters of different base models.
        LayerError: a value is NaN or infinite.

    Example:
        >>> changes = collect("miniature/sdxl/ghost", 0.5)
        >>> len(changes.by_tensor), next(iter(changes.by_tensor))
        (48, 'unet.down_blocks.1.attentions.0.proj_in.weight')
    """
    loras, given = listed(loras, weights)
    adapters = load_all(loras)
    names = unique_names([adapter.name for adapter in adapters])
    check_base_models(adapters, names)
    architectures = [adapter.architecture for adapter in adapters]
    layers = [[*a.layers, *without_layer(a)] for a in adapters]
    others = [replacing(adapter) for adapter in adapters]
    table = resolve(given, layers, names, architectures, others)
    given_to = zip(adapters, names, table)
    changes = [c for adapter, name, own in given_to if any(own.values()) for c in _of_adapter(adapter, name, own)]
    each_layer(lambda i: changes[i].factors().shape, range(len(changes)))  # raises where a value is none
    by_tensor: dict[str, list[Change]] = {}
    for change in changes:
        by_tensor.setdefault(change.tensor, []).append(change)
    if not by_tensor:
        raise OptionError("every weight is 0, so there is nothing to fuse")
    found = {key: tuple(changes) for key, changes in by_tensor.items()}
    records = [weight_record(w, own) for w, own in zip([1.0] * len(adapters) if given is None else given, table)]
    return Changes(tuple(adapters), tuple(names), tuple(records), found)


def listed(loras: Loras, weights: Weights | None) -> tuple[Sequence[Adapter | Source], Sequence[Weight] | None]:
    """One adapter as a list of one, and its weight, too.

    Example:
        >>> listed("miniature/sdxl/ghost", 0.5)
        (['miniature/sdxl/ghost'], [0.5])
    """
    single = isinstance(loras, (Adapter, str, os.PathLike, Mapping))
    given = [weights] if isinstance(weights, Mapping) or (single and is_number(weights)) else weights
    return [loras] if single else loras, given  # type: ignore[list-item, return-value]


def _of_adapter(adapter: Adapter, name: str, weights: Mapping[str, float]) -> list[Change]:
    if others := [key for key in replacing(adapter) if weights.get(key) != 0]:
        raise OptionError(
            f"{name}: {len(others)} tensors replace those of a model rather than add to them, and are not fused, "
            f"{others[0]} the first; adapter.without_extras(), or --drop-extras, leaves them out"
        )
    changes = [Change(adapter, name, layer, weights[layer]) for layer in adapter.layers]
    differences = {key: owner_of(key) for key in adapter.extras if is_difference(key)}
    changes += [Change(adapter, name, layer, weights[layer], key) for key, layer in differences.items()]
    return [change for change in changes if change.weight != 0]
