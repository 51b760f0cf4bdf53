"""Where changes go in a loaded pipeline: each has its tensor, one that can be changed in place, or is refused."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from mergelab.engine.changes import Change, Changes
from mergelab.errors import ArchitectureError, LayerError, OptionError
from mergelab.layer import same_weight
from mergelab.pipelines.adapters import module_of

_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@dataclass(frozen=True, eq=False)
class Place:
    """A tensor of a module, and what is to be added to it.

    Attributes:
        name: canonical, with ".weight" or ".bias".
        module, leaf: whose parameter it is, "weight" or "bias".
        changes: at least one.
    """

    name: str
    module: nn.Module
    leaf: str
    changes: tuple[Change, ...]

    @property
    def parameter(self) -> nn.Parameter:
        return getattr(self.module, self.leaf)


def find_places(target: Any, changes: Changes) -> list[Place]:
    """The tensors of all changes.

    Args:
        target: a pipeline, or one of its models.
        changes: what is to be added.

    Raises:
        OptionError: the target is no such thing; its weights are quantised, elsewhere, or offloaded in groups.
        ArchitectureError: it has none of an adapter's layers.
        LayerError: a layer has no module there, or one of another shape.
    """
    models = _models(target, changes)
    _check_base_model(models, changes, target)
    places = [_place(models, name, found) for name, found in changes.by_tensor.items()]
    seen: dict[int, str] = {}
    for place in places:
        if (other := seen.setdefault(id(place.parameter), place.name)) != place.name:
            raise OptionError(
                f"{place.name} and {other} are one tensor of the model, whose changes cannot be told apart"
            )
    return places


def why_not(pipeline: Any, layers: Iterable[str]) -> OptionError | None:
    """What keeps the weights of these layers from being changed, if anything does; layers that are not there aside."""
    models = {name: part for name, part in pipeline.components.items() if isinstance(part, nn.Module)}
    for layer in layers:
        module = _module(models, layer)
        if isinstance(module, _LAYERS):
            try:
                _check_changeable(f"{layer}.weight", module, module.weight)
            except OptionError as error:
                return error
    return None


def _models(target: Any, changes: Changes) -> dict[str, nn.Module]:
    components = list(dict.fromkeys(name.partition(".")[0] for name in changes.by_tensor))
    if isinstance(target, nn.Module):
        if len(components) > 1:
            raise OptionError(
                f"the adapters change {', '.join(components)}, and the target is one model, {type(target).__name__}; "
                f"give the pipeline, or adapter.select({components[0]!r})"
            )
        models = {components[0]: target}
    elif isinstance(getattr(target, "components", None), dict):
        models = {name: part for name, part in target.components.items() if isinstance(part, nn.Module)}
    else:
        raise OptionError(
            f"expected a loaded diffusers pipeline or one of its models, found {type(target).__name__}; "
            "fuse_checkpoint is for files"
        )
    for name in components:
        if name in models and _offloaded_in_groups(models[name]):
            raise OptionError(f"{name} is offloaded in groups, which keep copies of its weights; fuse before that")
    return models


def _check_base_model(models: dict[str, nn.Module], changes: Changes, target: Any) -> None:
    layers: dict[str, list[Change]] = {}
    for found in changes.by_tensor.values():
        for change in found:
            layers.setdefault(change.owner, []).append(change)
    for owner, own in layers.items():
        if not any(_module(models, change.layer) for change in own):
            raise ArchitectureError(
                f"{owner} is for another base model: {type(target).__name__} has none of its layers, such as "
                f"{own[0].layer}"
            )


def _place(models: dict[str, nn.Module], name: str, changes: tuple[Change, ...]) -> Place:
    layer, _, leaf = name.rpartition(".")
    owners = ", ".join(change.owner for change in changes)
    module = _module(models, layer)
    if module is None:
        raise LayerError(
            f"{owners}: layer {layer}: the pipeline has no such module; adapter.select(...) takes the layers it has"
        )
    if not isinstance(module, _LAYERS):
        raise LayerError(
            f"{owners}: layer {layer}: expected a linear layer or a convolution, found {type(module).__name__}"
        )
    parameter = getattr(module, leaf)
    if parameter is None:
        raise LayerError(f"{owners}: layer {layer}: a change of its bias, and the module has none")
    _check_changeable(name, module, parameter)
    for change in changes:
        if not same_weight(change.shape, parameter.shape):
            raise LayerError(
                f"{change.owner}: layer {layer}: a change of shape {change.shape}, expected {tuple(parameter.shape)}, "
                f"as the {leaf} has; is the adapter for another base model?"
            )
    return Place(name, module, leaf, changes)


def _check_changeable(name: str, module: nn.Module, parameter: torch.Tensor) -> None:
    """Raises where a tensor is no plain one that lies here."""
    if type(parameter) is not nn.Parameter:
        raise OptionError(
            f"{name} is quantised or computed ({type(parameter).__name__} of {type(module).__name__}), and takes no "
            "change exactly; fuse first and quantise then"
        )
    if parameter.is_meta:
        raise OptionError(
            f"{name} is offloaded: its values are not in the model; fuse before enable_sequential_cpu_offload()"
        )
    if parameter.dtype not in _DTYPES:
        dtypes = ", ".join(str(dtype).removeprefix("torch.") for dtype in _DTYPES)
        raise OptionError(f"{name} is {str(parameter.dtype).removeprefix('torch.')}, expected one of {dtypes}")


def _module(models: dict[str, nn.Module], layer: str) -> nn.Module | None:
    """The module that holds the weights, inside what PEFT and torch.compile wrap around it."""
    module = module_of(SimpleNamespace(**models), layer)
    while inner := getattr(module, "_orig_mod", None) or getattr(module, "base_layer", None):
        module = inner
    return module


def _offloaded_in_groups(model: nn.Module) -> bool:
    registries = (getattr(module, "_diffusers_hook", None) for module in model.modules())
    return any(registry.get_hook("group_offloading") is not None for registry in registries if registry)
