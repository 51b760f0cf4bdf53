"""A pipeline from a name or a folder, on its device, with what spares memory; and what a loaded one says of itself."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from mergelab import miniature
from mergelab.devices import AUTO, usable_device
from mergelab.errors import OptionError, SourceError
from mergelab.pipelines.fingerprints import fingerprint
from mergelab.pipelines.schedulers import Choice, scheduler_of

Pipeline = Any
"""A text-to-image pipeline of diffusers: their methods differ, and no class declares them all."""


def open_pipeline(
    source: str,
    *,
    dtype: str | None = None,
    device: str = "cpu",
    offload: Literal["none", "model", "sequential"] = "none",
    vae_tiling: bool = False,
    compile: bool = False,
    scheduler: Choice | None = None,
) -> tuple[Pipeline, str]:
    """A pipeline on its device, and its fingerprint, taken before offloading moves the weights away.

    Args:
        source: a folder, "miniature/sdxl", "miniature/flux", or a name on the Hub.
        dtype: "float32", "float16", "bfloat16"; None leaves it to the pipeline.
        device: where it computes.
        offload: "model" keeps one component at a time on the GPU, "sequential" one layer (slow, smallest).
        vae_tiling: decode in tiles.
        compile: torch.compile of the repeated blocks of the transformer or UNet.
        scheduler: in place of its own, as `scheduler_of` takes it.

    Raises:
        SourceError: there is no such pipeline, or diffusers cannot read it.
        OptionError: offloading without a GPU; there is no miniature pipeline of this name; no such scheduler.
    """
    from diffusers import DiffusionPipeline

    options = {} if dtype is None else {"torch_dtype": getattr(torch, dtype)}
    pipeline: Pipeline
    if source.startswith(miniature.PREFIX) and not Path(source).is_dir():
        with quietly():
            pipeline = miniature.pipeline(source.removeprefix(miniature.PREFIX), **options)
    else:
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="`torch_dtype` is deprecated")  # older versions know no other
                pipeline = DiffusionPipeline.from_pretrained(source, **options)
        except (OSError, ValueError) as error:
            raise SourceError(f"pipeline {source}: diffusers cannot load it: {error}") from error
    pipeline.set_progress_bar_config(disable=True)
    if scheduler is not None:
        pipeline.scheduler = scheduler_of(pipeline.scheduler, scheduler)
    hash_of_all = fingerprint(pipeline)
    _place(pipeline, device, offload)
    if vae_tiling:
        pipeline.vae.enable_tiling()
    if compile:
        compiled: Any = denoiser(pipeline)
        compiled.compile_repeated_blocks()
    return pipeline, hash_of_all


def _place(pipeline: Pipeline, device: str, offload: str) -> None:
    if offload != "none" and device == "cpu":
        raise OptionError(f"memory.offload={offload!r} moves layers to a GPU, and device is 'cpu'")
    if offload == "model":
        pipeline.enable_model_cpu_offload(device=device)
    elif offload == "sequential":
        pipeline.enable_sequential_cpu_offload(device=device)
    else:
        pipeline.to(device)


def name_of(pipeline: Pipeline) -> str:
    """What a loaded pipeline says of itself: "miniature/sdxl", else what it was opened from, else its class.

    Example:
        >>> pipe = miniature.pipeline("sdxl")
        >>> name_of(pipe)
        'miniature/sdxl'
    """
    origin = getattr(pipeline, "config", {}).get("_name_or_path")
    return shipped_name(str(origin)) if origin else type(pipeline).__name__


def shipped_name(source: str) -> str:
    """The name of a pipeline that ships, where its folder is given; any other source as it is."""
    shipped = {str(miniature.WEIGHTS / name): f"{miniature.PREFIX}{name}" for name in miniature.PIPELINES}
    return shipped.get(source, source)


def usual_device(device: str | None) -> str:
    """The device that is named; for None and "auto" a GPU where there is one: drawing is always worth it.

    Raises:
        OptionError: the one that is named cannot be used here.
    """
    usual = "cuda" if torch.cuda.is_available() else "cpu"
    return str(usable_device(usual if device in (None, AUTO) else device))


def denoiser(pipeline: Pipeline) -> nn.Module:
    """The transformer or the UNet.

    Raises:
        SourceError: it has neither.
    """
    for name in ("transformer", "unet"):
        if isinstance(getattr(pipeline, name, None), nn.Module):
            return getattr(pipeline, name)
    raise SourceError(
        f"{type(pipeline).__name__} has neither a transformer nor a unet: it is no text-to-image pipeline"
    )


def ignores_guidance(pipeline: Pipeline) -> bool:
    """Whether the model has no input for a guidance scale, as FLUX.1-schnell."""
    config = getattr(getattr(pipeline, "transformer", None), "config", None)
    return getattr(config, "guidance_embeds", None) is False


@contextmanager
def without_bars(pipeline: Pipeline) -> Iterator[None]:
    """A pipeline that shows no bar of its steps, and then has its bars again as they were set.

    Example:
        >>> pipe = miniature.pipeline("sdxl")
        >>> pipe.set_progress_bar_config(desc="steps")
        >>> with without_bars(pipe):
        ...     pipe.progress_bar(total=4).disable
        True
        >>> pipe._progress_bar_config
        {'desc': 'steps'}
    """
    own = vars(pipeline).get("_progress_bar_config")
    pipeline.set_progress_bar_config(**{**(own or {}), "disable": True})
    try:
        yield
    finally:
        if own is None:
            del pipeline._progress_bar_config
        else:
            pipeline._progress_bar_config = own


@contextmanager
def quietly() -> Iterator[None]:
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
