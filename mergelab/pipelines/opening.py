"""Images from a diffusers pipeline: one at a time, adapters swapped in and out without a trace."""

from __future__ import annotations

import inspect
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mergelab.adapter import Adapter
from mergelab.checks import usable_device
from mergelab.errors import ArchitectureError, LayerError, OptionError, SourceError
from mergelab.evaluation.config import Config, Memory
from mergelab.evaluation.fingerprints import fingerprint
from mergelab.formats.architecture import detect

Pipeline = Any
"""A text-to-image pipeline of diffusers: their methods differ, and no class declares them all."""


def open_pipeline(config: Config) -> tuple[Pipeline, str]:
    """The pipeline of a configuration, on its device, with its memory options; and its fingerprint.

    Raises:
        SourceError: there is no such pipeline, or diffusers cannot read it.
    """
    from diffusers import DiffusionPipeline

    from mergelab import miniature

    pipeline: Pipeline
    dtype = {} if config.dtype is None else {"torch_dtype": getattr(torch, config.dtype)}
    if config.miniature:
        with _quietly():
            pipeline = miniature.pipeline(config.miniature, **dtype)
    else:
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="`torch_dtype` is deprecated")  # older versions know no other
                pipeline = DiffusionPipeline.from_pretrained(config.pipeline, **dtype)
        except (OSError, ValueError) as error:
            raise SourceError(f"pipeline {config.pipeline}: diffusers cannot load it: {error}") from error
    pipeline.set_progress_bar_config(disable=True)
    identity = fingerprint(pipeline)  # before offloading moves the weights away
    _spare_memory(pipeline, config.memory, device_of(config))
    return pipeline, identity


def device_of(config: Config) -> str:
    """The device of a configuration: the one it names, or else a GPU where there is one.

    Raises:
        OptionError: the one it names cannot be used here.
    """
    return str(usable_device(config.device or ("cuda" if torch.cuda.is_available() else "cpu")))


@contextmanager
def threads_for(config: Config) -> Iterator[None]:
    """One thread for the miniature models: too small to share, and two wait for each other on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1 if config.miniature else before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _spare_memory(pipeline: Pipeline, memory: Memory, device: str) -> None:
    if memory.offload != "none" and device == "cpu":
        raise OptionError(f"memory.offload={memory.offload!r} moves layers to a GPU, and device is 'cpu'")
    if memory.offload == "model":
        pipeline.enable_model_cpu_offload(device=device)
    elif memory.offload == "sequential":
        pipeline.enable_sequential_cpu_offload(device=device)
    else:
        pipeline.to(device)
    if memory.vae_tiling:
        pipeline.vae.enable_tiling()
    if memory.compile:
        compiled: Any = denoiser(pipeline)
        compiled.compile_repeated_blocks()


def denoiser(pipeline: Pipeline) -> nn.Module:
    """The transformer or the UNet."""
    for name in ("transformer", "unet"):
        if isinstance(getattr(pipeline, name, None), nn.Module):
            return getattr(pipeline, name)
    raise SourceError(
        f"{type(pipeline).__name__} has neither a transformer nor a unet: it is no text-to-image pipeline"
    )


def swap(pipeline: Pipeline, adapters: Mapping[str, Adapter]) -> list[str]:
    """Makes these adapters, and no others, active at strength 1, unmerged; none of them: the base model again.

    Returns what the pipeline does not load, in words.

    Raises:
        LayerError: the pipeline loads none of an adapter's layers.
    """
    if "reset_to_overwritten_params" in inspect.signature(pipeline.unload_lora_weights).parameters:
        pipeline.unload_lora_weights(reset_to_overwritten_params=True)  # FLUX, after an adapter that widened a layer
    else:
        pipeline.unload_lora_weights()
    if not adapters:
        return []
    notes = [
        f"{name}: {len(a.extras)} tensors that are no layers are not loaded" for name, a in adapters.items() if a.extras
    ]
    active = []
    with tempfile.TemporaryDirectory() as folder:
        for index, (name, adapter) in enumerate(adapters.items()):
            if not adapter.norm():
                continue  # nothing to load: a weight of zero
            file = adapter.without_extras().save(Path(folder) / f"{index}.safetensors")
            with _quietly():
                pipeline.load_lora_weights(str(file), adapter_name=f"adapter_{index}")
            missing = [layer for layer in adapter.layers if not _is_loaded(pipeline, layer, f"adapter_{index}")]
            if len(missing) == len(adapter.layers):
                raise LayerError(f"{name}: {type(pipeline).__name__} loads none of its layers, {missing[0]} the first")
            if missing:
                notes.append(
                    f"{name}: {type(pipeline).__name__} does not load {len(missing)} of {len(adapter.layers)} layers, "
                    f"{missing[0]} the first"
                )
            active.append(f"adapter_{index}")
    if active:
        pipeline.set_adapters(active, [1.0] * len(active))
    return notes


@contextmanager
def _quietly() -> Iterator[None]:
    """Without bars of a moment, and notes on what is meant: several adapters, files without the model's weights."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging

    both = logging, diffusers_logging
    before, bars = [part.get_verbosity() for part in both], logging.is_progress_bar_enabled()
    for part in both:
        part.set_verbosity_error()
        part.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Already found a `peft_config`")
            warnings.filterwarnings("ignore", message="`torch_dtype` is deprecated")
            yield
    finally:
        for part, verbosity in zip(both, before):
            part.set_verbosity(verbosity)
            if bars:
                part.enable_progress_bar()


def _module(pipeline: Pipeline, layer: str) -> nn.Module | None:
    """The layer of the pipeline with this canonical name."""
    component, _, path = layer.partition(".")
    model = getattr(pipeline, component, None)
    for candidate in (path, path.removeprefix("text_model."), f"text_model.{path}"):
        try:
            return model.get_submodule(candidate) if isinstance(model, nn.Module) else None
        except AttributeError:
            continue
    return None


def _is_loaded(pipeline: Pipeline, layer: str, adapter: str) -> bool:
    """Whether a layer of the pipeline carries factors of the adapter."""
    return adapter in getattr(_module(pipeline, layer), "lora_A", {})


def check_adapters(pipeline: Pipeline, adapters: Mapping[str, Adapter]) -> None:
    """Raises where an adapter is for another base model than the pipeline's.

    Raises:
        ArchitectureError: the pipeline has none of its layers, or the names and shapes of another architecture.
    """
    shapes = {
        f"{component}.{name}": tuple(module.weight.shape)
        for component, model in pipeline.components.items()
        if isinstance(model, nn.Module)
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
        if not any(_module(pipeline, layer) for layer in adapter.layers):
            raise ArchitectureError(
                f"{name} is for another base model: {type(pipeline).__name__} has none of its layers, such as "
                f"{next(iter(adapter.layers))}"
            )


def keywords_of(config: Config, pipeline: Pipeline) -> dict[str, Any]:
    """Keywords of every call of the pipeline: the configuration's, on top of the miniature's own.

    Raises:
        OptionError: a guidance scale that the model has no input for.
    """
    from mergelab import miniature

    transformer = getattr(getattr(pipeline, "transformer", None), "config", None)
    if config.generation.guidance is not None and getattr(transformer, "guidance_embeds", None) is False:
        raise OptionError(
            "generation.guidance does nothing on a model without a guidance embedding; for true guidance set "
            "generation.options.true_cfg_scale, and generation.negative_prompt"
        )
    return (miniature.settings(config.miniature) if config.miniature else {}) | config.generation.keywords()


def check_given(pipeline: Pipeline, config: Config) -> None:
    """Raises unless a pipeline that was handed in can be used as it is.

    Raises:
        OptionError: it is no pipeline that loads adapters; it carries some, which would be unloaded; or the
            configuration says how to load one.
    """
    if not hasattr(pipeline, "get_list_adapters"):
        raise OptionError(
            f"pipeline: expected a loaded diffusers pipeline that takes adapters, found {type(pipeline).__name__}; "
            "a name or a folder belongs into the configuration"
        )
    if config.dtype is not None or config.memory != Memory():
        raise OptionError("dtype and memory say how a pipeline is loaded; the one handed in is used as it is")
    if any(pipeline.get_list_adapters().values()):
        raise OptionError("the pipeline already carries adapters: unload them first (pipeline.unload_lora_weights())")


def draw(pipeline: Pipeline, prompt: str, seed: int, keywords: Mapping[str, Any]) -> Tensor:
    """One image, uint8 (3, h, w): its own CPU generator, seeded by its seed alone, and no other image beside it.

    Raises:
        LayerError: the pipeline returned NaN.
    """
    generator = torch.Generator("cpu").manual_seed(seed)
    image = pipeline(prompt, generator=generator, output_type="pt", **keywords).images[0].detach().float().cpu()
    if not torch.isfinite(image).all():
        raise LayerError("the pipeline returned NaN; float16 overflows in some models: try dtype: bfloat16 or float32")
    return image.clamp(0, 1).mul(255).round().to(torch.uint8)
