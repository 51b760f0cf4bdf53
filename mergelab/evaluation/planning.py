"""What a configuration would take, and what it could tell, before anything is merged or drawn."""

from __future__ import annotations

import json
import math
import os
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from mergelab.evaluation.config import Config
from mergelab.evaluation.design import Design, design_of
from mergelab.evaluation.metrics.registry import check_metrics
from mergelab.evaluation.opening import opened, pipeline_keywords, threads_for
from mergelab.evaluation.photographs import all_photographs
from mergelab.evaluation.reading import read_config
from mergelab.evaluation.recipes import recipes
from mergelab.evaluation.selection import reported
from mergelab.evaluation.sets import AdapterSet, adapter_sets
from mergelab.evaluation.statistics import resolvable_with
from mergelab.evaluation.store import known_seconds
from mergelab.evaluation.summary import SUMMARY
from mergelab.evaluation.tracking.registry import open_trackers
from mergelab.pipelines.combinations.registry import COMBINATIONS
from mergelab.pipelines.images import generate_images
from mergelab.pipelines.opening import Pipeline, name_of
from mergelab.tables import counted

USUAL_DEVIATION = 0.3
"""Between clusters, of the paired difference of two merges that score from 0 to 1: what a plan assumes where no run of
the configuration is there to be asked. On the pairs of the miniature models it was .13 to .30."""


EQUAL = 1e-4
"""Two variants whose difference deviates by less are the same, and say nothing of others."""


@dataclass(frozen=True)
class Plan:
    """What a run takes, and what it can tell.

    Attributes:
        sets: of adapters.
        merges: files that are written.
        prompts: how many prompts of all sets call several adapters, one, or none.
        images: kind of variant -> images that are drawn; what sets share is drawn once.
        seconds: of an image; NaN where it was not measured.
        measured: how.
        design: how much the primary contrast rests on.
        deviation: standard deviation of the paired difference between clusters, and where it is from.
        resolvable: the difference between two merges that 80 % of such runs would tell from zero.
    """

    sets: int
    merges: int
    prompts: Mapping[str, int]
    images: Mapping[str, int]
    seconds: float
    measured: str
    design: Design
    deviation: tuple[float, str]
    resolvable: float

    def __str__(self) -> str:
        total = sum(self.images.values())
        kinds = ", ".join(f"{number} {kind}" for kind, number in self.images.items() if number)
        drawing = f"{counted(total, 'image')}: {kinds}"
        if math.isfinite(self.seconds):
            each = f"{self.seconds:.3g} s an image ({self.measured})"
            drawing += f"\nabout {_duration(total * self.seconds)} of drawing, at {each}"
        else:
            drawing += f"\nhow long an image takes was not measured: {self.measured}"
        said = ", ".join(f"{number} {kind}" for kind, number in self.prompts.items() if number)
        lines = [
            f"{counted(self.sets, 'set')} of adapters, {counted(self.merges, 'merge')}",
            f"{counted(sum(self.prompts.values()), 'prompt')}: {said}",
            drawing,
            f"design: {self.design.sentence()}",
        ]
        if math.isfinite(self.resolvable):
            deviation, source = self.deviation
            lines.append(
                f"a difference of {self.resolvable:.2g} between two merges would be told from zero in 80 % of runs, "
                f"where it deviates by {deviation:.2g} between clusters ({source})"
            )
        else:
            lines.append("below five clusters there are no intervals: raw values only")
        return "\n".join([*lines, *filter(None, [self.design.warning()])])


def plan(
    config: str | os.PathLike[str] | Mapping[str, Any] | Config,
    out: str | os.PathLike[str] | None = None,
    *,
    pipeline: Pipeline | None = None,
    overrides: Iterable[str] = (),
    measure: bool = True,
) -> Plan:
    """How many merges and images a configuration asks for, how long they take, and which differences it can resolve.

    Args:
        config, pipeline, overrides: as of `evaluate`.
        out: the run folder, if there is one: what is known of it is used. Nothing is written.
        measure: draw one image of the base model, where no run has measured one yet.

    Raises:
        OptionError, SourceError: as `evaluate`, for what is wrong with the configuration.

    Example:
        >>> small = {
        ...     "pipeline": "miniature/sdxl",
        ...     "loras": ["miniature/sdxl/ghost", "miniature/sdxl/day"],
        ...     "merges": [{"method": "svd", "rank": [8, 16]}],
        ...     "prompts": ["a sks in szn style", "a sks", "a red square"],
        ...     "seeds": 2,
        ... }
        >>> dict(plan(small, measure=False).images)
        {'base': 6, 'alone': 12, 'stack': 6, 'merges': 12}
    """
    settings = read_config(config, overrides, pipeline=None if pipeline is None else name_of(pipeline))
    check_metrics(settings)
    sets = adapter_sets(settings)
    open_trackers(settings.log_with, Path(out or "."))
    all_photographs(settings.loras)
    design = design_of(settings, reported(settings, sets))
    deviation = _deviation(out, settings.metrics)
    seconds, measured = _seconds(settings, out, pipeline, sets, measure)
    return Plan(
        len(sets),
        sum(r.keywords["method"] not in COMBINATIONS for one in sets for r in recipes(settings, one)),
        _prompts(sets),
        _images(settings, sets),
        seconds,
        measured,
        design,
        deviation,
        resolvable_with(deviation[0], design.clusters),
    )


def _prompts(sets: Sequence[AdapterSet]) -> dict[str, int]:
    kinds = {0: "call none", 1: "call one adapter"}
    found = Counter(kinds.get(len(prompt.calls), "call several") for one in sets for prompt in one.prompts)
    return {kind: found[kind] for kind in ("call several", *kinds.values())}


def _images(config: Config, sets: Sequence[AdapterSet]) -> dict[str, int]:
    """Sets share images of the base model and of single adapters by the same prompt."""
    drawn: dict[str, set[Any]] = {"base": set(), "alone": set(), "stack": set(), "merges": set()}
    for one in sets:
        for prompt in (prompt.text for prompt in one.prompts):
            drawn["base"].add(prompt)
            drawn["alone"] |= {(lora.name, prompt) for lora in one.adapters.values()}
            drawn["stack"] |= {(frozenset(one.names), prompt)} if len(one.adapters) > 1 else set()
            drawn["merges"] |= {(one.name, recipe.label, prompt) for recipe in recipes(config, one)}
    return {kind: len(units) * len(config.seeds) for kind, units in drawn.items()}


def _seconds(
    config: Config,
    out: str | os.PathLike[str] | None,
    given: Pipeline | None,
    sets: Sequence[AdapterSet],
    measure: bool,
) -> tuple[float, str]:
    """Of an image, and how that is known."""
    if out is not None and (known := known_seconds(Path(out))):
        return median(known), f"the median of {counted(len(known), 'image')} of this run"
    if not measure:
        return math.nan, "it was not asked for"
    with threads_for(config), opened(config, given) as (pipeline, _):
        keywords, prompt = pipeline_keywords(config, pipeline), sets[0].prompts[0].text
        unit = [(prompt, config.seeds[0])]
        generate_images(pipeline, unit, keywords | {"num_inference_steps": 1})  # the first takes longer than others
        start = time.perf_counter()
        generate_images(pipeline, unit, keywords)
        return time.perf_counter() - start, "one image of the base model, drawn now"


def _deviation(out: str | os.PathLike[str] | None, metrics: Sequence[str]) -> tuple[float, str]:
    """Of the paired difference between clusters: as an earlier run found it, or as is usual."""
    path = Path(out) / SUMMARY if out is not None else None
    if path is not None and path.exists():
        summary = json.loads(path.read_text(encoding="utf-8"))
        asked = summary.get("primary") or {}
        own = [
            one["deviation"]
            for one in summary.get("contrasts", ())
            if asked.get("metric") in metrics
            and all(one[key] == value for key, value in asked.items())
            and (one["deviation"] or 0) > EQUAL
        ]
        if own:
            return median(own), f"the median of {counted(len(own), 'contrast')} of this run"
    return USUAL_DEVIATION, "assumed, as between pairs of the miniature models; an earlier run would tell"


def _duration(seconds: float) -> str:
    """As people say it.

    Example:
        >>> _duration(42.0), _duration(600.0), _duration(9000.0)
        ('42 seconds', '10 minutes', '2.5 hours')
    """
    for unit, name in ((3600.0, "hours"), (60.0, "minutes")):
        if seconds >= 2 * unit:
            return f"{seconds / unit:.2g} {name}"
    return f"{seconds:.0f} seconds"
