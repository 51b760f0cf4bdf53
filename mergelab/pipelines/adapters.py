"""Whether adapters fit a loaded pipeline, and where their layers are in it."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from mergelab.adapter import Adapter
from mergelab.errors import ArchitectureError, OptionError
from mergelab.formats.prefixes import COMPONENTS
from mergelab.formats.recognising import detect
from mergelab.pipelines.opening import Pipeline


def place_of(pipeline: Pipeline, layer: str) -> tuple[nn.Module, str] | None:
    """The model of the pipeline that has the module with this canonical name, and its path there; or None.

    Text encoders carry `text_model.` in every file; whether the live module does depends on its class and version.
    """
    component, _, path = layer.partition(".")
    part = getattr(pipeline, component, None)
    if not isinstance(part, nn.Module):
        return None
    model: nn.Module = getattr(part, "_orig_mod", part)  # what torch.compile wraps
    for candidate in (path, path.removeprefix("text_model."), f"text_model.{path}"):
        try:
            model.get_submodule(candidate)
        except AttributeError:
            continue
        return model, candidate
    return None


def module_of(pipeline: Pipeline, layer: str) -> nn.Module | None:
    """The module of the pipeline with this canonical name, or None."""
    place = place_of(pipeline, layer)
    return place[0].get_submodule(place[1]) if place else None


def check_adapters(pipeline: Pipeline, adapters: Mapping[str, Adapter]) -> None:
    """Raises where an adapter is for another base model than the pipeline's.

    Raises:
        ArchitectureError: the pipeline has none of its layers, or the names and shapes of another architecture.
    """
    shapes = {
        f"{component}.{name}": tuple(module.weight.shape)
        for component, model in pipeline.components.items()
        if component in COMPONENTS and isinstance(model, nn.Module)
        for name, module in model.named_modules()
        if isinstance(module, (nn.Linear, nn.Conv2d))
    }
    architecture = detect(shapes, {})
    for name, adapter in adapters.items():
        if architecture and adapter.architecture and architecture != adapter.architecture:
            raise ArchitectureError(
                f"{name} is for {adapter.architecture}, and the pipeline is {architecture}; use adapters and pipeline "
                "of one base model"
            )
        if not any(module_of(pipeline, layer) for layer in adapter.layers):
            raise ArchitectureError(
                f"{name} is for another base model: {type(pipeline).__name__} has none of its layers, such as "
                f"{next(iter(adapter.layers))}"
            )


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
