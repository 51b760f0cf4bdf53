"""What combinations at run time share: a rule for every step, plugged into the denoiser of a pipeline by hooks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any

import torch
from torch import nn

from mergelab.errors import OptionError
from mergelab.pipelines.live import Applied, applied_to
from mergelab.pipelines.opening import Pipeline, denoiser

Pass = Mapping[str, Sequence[float]]
"""Layer -> a factor for each adapter, in the order in which they were applied: 1 is its weight, 0 leaves it out."""

Rule = Callable[[int, int], Sequence[Pass]]
"""(step, number of steps) -> how the denoiser runs in this step; what several passes return is averaged."""


class Combination(ABC):
    """A way to combine adapters while an image is made.

    It acts on the denoiser (the UNet or transformer). Text encoders, which run once before the first step, keep all
    adapters at their weights.
    """

    @abstractmethod
    def rule(self, applied: Applied) -> Rule:
        """What happens in each step, for the adapters of one denoiser.

        Raises:
            OptionError: they are not as many as the rule is for.
        """

    def attach(self, pipeline: Pipeline) -> Attached:
        """Plugs this into a pipeline to which `ml.apply` has applied adapters; every image is then made so.

        Schedulers of second order evaluate the denoiser more often than they are asked to: each evaluation is a step.

        Returns:
            What takes it out again: `.detach()`, or the end of a `with` statement.

        Raises:
            OptionError: no adapter changes the denoiser; another combination is attached.
        """
        model = denoiser(pipeline)
        applied = applied_to(model)
        if applied is None or not applied.layers:
            raise OptionError(
                f"no adapter is active in the {type(model).__name__} of the pipeline: apply some first "
                "(ml.apply(pipeline, loras))"
            )
        if applied.detach:
            raise OptionError("another combination is attached to the pipeline: detach it first")
        return Attached(pipeline, model, applied, self.rule(applied))


class Attached:
    """A combination in a pipeline; as a context manager it detaches itself."""

    def __init__(self, pipeline: Pipeline, model: nn.Module, applied: Applied, rule: Rule) -> None:
        self._pipeline, self._applied, self._rule = pipeline, applied, rule
        self._passes: Sequence[Pass] = ()
        self._current: Pass | None = None
        self._timesteps: Any = None
        self._first = 0
        self._hooks = (
            model.register_forward_pre_hook(self._before, with_kwargs=True),
            model.register_forward_hook(self._after, with_kwargs=True),
        )
        applied.detach = self.detach

    def detach(self) -> None:
        """Takes the combination out: all adapters are active at their weights again."""
        for hook in self._hooks:
            hook.remove()
        if self._applied.detach == self.detach:
            self._applied.detach = None
            self._applied.weigh()

    def __enter__(self) -> Attached:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.detach()

    def _before(self, model: nn.Module, args: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        timestep = keywords["timestep"] if "timestep" in keywords else args[1]
        step, steps = self._moment(timestep)
        if step == 0:
            self._current = None  # in between the user may have called pipe.set_adapters
        self._passes = self._rule(step, steps)
        self._set(self._passes[0])

    def _after(self, model: nn.Module, args: tuple[Any, ...], keywords: dict[str, Any], output: Any) -> Any:
        outputs = [output]
        for own in self._passes[1:]:
            self._set(own)
            outputs.append(model.forward(*args, **keywords))
        return output if len(outputs) == 1 else _mean(outputs)

    def _moment(self, timestep: Any) -> tuple[int, int]:
        """The step of this image, from 0, and how many it has; image to image begins in the middle of the timesteps."""
        scheduler = self._pipeline.scheduler
        index = position(scheduler, timestep)
        if scheduler.timesteps is not self._timesteps:  # they are set anew for every image
            self._timesteps, self._first = scheduler.timesteps, index
        steps = max(1, len(scheduler.timesteps) - self._first)
        return min(max(index - self._first, 0), steps - 1), steps

    def _set(self, factors: Pass) -> None:
        if factors != self._current:
            self._applied.weigh(factors)
            self._current = factors


def position(scheduler: Any, timestep: Any) -> int:
    """Where a scheduler is in its timesteps.

    Example:
        >>> from diffusers import DDIMScheduler
        >>> scheduler = DDIMScheduler()
        >>> scheduler.set_timesteps(10)
        >>> [position(scheduler, timestep) for timestep in scheduler.timesteps[:2]]
        [0, 1]
    """
    if hasattr(scheduler, "step_index"):
        known = (scheduler.step_index, getattr(scheduler, "begin_index", None), 0)
        return next(index for index in known if index is not None)
    now = torch.as_tensor(timestep).flatten()[0]  # transformers are told it for every image of a batch
    return int((scheduler.timesteps.cpu() - now.cpu()).abs().argmin())


def everywhere(applied: Applied, factors: Sequence[float]) -> Pass:
    """The same factors in every layer."""
    return dict.fromkeys(applied.layers, tuple(factors))


def alone(applied: Applied) -> list[Pass]:
    """For each adapter the pass in which it alone is active."""
    count = len(applied.names)
    return [everywhere(applied, [float(i == j) for j in range(count)]) for i in range(count)]


def _mean(outputs: Sequence[Any]) -> Any:
    """Of the predictions of a denoiser, whether it returns a tuple or an object with the field `sample`."""
    first = outputs[0]
    mean = torch.stack([output[0] for output in outputs]).mean(dim=0)
    return (mean, *first[1:]) if isinstance(first, tuple) else type(first)(sample=mean)
