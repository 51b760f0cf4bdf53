"""A configuration from a file or a mapping: read, overridden, checked, with one clear sentence for what is wrong."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from mergelab import miniature
from mergelab.checks import did_you_mean, short_repr
from mergelab.describing import short_name
from mergelab.errors import OptionError
from mergelab.evaluation.aitoolkit import evaluation_content
from mergelab.evaluation.config import (
    Clip,
    Config,
    Distractors,
    Generation,
    Lora,
    Memory,
    OfPipeline,
    Part,
    Prompt,
    Select,
    Workers,
)
from mergelab.evaluation.recipes import recipes
from mergelab.evaluation.selection import check_selection
from mergelab.evaluation.sets import NAME, adapter_sets, explicit_sets
from mergelab.formats.aitoolkit import is_generate_config
from mergelab.formats.yaml_files import beside, read_yaml
from mergelab.pipelines.opening import shipped_name
from mergelab.ranks import Rule, rank_record

Read = TypeVar("Read", bound=OfPipeline)


def read_config(
    source: str | os.PathLike[str] | Mapping[str, Any] | Config,
    overrides: Iterable[str] = (),
    *,
    pipeline: str | None = None,
) -> Config:
    """A configuration from a YAML file, a mapping or as it is, with overrides such as "seeds=4", "clip.model=RN50".

    A generate configuration of AI Toolkit is read as one, too. Relative paths in a file are relative to the file. What
    lies at a path comes before what ships under that name. `pipeline`, the name of one that is handed in, stands in
    where the key is missing.

    Raises:
        SourceError: the file is not there.
        OptionError: it is no YAML, or a key or a value is wrong; the sentence names the key and the nearest valid one.
            Or the key names another pipeline than the one handed in, as far as that is known.

    Example:
        >>> read_config({"pipeline": "miniature/sdxl", "loras": [{"path": "a"}], "prompts": ["a sks"], "sedes": 2})
        Traceback (most recent call last):
            ...
        mergelab.errors.OptionError: config: unknown key 'sedes'; did you mean 'seeds'? known: pipeline, ...
    """
    content, where = content_of(source)
    if not isinstance(source, (Mapping, Config)) and is_generate_config(content):
        content = evaluation_content(Path(source))
    config, folder = validated(Config, source, content, overrides, pipeline, "pipeline, loras, merges, prompts, seeds")
    config = _with_sets(config, folder)
    if len(set(config.seeds)) < len(config.seeds):
        raise OptionError(f"{where}: seeds: {max(config.seeds, key=config.seeds.count)!r} is given twice")
    # What is wrong is found before anything is computed.
    sets = adapter_sets(config)
    for of in sets:
        recipes(config, of)
    if config.select is not None:
        check_selection(config.select, config, sets)
    return config


def _with_sets(config: Config, folder: Path) -> Config:
    """With all adapters under `loras`, and the sets as they are named there."""
    sets = explicit_sets(config)
    pool = named(config.loras, folder)
    known = {given.path: lora.name for given, lora in zip(config.loras, pool)} | {lora.name: lora.name for lora in pool}
    used = (one for roles in sets for role, one in roles.items() if role != NAME and one not in known)
    paths = list(dict.fromkeys(used))
    added = named([Lora(path=path) for path in paths], folder, (lora.name for lora in pool))
    known |= dict(zip(paths, (lora.name for lora in added)))
    sets = [{role: one if role == NAME else known[one] for role, one in roles.items()} for roles in sets]
    return config.model_copy(update={"loras": pool + added, "sets": sets, "pairs": None, "distractors": None})


def validated(
    model: type[Read],
    source: str | os.PathLike[str] | Mapping[str, Any] | BaseModel,
    content: Any,
    overrides: Iterable[str],
    pipeline: str | None,
    keys: str,
    models: Mapping[str, type[BaseModel]] | None = None,
) -> tuple[Read, Path]:
    """A configuration of some kind with its overrides, and the folder that its paths are relative to.

    Args:
        model: the kind.
        source: where it is from.
        content: what that holds.
        overrides: "seeds=4", "clip.model=RN50", ...
        pipeline: the name of one that is handed in.
        keys: some that a configuration of this kind has, for messages.
        models: key -> what lies there; None: as in an evaluation.

    Raises:
        OptionError: a key or a value is wrong, or another pipeline is named than the one handed in.
    """
    where, folder = "config", Path()
    if isinstance(source, (str, os.PathLike)):
        where, folder = str(source), Path(source).parent
    if not isinstance(content, dict):
        raise OptionError(f"{where}: expected a mapping of keys such as {keys}")
    if isinstance(overrides, str):
        raise OptionError(f"overrides={overrides!r}: expected a list, such as [{overrides!r}]")
    for text in overrides:
        override(content, text)
    if pipeline is not None and not content.get("pipeline"):
        content["pipeline"] = pipeline
    try:
        config = model.model_validate(content)
    except ValidationError as error:
        raise OptionError(f"{where}: {sentence(error, model, MODELS if models is None else models)}") from None
    if not config.pipeline:
        raise OptionError(f"{where}: the key 'pipeline' is missing")
    if pipeline is not None and pipeline.startswith(miniature.PREFIX) and shipped_name(config.pipeline) != pipeline:
        raise OptionError(
            f"{where}: the key 'pipeline' names {config.pipeline!r}, and the pipeline handed in is {pipeline!r}; leave "
            "the key out, or hand in the one that it names"
        )
    here = beside(config.pipeline, folder)
    paths = {"pipeline": str(here)} if here is not None and here.is_dir() else {}
    return config.model_copy(update=paths), folder


def content_of(source: str | os.PathLike[str] | Mapping[str, Any] | BaseModel) -> tuple[Any, str]:
    """What a configuration holds, in the types that YAML has, and what messages call it.

    Raises:
        SourceError: a file is not there.
        OptionError: it is no YAML.
    """
    if isinstance(source, (BaseModel, Mapping)):
        return plain(source.model_dump() if isinstance(source, BaseModel) else source), "config"
    return read_yaml(Path(source)), str(source)


def plain(value: Any) -> Any:
    """A copy in the types that YAML has: numbers of NumPy become numbers, tuples lists, a rule of ranks a mapping."""
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, Rule):
        return rank_record(value)
    return value.item() if hasattr(value, "item") and hasattr(value, "dtype") else value


def override(content: dict[str, Any], text: str) -> None:
    """Sets one dotted key: "seeds=4", "loras.0.weight=0.7"; the value is read as YAML."""
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise OptionError(f"--set {text}: expected KEY=VALUE, such as seeds=4 or clip.model=RN50")
    *path, last = key.split(".")
    place: Any = content
    for part in path:
        if isinstance(place, list) and part.isdigit() and int(part) < len(place):
            place = place[int(part)]
        elif isinstance(place, dict):
            if place.get(part) is None:
                place[part] = {}
            place = place[part]
        else:
            raise OptionError(f"--set {text}: there is no {part!r} to go into")
    try:
        parsed = yaml.safe_load(value)
    except yaml.YAMLError:
        raise OptionError(f"--set {text}: {value!r} is no YAML value") from None
    if isinstance(place, list) and last.isdigit() and int(last) < len(place):
        place[int(last)] = parsed
    elif isinstance(place, dict):
        place[last] = parsed
    else:
        raise OptionError(f"--set {text}: there is no {last!r} to set")


def sentence(error: ValidationError, root: type[BaseModel], models: Mapping[str, type[BaseModel]]) -> str:
    """The first thing that is wrong, in words.

    Args:
        error: of pydantic.
        root: the configuration that was read.
        models: key of it -> what lies there.
    """
    errors = error.errors(include_url=False)
    # A misspelt key says more than the key that is missing for it.
    first = next((e for e in errors if e["type"] == "extra_forbidden"), errors[0])
    # Where a value may have several types, the place ends in one of them.
    where = ".".join(str(part) for part in first["loc"] if part != "float" and not str(part).startswith("dict["))
    if first["type"] == "extra_forbidden":
        key = str(first["loc"][-1])
        fields = list(_model_at(first["loc"][:-1], root, models).model_fields)
        return f"unknown key {where!r}; {did_you_mean(key, fields)}"
    if first["type"] == "missing":
        return f"the key {where!r} is missing"
    if first["type"] == "too_short":
        return f"{where}: expected at least {first['ctx']['min_length'] if first['ctx']['min_length'] > 1 else 'one'}"
    message = first["msg"][0].lower() + first["msg"][1:]
    return f"{where}: {message}, got {short_repr(first['input'])}"


MODELS: Mapping[str, type[BaseModel]] = {
    "loras": Lora, "prompts": Prompt, "distractors": Distractors, "select": Select, "clip": Clip,
    "generation": Generation, "memory": Memory, "executor": Workers,
}  # fmt: skip
"""Key of a configuration -> what lies there."""


def _model_at(
    path: Iterable[int | str], root: type[BaseModel], models: Mapping[str, type[BaseModel]]
) -> type[BaseModel]:
    """The model whose keys are valid at a place of the configuration."""
    keys = [str(part) for part in path]
    return Part if keys[:1] == ["select"] and len(keys) > 1 else models.get(next(iter(keys), ""), root)


def named(loras: list[Lora], folder: Path, taken: Iterable[str] = ()) -> list[Lora]:
    """With a name for each, and paths that no longer depend on where the file lies."""
    named = []
    for lora in loras:
        here = beside(lora.path, folder)
        found = _shipped(lora) if here is None else lora
        path = found.path if here is None else str(here)
        photos = beside(lora.references, folder) if lora.references else None
        filled = {"name": found.name or short_name(found.path), "path": path}
        named.append(found.model_copy(update=filled | ({"references": str(photos)} if photos else {})))
    names = [*taken, *(lora.name for lora in named)]
    if double := next((name for name in names if names.count(name) > 1), None):
        raise OptionError(f"loras: two are called {double!r}; give each a name of its own")
    return named


def _shipped(lora: Lora) -> Lora:
    """An adapter "miniature/sdxl/ghost" as the file that ships, with its concept and its trigger."""
    if not lora.path.startswith(miniature.PREFIX) or lora.path.count("/") != 2:
        return lora
    try:
        adapter = miniature.adapter(lora.path)
    except OptionError as error:
        raise OptionError(f"loras: {error}") from None
    filled = {
        "name": lora.name or adapter.name,
        "path": str(adapter.path),
        "concept": lora.concept or adapter.prompt,
        "trigger": lora.trigger or adapter.trigger,
        "always": lora.always or adapter.kind == "turbo",
    }
    return lora.model_copy(update=filled)
