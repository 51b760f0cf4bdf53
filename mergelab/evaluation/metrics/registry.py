"""The table of metrics, by the names that a configuration has for them, and how to add one."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pkgutil import resolve_name
from typing import Any, get_args

import pandas as pd

from mergelab.checks import did_you_mean, is_number, short_repr, takes
from mergelab.errors import OptionError
from mergelab.evaluation.config import Config
from mergelab.evaluation.metrics.metric import ComparesWith, Description, Metric, Range, Setup
from mergelab.evaluation.metrics.user import MetricFunction, UserMetric, source_of
from mergelab.pipelines.opening import usual_device

_TABLE = (
    "mergelab.evaluation.metrics.judge:Nearness",
    "mergelab.evaluation.metrics.judge:Judge",
    "mergelab.evaluation.metrics.clip:ClipText",
    "mergelab.evaluation.metrics.lpips:Lpips",
    "mergelab.evaluation.metrics.clip:ClipImage",
    "mergelab.evaluation.metrics.dino:Dino",
)
METRICS: tuple[type[Metric], ...] = tuple(map(resolve_name, _TABLE))
"""Those that come with mergelab; of metrics that look for the same, the sharper first."""

_BUILT_IN = {metric.description.name: metric for metric in METRICS}
_REGISTERED: dict[str, UserMetric] = {}


def register_metric(
    name: str,
    *,
    higher_is_better: bool = True,
    version: str = "",
    compares_with: ComparesWith | None = None,
    range: Range | None = None,
) -> Callable[[MetricFunction], MetricFunction]:
    """Decorator: makes a function a metric that `metrics: [name]` finds.

    The function gets the image, float (3, h, w) in [0, 1], its prompt, and the images it is compared with, by name:
    those of the same prompt and seed ("base", "single:<name>", "stack"), and its own with another seed
    ("base at seed 1"), which is what noise looks like. All of them are its own copies, to write to as it likes. What it
    returns is what it is:

    - one number: the mean over all prompts stands in the tables;
    - a number for each reference, a likeness or a distance of two images: analysed as `lpips` and `clip_image` are,
      with similarity to each adapter alone, each two variants compared, floor, ceiling and noise.

    Its scores are kept in the run folder until its own text changes. A name that is registered again, as in a cell of a
    notebook that is run twice, gets the new function.

    Args:
        name: what a configuration calls it.
        higher_is_better: the direction, False for a distance or a fault: it decides who wins, what is a ceiling and
            what is blind, and what the tables say.
        version: change it when something else changes that the function relies on, such as a model or another function:
            the images are then scored again.
        compares_with: "images" or "nothing", where it should not be told from the values; or "words" for a metric that
            returns, without looking at other images, one number for the prompt under "" and one for the concept of
            each adapter under "single:<name>": recovery, leakage and preservation are then computed from it.
        range: lowest and highest value it can take, such as (0, 1); a score outside fails. The better end is what two
            equal images score. If it is not given, a distance without a negative value starts at 0.

    Raises:
        OptionError: the name is none, or that of a metric of mergelab; an argument has a value that does not exist; or
            what is decorated is no function of an image, a prompt and references.

    Example:
        >>> @register_metric("brightness", range=(0, 1))
        ... def brightness(image, prompt, references):
        ...     return image.mean()
        >>> @register_metric("distance", higher_is_better=False)
        ... def distance(image, prompt, references):
        ...     return {name: (image - other).abs().mean() for name, other in references.items()}
        >>> for name in ("brightness", "distance"):
        ...     _ = _REGISTERED.pop(name)
    """
    if not isinstance(name, str) or not name.strip():
        raise OptionError(
            f"metric name {short_repr(name)}: expected a text, as in @mergelab.register_metric('sharpness')"
        )
    if name in _BUILT_IN:
        raise OptionError(f"metric {name!r} comes with mergelab; register yours under another name")
    if compares_with is not None and compares_with not in get_args(ComparesWith):
        known = ", ".join(map(repr, get_args(ComparesWith)))
        raise OptionError(f"metric {name!r}: compares_with={compares_with!r}: expected one of {known}")
    ends = (-math.inf, math.inf) if range is None else _ends(range)
    if ends is None:
        raise OptionError(
            f"metric {name!r}: range={short_repr(range)}: expected the lowest and the highest value, two numbers of "
            "magnitude 1e-20 to 1e9, or 0, or infinite"
        )
    description = Description(name, compares_with or "images", higher_is_better, ends)

    def add(function: MetricFunction) -> MetricFunction:
        if isinstance(function, type) or not callable(function) or not takes(function, 3):
            raise OptionError(
                f"metric {name!r}: expected a function (image, prompt, references), found {short_repr(function)}"
            )
        _REGISTERED[name] = UserMetric(function, description, compares_with is not None, source_of(function), version)
        return function

    return add


def _ends(values: Any) -> Range | None:
    """Two numbers that ascend; None where they are none."""
    try:
        low, high = values
    except (TypeError, ValueError):
        return None
    if not all(is_number(end) or (isinstance(end, float) and math.isinf(end)) for end in (low, high)):
        return None
    return (float(low), float(high)) if low < high else None


def metric_names() -> list[str]:
    """All that a configuration can name."""
    return [*_BUILT_IN, *_REGISTERED]


def built_in() -> list[Description]:
    """What the metrics that come with mergelab say of themselves, in the order of the table."""
    return [metric.description for metric in METRICS]


def check_metrics(config: Config) -> None:
    """Raises where a configuration names a metric that does not exist, or one for another world.

    Raises:
        OptionError: so.
    """
    for name in config.metrics:
        if name not in metric_names():
            known = did_you_mean(name, metric_names())
            raise OptionError(
                f"metrics: there is no {name!r}; {known}; one of your own: --import FILE.py that registers it"
            )
        if name in _BUILT_IN and _BUILT_IN[name].description.miniature_only and not config.miniature:
            raise OptionError(
                f"metrics: {name} reads images of the miniature world alone, and the pipeline is {config.pipeline!r}; "
                "leave it out, or evaluate miniature/sdxl or miniature/flux"
            )


def description_of(name: str) -> Description:
    """What a metric with a known name says of itself, without being opened."""
    return (_BUILT_IN[name] if name in _BUILT_IN else _REGISTERED[name]).description


def is_declared(name: str) -> bool:
    """Whether it is known what a metric compares with: of the user's own the values may have to tell."""
    return name in _BUILT_IN or _REGISTERED[name].declared


def open_metrics(config: Config) -> list[Metric]:
    """The metrics of a configuration with known names, loaded.

    Raises:
        OptionError: one whose model cannot be loaded.
    """
    setup = Setup(config, usual_device(config.device))
    names = dict.fromkeys(config.metrics)
    return [_BUILT_IN[name].open(setup) if name in _BUILT_IN else _REGISTERED[name] for name in names]


@dataclass(frozen=True)
class Profile:
    """What is known of an open metric where it is not itself.

    Attributes:
        description: as it says itself.
        settings: what else its scores depend on.
    """

    description: Description
    settings: Mapping[str, Any]

    def described(self, scores: pd.DataFrame) -> Description:
        """Its description, in the light of its scores (`reference` and `value` of each)."""
        own = _REGISTERED.get(self.description.name)
        return self.description if own is None else own.described(scores)


def profile_of(metric: Metric) -> Profile:
    """What can be sent of a metric."""
    own = isinstance(metric, UserMetric)  # which needs the scores themselves
    described = metric.description if own else metric.described(pd.DataFrame())
    return Profile(described, dict(metric.settings))


def registered_metrics() -> dict[str, UserMetric]:
    """Those of the user's own, to be sent to another process."""
    return dict(_REGISTERED)


def take_metrics(metrics: Mapping[str, UserMetric]) -> None:
    """Take over those of another process."""
    _REGISTERED.update(metrics)


def table_order(descriptions: Iterable[Description]) -> list[Description]:
    """As the table has them, then the user's as they were registered."""
    names = metric_names()
    return sorted(descriptions, key=lambda description: names.index(description.name))
