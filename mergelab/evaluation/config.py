"""The configuration of an evaluation: typed, validated, and one clear sentence for what is wrong with it."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from itertools import product
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic_core import PydanticCustomError

from mergelab.checks import shown
from mergelab.errors import OptionError, SourceError
from mergelab.hints import did_you_mean
from mergelab.layer import short_name
from mergelab.methods.registry import strategy_of
from mergelab.ranks import RankBudget, check_rank

MINIATURE = "miniature/"


class _Strict(BaseModel):
    """Unknown keys are errors, and so are values of another type: "8" is no number, true is none either."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, protected_namespaces=())


class Lora(_Strict):
    """One adapter; a path alone will do.

    Attributes:
        path: whatever `mergelab.load` takes, or `miniature/sdxl/ghost`.
        name: how tables call it; the file's name where it is left out.
        weight: strength, in the stack and in every merge; a mapping gives one for each component or layer pattern.
        concept: a prompt of its concept alone, "a photo of sks"; without one nothing is recovered, only compared.
        trigger: words of a prompt that call it; where it is left out, the words of the concept that are in no other
            adapter's concept and are more than articles.
    """

    path: str
    name: str = ""
    weight: float | dict[str, float] = 1.0
    concept: str = ""
    trigger: str = ""


class Clip(_Strict):
    """A CLIP of open_clip: `model` and `pretrained` as in `open_clip.create_model_and_transforms`."""

    model: str = "ViT-B-32"
    pretrained: str | None = "laion2b_s34b_b79k"


class Generation(_Strict):
    """Keywords of a call of the pipeline; what is None is left to the pipeline.

    `options` holds any other keyword: `{true_cfg_scale: 4.0, max_sequence_length: 256}`.
    """

    steps: Annotated[int, Field(ge=1)] | None = None
    guidance: float | None = None
    width: Annotated[int, Field(ge=1)] | None = None
    height: Annotated[int, Field(ge=1)] | None = None
    negative_prompt: str | None = None
    options: dict[str, Any] = {}

    def keywords(self) -> dict[str, Any]:
        """As the pipeline calls them."""
        named = {
            "num_inference_steps": self.steps,
            "guidance_scale": self.guidance,
            "width": self.width,
            "height": self.height,
            "negative_prompt": self.negative_prompt,
        }
        return {key: value for key, value in named.items() if value is not None} | self.options


class Memory(_Strict):
    """What makes a large model fit.

    Attributes:
        offload: "model" keeps one component at a time on the GPU, "sequential" one layer (slow, smallest).
        vae_tiling: decode in tiles.
        compile: torch.compile of the repeated blocks of the transformer or UNet.
    """

    offload: Literal["none", "model", "sequential"] = "none"
    vae_tiling: bool = False
    compile: bool = False


def _lora(value: Any) -> Any:
    return {"path": value} if isinstance(value, str) else value


def _seeds(value: Any) -> Any:
    if not isinstance(value, (int, list)) or isinstance(value, bool) or (isinstance(value, int) and value < 1):
        raise PydanticCustomError("seeds", "expected how many (at least 1), or a list")
    return list(range(value)) if isinstance(value, int) else value


class Config(_Strict):
    """One evaluation, as its YAML file holds it; `expanded_merges` is the grid that its axes span."""

    pipeline: str
    loras: Annotated[list[Annotated[Lora, BeforeValidator(_lora)]], Field(min_length=1)]
    merges: list[dict[str, Any]] = []
    prompts: Annotated[list[str], Field(min_length=1)]
    seeds: Annotated[list[Annotated[int, Field(ge=0)]], BeforeValidator(_seeds), Field(min_length=1)] = [0, 1, 2, 3]
    metrics: Annotated[list[str], Field(min_length=1)] = ["clip_text", "clip_image", "lpips"]
    clip: Clip | None = None
    lpips: Literal["alex", "vgg", "squeeze", "miniature"] | None = None
    dino: str = "facebook/dinov2-base"
    generation: Generation = Generation()
    memory: Memory = Memory()
    dtype: Literal["float32", "float16", "bfloat16"] | None = None
    device: str | None = None

    @property
    def miniature(self) -> str | None:
        """The name of the miniature pipeline that is evaluated, if it is one."""
        return self.pipeline.removeprefix(MINIATURE) if self.pipeline.startswith(MINIATURE) else None


def read(source: str | os.PathLike[str] | Mapping[str, Any] | Config, overrides: Iterable[str] = ()) -> Config:
    """A configuration from a YAML file, a mapping or as it is, with overrides such as "seeds=4", "clip.model=RN50".

    Relative paths of adapters in a file are relative to the file.

    Raises:
        SourceError: the file is not there.
        OptionError: it is no YAML, or a key or a value is wrong; the sentence names the key and the nearest valid one.

    Example:
        >>> read({"pipeline": "miniature/sdxl", "loras": [{"path": "a"}], "prompts": ["a sks"], "sedes": 2})
        Traceback (most recent call last):
            ...
        mergelab.errors.OptionError: config: unknown key 'sedes'; did you mean 'seeds'? known: pipeline, ...
    """
    if isinstance(source, Config):
        content: Any = source.model_dump()
        where = "config"
    elif isinstance(source, Mapping):
        content, where = _plain(source), "config"
    else:
        content, where = _yaml(Path(source)), str(source)
    if not isinstance(content, dict):
        raise OptionError(f"{where}: expected a mapping of keys such as pipeline, loras, merges, prompts, seeds")
    for override in overrides:
        _override(content, override)
    try:
        config = Config.model_validate(content)
    except ValidationError as error:
        raise OptionError(f"{where}: {_sentence(error)}") from None
    folder = Path() if isinstance(source, (Mapping, Config)) else Path(source).parent
    pipeline = str((folder / config.pipeline).resolve()) if (folder / config.pipeline).is_dir() else config.pipeline
    config = config.model_copy(update={"loras": _named(config.loras, folder), "pipeline": pipeline})
    lists: dict[str, list[Any]] = {"prompts": config.prompts, "seeds": config.seeds}
    for key, values in lists.items():
        if len(set(values)) < len(values):
            raise OptionError(f"{where}: {key}: {max(values, key=values.count)!r} is given twice")
    expanded_merges(config)  # a wrong method or option is found before anything is computed
    return config


def expanded_merges(config: Config) -> dict[str, dict[str, Any]]:
    """Label -> keywords of `mergelab.merge`, one for every point of the grid.

    A list is an axis. The label holds the method and every option that is given: "ties density=0.3 rank=16".

    Raises:
        OptionError: a method or an option that does not exist, or two merges that are the same.
    """
    found: dict[str, dict[str, Any]] = {}
    for entry in config.merges:
        if "method" not in entry:
            raise OptionError(f"merges: {entry!r} has no method")
        axes = [(key, value if isinstance(value, list) else [value]) for key, value in entry.items()]
        for point in product(*(values for _, values in axes)):
            keywords = dict(zip((key for key, _ in axes), point))
            label = " ".join([str(keywords["method"]), *(f"{k}={v}" for k, v in keywords.items() if k != "method")])
            if label in found:
                raise OptionError(f"merges: {label!r} is given twice")
            if "rank" in keywords:
                keywords["rank"] = _rank(keywords["rank"])
            strategy_of(
                str(keywords["method"]), {k: v for k, v in keywords.items() if k not in ("method", "rank", "seed")}
            )
            found[label] = keywords
    return found


def _rank(value: Any) -> Any:
    """As `merge` takes it: "mean=8" is a budget."""
    if isinstance(value, str) and value.startswith("mean="):
        text = value.removeprefix("mean=")
        if not text.isdigit():
            raise OptionError(f"rank={value!r}: expected a whole number after mean=")
        value = RankBudget(mean=int(text))
    return check_rank(value)


def _plain(value: Any) -> Any:
    """A copy in the types that YAML has: numbers of NumPy become numbers, tuples lists."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value.item() if hasattr(value, "item") and hasattr(value, "dtype") else value


def _yaml(path: Path) -> Any:
    if not path.is_file():
        raise SourceError(f"{path}: there is no such file")
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise OptionError(f"{path}: this is no YAML: {' '.join(str(error).split())}") from None


def _override(content: dict[str, Any], text: str) -> None:
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


def _sentence(error: ValidationError) -> str:
    """The first thing that is wrong, in words."""
    errors = error.errors(include_url=False)
    # A misspelt key says more than the key that is missing for it.
    first = next((e for e in errors if e["type"] == "extra_forbidden"), errors[0])
    # Where a value may have several types, the place ends in one of them.
    where = ".".join(str(part) for part in first["loc"] if part != "float" and not str(part).startswith("dict["))
    if first["type"] == "extra_forbidden":
        key = str(first["loc"][-1])
        fields = list(_model_at(first["loc"][:-1]).model_fields)
        return f"unknown key {where!r}; {did_you_mean(key, fields)}"
    if first["type"] == "missing":
        return f"the key {where!r} is missing"
    if first["type"] == "too_short":
        return f"{where}: expected at least one"
    message = first["msg"][0].lower() + first["msg"][1:]
    return f"{where}: {message}, got {shown(first['input'])}"


def _model_at(path: Iterable[int | str]) -> type[BaseModel]:
    """The model whose keys are valid at a place of the configuration."""
    parts: dict[str, type[BaseModel]] = {"loras": Lora, "clip": Clip, "generation": Generation, "memory": Memory}
    return parts.get(str(next(iter(path), "")), Config)


def _named(loras: list[Lora], folder: Path) -> list[Lora]:
    """With a name for each, and paths that no longer depend on where the file lies."""
    named = []
    for lora in (_shipped(lora) for lora in loras):
        path = lora.path if not (folder / lora.path).exists() else str((folder / lora.path).resolve())
        named.append(lora.model_copy(update={"name": lora.name or short_name(lora.path), "path": path}))
    names = [lora.name for lora in named]
    if double := next((name for name in names if names.count(name) > 1), None):
        raise OptionError(f"loras: two are called {double!r}; give each a name of its own")
    return named


def _shipped(lora: Lora) -> Lora:
    """An adapter "miniature/sdxl/ghost" as the file that ships, with its concept and its trigger."""
    from mergelab import miniature

    if not lora.path.startswith(MINIATURE) or lora.path.count("/") != 2:
        return lora
    try:
        adapter = miniature.adapter(lora.path)
    except OptionError as error:
        raise OptionError(f"loras: {error}") from None
    filled = {"name": lora.name or adapter.name, "path": str(adapter.path), "concept": lora.concept or adapter.prompt}
    return lora.model_copy(update=filled | {"trigger": lora.trigger or adapter.trigger})
