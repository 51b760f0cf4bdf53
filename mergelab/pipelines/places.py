"""Where changes go in a loaded pipeline: each has its tensor, one that can be changed in place, or is refused."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from mergelab.engine.changes import Change, Changes
from mergelab.errors import LayerError, OptionError
from mergelab.layer import same_weight
from mergelab.pipelines.adapters import (
    check_fitting,
    check_separate,
    inside,
    models_of,
    offloaded_in_groups,
    place_of,
)

_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_Models = Mapping[str, nn.Module]


@dataclass(frozen=True, eq=False)
class Place:
    """A tensor of a module.

    Attributes:
        name: canonical, with ".weight" or ".bias".
        module, leaf: whose parameter it is, "weight" or "bias".
    """

    name: str
    module: nn.Module
    leaf: str

    @property
    def parameter(self) -> nn.Parameter:
        return getattr(self.module, self.leaf)


def find_places(target: Any, changes: Changes) -> dict[Place, tuple[Change, ...]]:
    """The tensors of all changes, and what is to be added to each.

    Args:
        target: a pipeline, or one of its models.
        changes: what is to be added.

    Raises:
        OptionError: the target is no such thing; its weights are quantised, elsewhere, joined, or offloaded in groups.
        ArchitectureError: an adapter is for another base model.
        LayerError: a layer has no module there, or one of another shape.
    """
    components = list(dict.fromkeys(name.partition(".")[0] for name in changes.by_tensor))
    if isinstance(target, nn.Module) and len(components) > 1:
        raise OptionError(
            f"the adapters change {', '.join(components)}, and the target is one model, {type(target).__name__}; "
            f"give the pipeline, or adapter.select({components[0]!r})"
        )
    models = target_models(target, components[0])
    for name in components:
        if name in models and offloaded_in_groups(models[name]):
            raise OptionError(f"{name} is offloaded in groups, which keep copies of its weights; fuse before that")
    owners = {change.owner: change.adapter for found in changes.by_tensor.values() for change in found}
    check_fitting(models, type(target).__name__, owners)
    places = {_place(models, name, found): found for name, found in changes.by_tensor.items()}
    seen: dict[int, str] = {}
    for place in places:
        if (other := seen.setdefault(id(place.parameter), place.name)) != place.name:
            raise OptionError(
                f"{place.name} and {other} are one tensor of the model, whose changes cannot be told apart"
            )
    return places


def target_models(target: Any, component: str | None = None) -> dict[str, nn.Module]:
    """Component -> model, of a pipeline, or of one model, which is known by the component that is given.

    Raises:
        OptionError: it is neither.
    """
    if isinstance(target, nn.Module):
        return {component or "": inside(target)}
    if isinstance(getattr(target, "components", None), dict):
        return models_of(target)
    raise OptionError(
        f"expected a loaded diffusers pipeline or one of its models, found {type(target).__name__}; "
        "fuse_checkpoint is for files"
    )


def check_reachable(target: Any, places: Sequence[Place], *, force: bool = False) -> None:
    """Raises where the tensors that were found are no longer those that the target computes with.

    Args:
        target, places: as they were found.
        force: replaced modules are left out.

    Raises:
        OptionError: they are offloaded, or joined copies of them are in use.
        LayerError: a module was replaced.
    """
    models = target_models(target, places[0].name.partition(".")[0] if places else None)
    for place in places:
        found = place_of(models, place.name.rpartition(".")[0])
        if found is not None and inside(found[0].get_submodule(found[1])) is place.module:
            check_here(place)
            _check_joined(place.name, *found)
        elif not force:
            raise LayerError(
                f"{place.name}: its {type(place.module).__name__} has been replaced in the model since something was "
                "fused into it; put it back, or give it up: unfuse(force=True) leaves the new one as it is"
            )


def check_here(place: Place) -> None:
    """Raises where nothing can be written into a tensor.

    Raises:
        OptionError: it is offloaded, or was made in inference mode.
    """
    parameter = place.parameter
    if parameter.is_meta:
        raise OptionError(
            f"{place.name} is offloaded: its values are not in the model; fuse and unfuse before "
            "enable_sequential_cpu_offload(), or after pipe.remove_all_hooks()"
        )
    if parameter.is_inference() and not torch.is_inference_mode_enabled():
        raise OptionError(
            f"{place.name} was made in inference mode, and cannot be changed outside of it: fuse and unfuse within "
            "torch.inference_mode(), or load the pipeline outside"
        )


def why_not(pipeline: Any, layers: Iterable[str]) -> OptionError | None:
    """What keeps the weights of these layers from being changed, if anything does; layers that are not there aside."""
    models = models_of(pipeline)
    for layer in layers:
        found = place_of(models, layer)
        module = inside(found[0].get_submodule(found[1])) if found else None
        if isinstance(module, _LAYERS):
            try:
                _check_changeable(Place(f"{layer}.weight", module, "weight"))
            except OptionError as error:
                return error
    return None


def _place(models: _Models, name: str, changes: tuple[Change, ...]) -> Place:
    layer, _, leaf = name.rpartition(".")
    owners = ", ".join(change.owner for change in changes)
    if (found := place_of(models, layer)) is None:
        raise LayerError(
            f"{owners}: layer {layer}: the pipeline has no such module; adapter.select(...) takes the layers it has"
        )
    module = inside(found[0].get_submodule(found[1]))
    if not isinstance(module, _LAYERS):
        raise LayerError(
            f"{owners}: layer {layer}: expected a linear layer or a convolution, found {type(module).__name__}"
        )
    place = Place(name, module, leaf)
    if place.parameter is None:
        raise LayerError(f"{owners}: layer {layer}: a change of its bias, and the module has none")
    _check_changeable(place)
    _check_joined(name, *found)
    shape = tuple(place.parameter.shape)
    for change in changes:
        if not same_weight(change.shape, shape):
            raise LayerError(
                f"{change.owner}: layer {layer}: a change of shape {change.shape}, expected {shape}, as the {leaf} "
                "has; is the adapter for another base model?"
            )
    return place


def _check_changeable(place: Place) -> None:
    """Raises where a tensor is no plain one that lies here."""
    name, module, parameter = place.name, place.module, place.parameter
    if type(parameter) is not nn.Parameter:
        raise OptionError(
            f"{name} is quantised or computed ({type(parameter).__name__} of {type(module).__name__}), and takes no "
            "change exactly; fuse first and quantise then"
        )
    check_here(place)
    if parameter.dtype not in _DTYPES:
        dtypes = ", ".join(str(dtype).removeprefix("torch.") for dtype in _DTYPES)
        raise OptionError(f"{name} is {str(parameter.dtype).removeprefix('torch.')}, expected one of {dtypes}")


def _check_joined(name: str, model: nn.Module, path: str) -> None:
    check_separate(name, model.get_submodule(path.rpartition(".")[0]))
