"""Adapters in a live pipeline, unmerged: made active without a file in between, and taken away without a trace."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from mergelab.adapter import Adapter
from mergelab.engine.aligning import load_all, unique_names
from mergelab.engine.changes import Loras, Weights, listed
from mergelab.engine.weights import resolve
from mergelab.errors import FormatError, LayerError, OptionError, OutputError
from mergelab.formats.casting import cast
from mergelab.layer import same_weight
from mergelab.linalg.workspace import each_layer
from mergelab.pipelines.adapters import (
    check_adapters,
    check_bare,
    check_separate,
    models_of,
    offloaded_in_groups,
    place_of,
)
from mergelab.pipelines.live import ModuleChange, applied_to, put_in, take_out
from mergelab.pipelines.opening import Pipeline

_COMPUTES_IN = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def apply(pipeline: Pipeline, loras: Loras, weights: Weights | None = None) -> tuple[str, ...]:
    """Makes adapters active in a live pipeline, unmerged, as layers of PEFT around its modules.

    The pipeline draws what it draws with a merge of method `cat` at the same weights; each layer has the weight that
    its patterns give it, in a UNet, a transformer and the text encoders alike. Everything is checked before anything
    is changed. diffusers knows the adapters by the names that are returned: `pipeline.set_adapters(names, [0.5, 1.0])`
    scales them further (but for the T5 of FLUX, where it looks for no adapters). Layers that are offloaded one by one
    or in groups are refused: apply first, and offload then.

    Args:
        pipeline: of diffusers, without adapters.
        loras: an adapter or several, or anything that `load` takes.
        weights: as for `merge`: one entry for each adapter, a number or a mapping from component names or patterns of
            layer names to numbers, of which the last that matches wins; for one adapter without a list, one without a
            list. 1.0 each by default. A layer of weight 0 is left alone.

    Returns:
        The names of the adapters in the pipeline, in order.

    Raises:
        OptionError: no pipeline that takes adapters; it carries some, is offloaded layer by layer, or computes with
            joined projections; weights that do not fit.
        ArchitectureError: an adapter for another base model.
        FormatError: an adapter holds more than layers of low rank.
        LayerError: the pipeline has no module for a layer, or one of another shape; a value that the pipeline's dtype
            cannot hold.

    Example:
        >>> from mergelab import miniature
        >>> pipe = miniature.pipeline("sdxl")
        >>> apply(pipe, ["miniature/sdxl/ghost", "miniature/sdxl/day"], [{"*": 1.0, "unet.up_blocks.*": 0.5}, 0.8])
        ('ghost_1', 'day_2')
        >>> remove(pipe)
    """
    check_bare(pipeline)
    check_offloading(pipeline)
    given, factors = listed(loras, weights)
    adapters = load_all(given)
    titles = unique_names([adapter.name for adapter in adapters])
    check_adapters(pipeline, dict(zip(titles, adapters)))
    table = resolve(factors, [a.layers for a in adapters], titles, [a.architecture for a in adapters])
    names = tuple(f"{re.sub(r'[^A-Za-z0-9_]', '_', title)}_{place}" for place, title in enumerate(titles, 1))
    plan: dict[nn.Module, dict[str, dict[str, ModuleChange]]] = {}
    for name, title, adapter, own in zip(names, titles, adapters, table):
        for model, changes in _planned(pipeline, title, adapter, own).items():
            plan.setdefault(model, {})[name] = changes
    changed: list[nn.Module] = []
    try:
        for model, of_model in plan.items():
            put_in(model, names, of_model)
            changed.append(model)
    except BaseException:
        for model in changed:
            take_out(model)
        raise
    return names


def remove(pipeline: Pipeline) -> None:
    """Takes away what `apply` made active; the pipeline is bit for bit what it was, and a bare one stays as it is.

    What was attached to it, such as `ml.switch`, goes with it.

    Raises:
        OptionError: the pipeline carries adapters that others loaded; nothing is changed.

    Example:
        >>> from mergelab import miniature
        >>> pipe = miniature.pipeline("flux")
        >>> _ = apply(pipe, ["miniature/flux/ghost"])
        >>> remove(pipe)
        >>> pipe.get_list_adapters()
        {}
    """
    models = models_of(pipeline).values()
    records = [applied_to(model) for model in models]
    ours = {name for record in records if record for name in record.names}
    others = {name for model in models for name in getattr(model, "peft_config", None) or {}} - ours
    if others:
        raise OptionError(
            f"the pipeline carries adapters that ml.apply did not make active: {', '.join(sorted(others))}; delete "
            f"them first (pipeline.delete_adapters({sorted(others)}))"
        )
    for model in models:
        take_out(model)


def _planned(
    pipeline: Pipeline, title: str, adapter: Adapter, weights: Mapping[str, float]
) -> dict[nn.Module, dict[str, ModuleChange]]:
    """Model -> path of a module -> its change, of one adapter."""
    if adapter.extras:
        raise FormatError(
            f"{title} holds {len(adapter.extras)} tensors that are no layers of low rank, {next(iter(adapter.extras))} "
            "the first, and they cannot be active unmerged; leave them behind: ml.load(...).without_extras()"
        )
    wanted = [layer for layer in adapter.layers if weights[layer]]
    models = models_of(pipeline)
    places = {layer: place_of(models, layer) for layer in wanted}
    if missing := [layer for layer, place in places.items() if place is None]:
        raise LayerError(
            f"{title}: {type(pipeline).__name__} has no module for {len(missing)} of {len(adapter.layers)} layers, "
            f"{missing[0]} the first; give them the weight 0 to leave them out"
        )
    each_layer(lambda layer: adapter.matrices(layer).shape, wanted)  # raises where one holds NaN or infinity
    planned: dict[nn.Module, dict[str, ModuleChange]] = {}
    shaped: dict[torch.dtype, dict[str, Tensor]] = {}
    for layer, place in places.items():
        model, path = place  # type: ignore[misc]  # none is missing
        module = model.get_submodule(path)
        _check_module(title, layer, module, adapter)
        check_separate(layer, model.get_submodule(path.rpartition(".")[0]))
        factors = shaped.setdefault(_dtype_of(module, model), {})
        shape, change = _shape_of(module), adapter.layers[layer].as_lora()
        factors[f"{layer}.lora_A.weight"] = change.lora_A.reshape(change.rank, *shape[1:])
        factors[f"{layer}.lora_B.weight"] = change.lora_B.reshape(shape[0], change.rank, *[1] * (len(shape) - 2))
    try:
        ready = {key: factor for dtype, factors in shaped.items() for key, factor in cast(factors, dtype).items()}
    except OutputError as error:
        said = str(error).partition("; save it as")[0]
        raise LayerError(f"{title}: {said}; the pipeline computes in it: load one in bfloat16 or float32") from error
    for layer, place in places.items():
        model, path = place  # type: ignore[misc]
        lora_a, lora_b = ready[f"{layer}.lora_A.weight"], ready[f"{layer}.lora_B.weight"]
        scaling = weights[layer] * adapter.layers[layer].scaling
        planned.setdefault(model, {})[path] = ModuleChange(layer, lora_a, lora_b, scaling)
    return planned


def _shape_of(module: nn.Module) -> tuple[int, ...]:
    """Of the weight, also where it is packed: `(out, in[, kh, kw])`."""
    if hasattr(module, "in_features") and hasattr(module, "out_features"):
        return module.out_features, module.in_features  # type: ignore[return-value]
    return tuple(getattr(getattr(module, "weight", None), "shape", ()))


def _dtype_of(module: nn.Module, model: nn.Module) -> torch.dtype:
    """What a module computes in; of a quantised one what its model does."""
    stored = (getattr(part, "dtype", None) for part in (getattr(module, "weight", None), model))
    return next((dtype for dtype in stored if dtype in _COMPUTES_IN), torch.float32)


def _check_module(title: str, layer: str, module: nn.Module, adapter: Adapter) -> None:
    shape, found = adapter.layers[layer].shape, _shape_of(module)
    if not same_weight(shape, found):
        raise LayerError(
            f"{title}: layer {layer} changes a weight {shape}, and the pipeline's {type(module).__name__} has {found}; "
            "use an adapter for this base model"
        )
    if module.weight.is_meta:
        raise OptionError(
            f"{layer}: its weights are offloaded layer by layer; apply the adapters before "
            "pipeline.enable_sequential_cpu_offload()"
        )


def check_offloading(pipeline: Pipeline) -> None:
    """Raises where groups of layers are offloaded: layers that come later belong to none, and stay behind.

    Raises:
        OptionError: they are.
    """
    for name, model in models_of(pipeline).items():
        if offloaded_in_groups(model):
            raise OptionError(
                f"{name}: its layers are offloaded in groups; apply the adapters before enable_group_offload()"
            )
