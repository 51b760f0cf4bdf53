"""The pipeline of a run: opened or handed in, and the keywords of every call of it."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from mergelab import miniature
from mergelab.checks import did_you_mean
from mergelab.errors import OptionError
from mergelab.evaluation.config import Config, Memory
from mergelab.pipelines.fingerprints import fingerprint
from mergelab.pipelines.opening import Pipeline, ignores_guidance, open_pipeline, usual_device
from mergelab.pipelines.schedulers import scheduled
from mergelab.pipelines.staging import at_home


@contextmanager
def opened(config: Config, given: Pipeline | None) -> Iterator[tuple[Pipeline, str]]:
    """The pipeline that is handed in, or that the configuration names; and its fingerprint."""
    if given is not None:
        with scheduled(given, config.scheduler):
            with at_home(given):  # its weights may be offloaded
                known = fingerprint(given)
            yield given, known
        return
    memory, device = config.memory, usual_device(config.device)
    yield open_pipeline(
        config.pipeline, dtype=config.dtype, device=device, offload=memory.offload, vae_tiling=memory.vae_tiling,
        compile=memory.compile, scheduler=config.scheduler,
    )  # fmt: skip


def check_loaded(dtype: str | None, memory: Memory) -> None:
    """Raises where a configuration says how a pipeline is loaded that is handed in.

    Raises:
        OptionError: so.
    """
    if dtype is not None or memory != Memory():
        raise OptionError("dtype and memory say how a pipeline is loaded; the one handed in is used as it is")


def pipeline_keywords(config: Config, pipeline: Pipeline) -> dict[str, Any]:
    """Keywords of every call of the pipeline: the configuration's, on top of the miniature's own.

    Raises:
        OptionError: a guidance scale that the model has no input for; an option that the pipeline does not take.
    """
    if config.generation.guidance is not None and ignores_guidance(pipeline):
        raise OptionError(
            "generation.guidance does nothing on a model without a guidance embedding; for true guidance set "
            "generation.options.true_cfg_scale, and generation.negative_prompt"
        )
    known = inspect.signature(type(pipeline).__call__).parameters
    for key in config.generation.options:
        if key not in known:
            raise OptionError(
                f"generation.options: {type(pipeline).__name__} takes no {key!r}; {did_you_mean(key, list(known)[1:])}"
            )
    return (miniature.settings(config.miniature) if config.miniature else {}) | config.generation.keywords()


@contextmanager
def threads_for(config: Config) -> Iterator[None]:
    """One thread for the miniature models: too small to share, and two wait for each other on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1 if config.miniature else before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
