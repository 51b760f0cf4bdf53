"""Whether adapters fit a loaded pipeline, and where their layers are in it."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from torch import nn

from mergelab.adapter import Adapter
from mergelab.errors import ArchitectureError, OptionError
from mergelab.formats.prefixes import COMPONENTS
from mergelab.formats.recognising import detect
from mergelab.pipelines.live import is_wrapped
from mergelab.pipelines.opening import Pipeline


def models_of(pipeline: Pipeline) -> dict[str, nn.Module]:
    """Component -> model, inside of what torch.compile wraps around it."""
    parts = getattr(pipeline, "components", {})
    return {name: inside(part) for name, part in parts.items() if isinstance(part, nn.Module)}


def inside(module: nn.Module) -> nn.Module:
    """What torch.compile and PEFT wrap, if they do."""
    while isinstance(inner := getattr(module, "_orig_mod", None) or getattr(module, "base_layer", None), nn.Module):
        module = inner
    return module


def place_of(models: Mapping[str, nn.Module], layer: str) -> tuple[nn.Module, str] | None:
    """The model that has the module with this canonical name, and its path there; or None.

    Text encoders carry `text_model.` in every file; whether the live module does depends on its class and version.

    Args:
        models: by component.
        layer: its name, which begins with the component.
    """
    component, _, path = layer.partition(".")
    if (model := models.get(component)) is None:
        return None
    for candidate in (path, path.removeprefix("text_model."), f"text_model.{path}"):
        try:
            model.get_submodule(candidate)
        except AttributeError:
            continue
        return model, candidate
    return None


def check_adapters(pipeline: Pipeline, adapters: Mapping[str, Adapter]) -> None:
    """Raises where an adapter is for another base model than the pipeline's.

    Args:
        pipeline: of diffusers.
        adapters: by name.

    Raises:
        ArchitectureError: the pipeline has none of its layers, or the names and shapes of another architecture.
    """
    check_fitting(models_of(pipeline), type(pipeline).__name__, adapters)


def check_fitting(models: Mapping[str, nn.Module], title: str, adapters: Mapping[str, Adapter]) -> None:
    """As `check_adapters`, of models by component; the title is that of what they belong to."""
    shapes = {
        f"{component}.{name.replace('.base_layer', '')}": tuple(module.weight.shape)
        for component, model in models.items()
        if component in COMPONENTS
        for name, module in model.named_modules()
        if isinstance(module, (nn.Linear, nn.Conv2d)) and ".lora_" not in name  # of adapters that are active
    }
    # Text encoders alone do not tell: CLIP's are those of several base models.
    architecture = _architecture_of(tuple(shapes.items())) if {"unet", "transformer"} & models.keys() else None
    for name, adapter in adapters.items():
        if architecture and adapter.architecture and architecture != adapter.architecture:
            raise ArchitectureError(
                f"{name} is for {adapter.architecture}, and the pipeline is {architecture}; use adapters and pipeline "
                "of one base model"
            )
        if not any(place_of(models, layer) for layer in adapter.layers):
            raise ArchitectureError(
                f"{name} is for another base model: {title} has none of its layers, such as "
                f"{next(iter(adapter.layers))}"
            )


@lru_cache(maxsize=8)
def _architecture_of(shapes: tuple[tuple[str, tuple[int, ...]], ...]) -> str | None:
    """What `detect` says, which takes half a second at the size of FLUX: one pipeline is asked for set after set."""
    return detect(dict(shapes), {})


def check_bare(pipeline: Pipeline) -> None:
    """Raises unless this is a loaded pipeline that takes adapters and carries none.

    Raises:
        OptionError: it is no pipeline that loads adapters; or it carries some, which would be unloaded.
    """
    if not hasattr(pipeline, "get_list_adapters"):
        raise OptionError(
            f"pipeline: expected a loaded diffusers pipeline that takes adapters, found {type(pipeline).__name__}; "
            "a name or a folder belongs into the configuration"
        )
    if any(pipeline.get_list_adapters().values()):
        raise OptionError(
            "the pipeline already carries adapters: take them away first (ml.remove(pipeline) where ml.apply made them "
            "active, else pipeline.unload_lora_weights())"
        )
    if any(map(is_wrapped, models_of(pipeline).values())):
        raise OptionError(
            "the pipeline already carries adapters, in a model where diffusers looks for none: ml.remove(it)"
        )


def check_separate(name: str, attention: Any) -> None:
    """Raises where the projections of an attention are computed from a joined copy, which no change would reach.

    Raises:
        OptionError: they are.
    """
    joined = getattr(attention, "fused_projections", False)
    # The older class keeps the mark when they are separated again, and tells by its processor.
    separable = hasattr(attention, "unfuse_projections")
    if joined and (separable or type(getattr(attention, "processor", None)).__name__.startswith("Fused")):
        raise OptionError(
            f"{name}: the pipeline computes with a joined copy of this projection: pipe.unfuse_qkv_projections() first"
        )


def offloaded_in_groups(model: nn.Module) -> bool:
    """Whether layers are offloaded in groups: these keep copies of the weights, and know of no layer that comes later.

    diffusers marks the modules that it does so with.
    """
    hooks = (getattr(getattr(module, "_diffusers_hook", None), "hooks", {}) for module in model.modules())
    return any("group_offloading" in own for own in hooks)
