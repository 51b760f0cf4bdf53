"""The table of metrics, by the names that a configuration has for them, and how to add one."""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from torch import Tensor

from mergelab import miniature
from mergelab.errors import OptionError
from mergelab.evaluation.config import Clip, Config
from mergelab.evaluation.generation import device_of
from mergelab.evaluation.scorers import ClipModel, ClipText, ImageSimilarity, Judge, Lpips, Metric, Picture, dino
from mergelab.hints import did_you_mean

UserMetric = Callable[[Tensor, str, Mapping[str, Tensor]], "float | Mapping[str, float]"]


@dataclass
class _Registered:
    """A user's function as a metric."""

    function: UserMetric
    name: str
    higher_is_better: bool
    settings: Mapping[str, Any]
    compares: bool = True

    def score(self, picture: Picture, prompt: str, references: Mapping[str, Picture]) -> dict[str, float]:
        """A bare number has no reference."""
        value = self.function(picture.pixels, prompt, {key: other.pixels for key, other in references.items()})
        return {key: float(v) for key, v in value.items()} if isinstance(value, Mapping) else {"": float(value)}


_REGISTERED: dict[str, _Registered] = {}
NAMES = ("clip_text", "clip_image", "lpips", "dino", "judge")


def register_metric(
    name: str, *, higher_is_better: bool = True, version: str = ""
) -> Callable[[UserMetric], UserMetric]:
    """Decorator: makes a function a metric that `metrics: [name]` finds.

    The function gets the image, float (3, h, w) in [0, 1], its prompt, and the images it is compared with, by reference
    ("base", "single:<name>", "stack"); it returns a number, or one for each reference. Its scores are kept in the run
    folder until its own text changes. A name of your own that is registered again gets the new function.

    Args:
        name: what a configuration calls it.
        higher_is_better: recorded in the summary.
        version: change it when something else changes that the function relies on, such as a model or another function:
            the images are then scored again.

    Raises:
        OptionError: the name is that of a metric of mergelab.

    Example:
        >>> @register_metric("brightness")
        ... def brightness(image, prompt, references):
        ...     return image.mean()
        >>> _ = _REGISTERED.pop("brightness")
    """
    if name in NAMES:
        raise OptionError(f"metric {name!r} comes with mergelab; register yours under another name")

    def add(function: UserMetric) -> UserMetric:
        try:
            source = inspect.getsource(function)
        except (OSError, TypeError):  # typed at a prompt, or no function: scored again in every run
            source = str(time.time_ns())
        _REGISTERED[name] = _Registered(function, name, higher_is_better, {"source": source, "version": version})
        return function

    return add


def metric_names() -> list[str]:
    """All that a configuration can name."""
    return [*NAMES, *_REGISTERED]


def check_names(config: Config) -> None:
    """Raises where a configuration names a metric that does not exist, or the judge outside its world.

    Raises:
        OptionError: so.
    """
    for name in config.metrics:
        if name not in metric_names():
            raise OptionError(f"metrics: there is no {name!r}; {did_you_mean(name, metric_names())}")
    if "judge" in config.metrics and not config.miniature:
        raise OptionError("metrics: judge reads images of the miniature world alone; leave it out for other models")


def build(config: Config, concepts: Mapping[str, str]) -> list[Metric]:
    """The metrics of a configuration with known names, loaded.

    Raises:
        OptionError: one whose model cannot be loaded.
    """
    device = device_of(config)
    clip = lru_cache(lambda: ClipModel(*_clip_of(config), device))  # both metrics share it, and neither may need it
    known: dict[str, Callable[[], Metric]] = {
        "clip_text": lambda: ClipText(clip(), concepts),
        "clip_image": lambda: ImageSimilarity(clip(), "clip_image"),
        "lpips": lambda: Lpips(config.lpips or ("miniature" if config.miniature else "alex"), device),
        "dino": lambda: ImageSimilarity(dino(config.dino, device), "dino"),
        "judge": lambda: Judge(concepts),
        **{name: lambda metric=metric: metric for name, metric in _REGISTERED.items()},  # type: ignore[misc]
    }
    return [known[name]() for name in dict.fromkeys(config.metrics)]


def _clip_of(config: Config) -> tuple[str, str | None]:
    """The model's name and its weights: by default the miniature's own for a miniature pipeline."""
    if config.clip is None and config.miniature:
        return miniature.clip(), None
    clip = config.clip or Clip()
    if clip.model == "miniature":
        return miniature.clip(), None
    return clip.model, None if clip.model.startswith("local-dir:") else clip.pretrained
