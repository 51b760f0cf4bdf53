"""A search's configuration from a file or a mapping: read, overridden, checked, and what of it an evaluation has."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pydantic import BaseModel

from mergelab.errors import OptionError
from mergelab.evaluation.config import Config, Prompt
from mergelab.evaluation.metrics.registry import check_metrics, description_of, is_declared
from mergelab.evaluation.reading import MODELS, content_of, named, read_config, validated
from mergelab.evaluation.sets import adapter_sets
from mergelab.tuning.config import Balance, HeldOut, TuneConfig
from mergelab.tuning.scenes import Asked, check_parts, halves

SHARED = (
    "pipeline",
    "loras",
    "clip",
    "lpips",
    "dino",
    "scheduler",
    "generation",
    "memory",
    "dtype",
    "device",
    "executor",
)
"""Keys that a search has as an evaluation has them."""
OF_ONE = {"blocks": ("settings", "keep"), "optuna": ("trials", "space", "objectives", "prune", "storage")}
"""Search -> the keys that it alone reads."""
_MODELS: dict[str, type[BaseModel]] = {**MODELS, "held_out": HeldOut, "balance": Balance}


def read_tuning(
    source: str | os.PathLike[str] | Mapping[str, Any] | TuneConfig,
    overrides: Iterable[str] = (),
    *,
    pipeline: str | None = None,
) -> TuneConfig:
    """A configuration from a YAML file, a mapping or as it is, with overrides such as "settings=12", "balance.own=1".

    Relative paths in a file are relative to the file. `pipeline`, the name of one that is handed in, stands in where
    the key is missing.

    Raises:
        SourceError: the file is not there.
        OptionError: it is no YAML, or a key or a value is wrong; a part of the score has no prompts; a metric that does
            not exist, or that cannot be a score.

    Example:
        >>> read_tuning({"pipeline": "miniature/sdxl", "loras": ["a", "b"], "prompts": ["a sks"], "setings": 2})
        Traceback (most recent call last):
            ...
        mergelab.errors.OptionError: config: unknown key 'setings'; did you mean 'settings'? known: pipeline, ...
    """
    content, _ = content_of(source)
    config, folder = validated(
        TuneConfig, source, content, overrides, pipeline, "pipeline, loras, prompts, search", _MODELS
    )
    config = config.model_copy(update={"loras": named(config.loras, folder)})
    config = config.model_copy(update={"score": config.score or ("judge" if config.miniature else "clip_text")})
    _check(config)
    return config


def evaluation_of(config: TuneConfig, prompts: Sequence[Asked] | None = None, **keys: Any) -> Config:
    """The evaluation that shares a search's pipeline and adapters, with these prompts and further keys.

    Raises:
        OptionError: a key or a value is wrong.
    """
    shared = {key: getattr(config, key) for key in SHARED}
    texts = config.prompts if prompts is None else [Prompt(text=one.text, calls=sorted(one.calls)) for one in prompts]
    loras = [lora.model_copy(update={"weight": lora.strength}) for lora in config.loras]
    return read_config(Config(**{**shared, "loras": loras, "prompts": list(texts), **keys}))


def prompts_of(config: TuneConfig) -> tuple[list[Asked], list[Asked]]:
    """The prompts to search on, and those that are kept for the winner, with the adapters that they call."""
    given = config.held_out.prompts
    asked = _asked(config, config.prompts)
    return halves(asked) if given is None else (asked, _asked(config, given))


def seeds_of(config: TuneConfig) -> tuple[list[int], list[int]]:
    """The seeds to search with, and those that are kept for the winner."""
    given, last = config.held_out.seeds, max(config.seeds)
    return list(config.seeds), [last + 1 + place for place in range(len(config.seeds))] if given is None else list(
        given
    )


def _asked(config: TuneConfig, prompts: Sequence[str | Prompt]) -> list[Asked]:
    of = adapter_sets(evaluation_of(config.model_copy(update={"prompts": list(prompts)})))[0]
    names = {role: lora.name for role, lora in of.adapters.items()}
    return [Asked(prompt.text, frozenset(names[role] for role in prompt.calls)) for prompt in of.prompts]


def _check(config: TuneConfig) -> None:
    """What is wrong is found before anything is computed."""
    _check_search(config)
    for lora in config.loras:
        if isinstance(lora.strength, dict):
            raise OptionError(f"loras: {lora.name}: weight: a search starts from one number, found several")
        if lora.strength == 0:
            raise OptionError(f"loras: {lora.name}: weight: a search multiplies it, and it is 0; leave the adapter out")
    for key, prompts in zip(("prompts", "held_out.prompts"), prompts_of(config)):
        try:
            check_parts(prompts, config.balance)
        except OptionError as error:
            raise OptionError(str(error).replace("prompts", key, 1)) from None
    searched, kept = seeds_of(config)
    for key, seeds in (("seeds", searched), ("held_out.seeds", kept)):
        if len(set(seeds)) < len(seeds):
            raise OptionError(f"{key}: {max(seeds, key=seeds.count)!r} is given twice")
    if config.held_out.prompts is not None and config.held_out.seeds is not None:
        shared = {(p.text, s) for p in prompts_of(config)[0] for s in searched}
        if both := shared & {(p.text, s) for p in prompts_of(config)[1] for s in kept}:
            text, seed = sorted(both)[0]
            raise OptionError(
                f"held_out: {text!r} with seed {seed} is among what is searched on; keep it for one of them"
            )
    if config.keep > config.settings:
        raise OptionError(f"keep: {config.keep} of {config.settings} settings; expected at most as many")
    if config.search == "blocks":
        _check_merge(config)
    check_metrics(evaluation_of(config, metrics=list(dict.fromkeys([str(config.score), *config.held_out.metrics]))))
    _check_score(config, str(config.score))


def _check_search(config: TuneConfig) -> None:
    """Raises where a key has a value and the search does not read it."""
    given = config.model_dump(exclude_defaults=True)
    for search, keys in OF_ONE.items():
        for key in keys:
            if key in given and search != config.search:
                raise OptionError(f"{key}: only 'search: {search}' reads it, and this search is {config.search!r}")


def _check_merge(config: TuneConfig) -> None:
    """Raises where the winner could not be written as it is asked for."""
    if "weights" in config.merge:
        raise OptionError("merge: weights are what is searched; those to start from stand under loras")
    if several := next((key for key, value in config.merge.items() if isinstance(value, list)), None):
        raise OptionError(f"merge: a list is an axis of an evaluation; give {several} one value")
    evaluation_of(config, merges=[config.merge])


def _check_score(config: TuneConfig, name: str) -> None:
    """Raises where the metric has nothing to say of an adapter that prompts call."""
    metric = description_of(name)
    called = frozenset[str]().union(*(prompt.calls for prompts in prompts_of(config) for prompt in prompts))
    for lora in config.loras:
        if lora.name in called and metric.compares_with == "words" and not lora.concepts:
            raise OptionError(f"score: {name} sees an adapter by its concept, and {lora.name} has none under loras")
        if lora.name in called and metric.photographs and not lora.references:
            raise OptionError(
                f"score: {name} sees an adapter by photographs, and {lora.name} has none: give it references, a folder"
            )
    if metric.compares_with == "images" and not metric.photographs and is_declared(name):
        raise OptionError(
            f"score: {name} compares whole pictures and sees no concept; expected a metric of words (judge, "
            "clip_text), of photographs (dino, clip_image), or one of your own that gives one number"
        )
