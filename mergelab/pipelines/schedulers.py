"""Another scheduler for a pipeline, by the name of its class in diffusers, made from the configuration of its own."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from mergelab.checks import did_you_mean
from mergelab.errors import OptionError

Choice = str | Mapping[str, Any]
"""A class, or {"class": a class, and any of its options}."""

# Made from the same configuration, by their documentation, though no class names them among its compatibles.
_ALSO_DIFFUSION = ("LCMScheduler", "SASolverScheduler", "TCDScheduler")
_FLOW = ("FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler", "FlowMatchLCMScheduler")


@contextmanager
def scheduled(pipeline: Any, choice: Choice | None) -> Iterator[None]:
    """A pipeline with another scheduler, and then with its own again; None leaves it its own.

    Raises:
        OptionError: as `scheduler_of` does.

    Example:
        >>> from mergelab import miniature
        >>> pipe = miniature.pipeline("sdxl")
        >>> with scheduled(pipe, {"class": "DPMSolverMultistepScheduler", "use_karras_sigmas": True}):
        ...     type(pipe.scheduler).__name__
        'DPMSolverMultistepScheduler'
        >>> type(pipe.scheduler).__name__
        'EulerDiscreteScheduler'
    """
    if choice is None:
        yield
        return
    own = pipeline.scheduler
    pipeline.scheduler = scheduler_of(own, choice)
    try:
        yield
    finally:
        pipeline.scheduler = own


def scheduler_of(own: Any, choice: Choice) -> Any:
    """The scheduler that is chosen in place of a pipeline's own, with the configuration of that where it says nothing.

    Args:
        own: of the pipeline, as it was loaded.
        choice: the name of a class, or a mapping of that, under "class", and of its options.

    Raises:
        OptionError: the class is none that can take this place, or does not know an option or its value.
    """
    options = {"class": choice} if isinstance(choice, str) else dict(choice)
    name = str(options.pop("class", ""))
    known = _candidates(own)
    if name not in known:
        raise OptionError(
            f"scheduler: {name!r} cannot take the place of {type(own).__name__}; {did_you_mean(name, list(known))}"
        )
    taken = _options(known[name])
    for option in options:
        if taken and option not in taken:
            raise OptionError(f"scheduler: {name} has no option {option!r}; {did_you_mean(option, taken)}")
    try:
        _try_out(known[name].from_config(own.config, **options))
        built = known[name].from_config(own.config, **options)
    except Exception as error:  # diffusers raises whatever the values lead to; a package may be missing
        said = " ".join(str(error).split())[:200] or type(error).__name__
        raise OptionError(f"scheduler: {name} cannot be made with {options or 'its defaults'}: {said}") from error
    _check_flow(own, built)
    return built


def _candidates(own: Any) -> dict[str, Any]:
    """Name -> class of what can take the place of a scheduler: diffusers' list, or all that integrate the same flow."""
    import diffusers
    from diffusers.schedulers.scheduling_utils import KarrasDiffusionSchedulers

    listed = [cls.__name__ for cls in own.compatibles]
    diffusion = [member.name for member in KarrasDiffusionSchedulers]
    if _of_flow(own):
        names = [*_FLOW, *(name for name in diffusion if "use_flow_sigmas" in _options(getattr(diffusers, name)))]
    else:
        names = [*listed, *(_ALSO_DIFFUSION if set(diffusion) & set(listed) else ())]
    return {name: getattr(diffusers, name) for name in sorted(names) if hasattr(diffusers, name)}


def _options(cls: type) -> list[str]:
    """What a class can be given; empty for the stand-in of one whose packages are missing."""
    parameters = inspect.signature(cls).parameters.values()
    return sorted(part.name for part in parameters if part.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD)


def _of_flow(scheduler: Any) -> bool:
    """Whether it integrates the velocity of flow matching; the others remove noise."""
    return type(scheduler).__name__.startswith("FlowMatch") or bool(scheduler.config.get("use_flow_sigmas"))


def _check_flow(own: Any, built: Any) -> None:
    """Raises where one that can do either would do the other than the model was trained for."""
    if "use_flow_sigmas" not in _options(type(built)):
        return
    right = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}
    if _of_flow(own) and any(built.config.get(key) != value for key, value in right.items()):
        raise OptionError(
            f"scheduler: for a model of flow matching {type(built).__name__} needs the options use_flow_sigmas: true "
            "and prediction_type: flow_prediction"
        )
    if not _of_flow(own) and _of_flow(built):
        raise OptionError("scheduler: use_flow_sigmas is for models of flow matching, and this pipeline's is none")


def _try_out(scheduler: Any) -> None:
    """Sets a few timesteps: some values are looked at then, which would be after hours of merging."""
    shifted = {"mu": 1.0} if scheduler.config.get("use_dynamic_shifting") else {}
    scheduler.set_timesteps(4, **shifted)
