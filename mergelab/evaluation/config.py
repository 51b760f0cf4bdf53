"""The configuration of an evaluation: its keys, their types and defaults."""

from __future__ import annotations

from types import NoneType
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from mergelab import miniature


class Strict(BaseModel):
    """Unknown keys are errors, and so are values of another type: "8" is no number, true is none either."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, protected_namespaces=())


Weight = float | dict[str, float]
"""One number, or one for each component or layer pattern."""


def _concept(value: Any) -> Any:
    if not isinstance(value, str) and not (isinstance(value, list) and all(isinstance(one, str) for one in value)):
        raise PydanticCustomError("concept", "expected a prompt, or a list of several")
    return value


class Lora(Strict):
    """One adapter; a path alone will do.

    Attributes:
        path: whatever `mergelab.load` takes, or `miniature/sdxl/ghost`.
        name: how tables call it; the file's name where it is left out.
        weight: strength, alone, in the stack and in every merge; a mapping gives one for each component or layer
            pattern. A list is an axis of every merge; alone and in the stack the adapter has the first.
        concept: a prompt of its concept alone, "a photo of sks", or several; without one nothing is recovered, only
            compared.
        trigger: words of a prompt that call it; where it is left out, the words of the concept that are in no other
            adapter's concept and are more than articles.
        always: every prompt calls it, as a style without a trigger, or a few-step adapter.
        role: what it is called in a set that does not say it: "subject", "style".
        references: a folder of photographs of what it was trained on.
    """

    path: str
    name: str = ""
    weight: Weight | Annotated[list[Weight], Field(min_length=1)] = 1.0
    concept: Annotated[str | list[str], BeforeValidator(_concept)] = ""
    trigger: str = ""
    always: bool = False
    role: str = ""
    references: str = ""

    @property
    def strength(self) -> Weight:
        """Its weight, of several the first."""
        return self.weight[0] if isinstance(self.weight, list) else self.weight

    @property
    def concepts(self) -> tuple[str, ...]:
        """Prompts of its concept alone."""
        return tuple(filter(None, self.concept if isinstance(self.concept, list) else [self.concept]))


class Clip(Strict):
    """A CLIP of open_clip: `model` and `pretrained` as in `open_clip.create_model_and_transforms`."""

    model: str = "ViT-B-32"
    pretrained: str | None = "laion2b_s34b_b79k"


class Generation(Strict):
    """Keywords of a call of the pipeline, where None leaves it to the pipeline; and how images are drawn.

    Attributes:
        steps, guidance, width, height, negative_prompt: as the pipeline takes them.
        options: any other keyword: `{true_cfg_scale: 4.0, max_sequence_length: 256}`.
        batch: how many images at a time; half as many where the memory is too small. Each has its own generator, so
            it starts from the same noise in any batch; on a GPU a batch may change the last bits.
        adapters: "fused" adds them to the weights while they are drawn, at the base model's speed; "active" keeps them
            beside the weights; None: fused where the weights can be changed.
    """

    steps: Annotated[int, Field(ge=1)] | None = None
    guidance: float | None = None
    width: Annotated[int, Field(ge=1)] | None = None
    height: Annotated[int, Field(ge=1)] | None = None
    negative_prompt: str | None = None
    options: dict[str, Any] = {}
    batch: Annotated[int, Field(ge=1)] = 1
    adapters: Literal["fused", "active"] | None = None

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


class Memory(Strict):
    """What makes a large model fit.

    Attributes:
        offload: "model" keeps one component at a time on the GPU, "sequential" one layer (slow, smallest).
        vae_tiling: decode in tiles.
        compile: torch.compile of the repeated blocks of the transformer or UNet.
    """

    offload: Literal["none", "model", "sequential"] = "none"
    vae_tiling: bool = False
    compile: bool = False


class Workers(Strict):
    """Who merges, draws and scores.

    Attributes:
        name: "local", this process; "ray", workers of a Ray cluster.
        address: of a cluster that is there: "auto" for the one that this machine belongs to, "ray://host:10001", or
            "host:6379". None: one of this machine alone is started, and stopped at the end.
        workers: how many; None: as many as the cluster has room for.
        gpus: of each worker, 0.5 where two share one; None: one where the cluster has any.
        cpus: of each worker.
        group: images that a worker draws before it reports.
        storage: "shared": the workers see the run folder under the same path, and leave their images there; "objects":
            they do not, and Ray carries files both ways; "auto": each looks.
    """

    name: Literal["local", "ray"] = "local"
    address: Annotated[str, Field(min_length=1)] | None = None
    workers: Annotated[int, Field(ge=1)] | None = None
    gpus: Annotated[float, Field(ge=0)] | None = None
    cpus: Annotated[float, Field(gt=0)] = 1.0
    group: Annotated[int, Field(ge=1)] = 16
    storage: Literal["auto", "shared", "objects"] = "auto"

    @model_validator(mode="after")
    def _of_ray(self) -> Workers:
        own = list(self.model_dump(exclude_defaults=True))
        if self.name == "local" and own:
            raise PydanticCustomError("executor", f"{own[0]} is of ray, and the name is local: give name: ray")
        return self


class Prompt(Strict):
    """A prompt that says itself which adapters it calls; a text alone is told by the words that are their triggers.

    Attributes:
        text: what is drawn, or a template of it (see `mergelab.evaluation.sets`).
        calls: roles or names of the adapters that it calls.
    """

    text: str
    calls: list[str] | None = None


class Distractors(Strict):
    """Each target among others that are drawn at random: what is left of it, the more there are?

    Attributes:
        targets: names of adapters, or paths.
        others: from which distractors are drawn; the targets where it is left out.
        count: distractors in a set.
        sets: how many sets are drawn for each target.
        seed: of the draws.
    """

    targets: Annotated[list[str], Field(min_length=1)]
    others: list[str] = []
    count: Annotated[int, Field(ge=1)] = 2
    sets: Annotated[int, Field(ge=1)] = 1
    seed: Annotated[int, Field(ge=0)] = 0


class Part(Strict):
    """Some of the images of a run: those of some prompts, as they are written under `prompts`, and of some sets."""

    prompts: list[str] | None = None
    sets: list[str] | None = None


class Select(Strict):
    """Of the merges that the axes of one entry span, the best on some images is reported on others.

    Attributes:
        on: where the best is chosen.
        report: what is reported; where it is left out, all that has neither a prompt nor a set of `on`.
        each_set: every set of adapters has a choice of its own.
    """

    on: Part
    report: Part = Part()
    each_set: bool = False


def _workers(value: Any) -> Any:
    if not isinstance(value, (str, dict, Workers)):
        raise PydanticCustomError("executor", "expected a name, or a mapping {name: ray, workers: 2, ...}")
    return {"name": value} if isinstance(value, str) else value


def _scheduler(value: Any) -> Any:
    if not isinstance(value, (str, dict, NoneType)) or (isinstance(value, dict) and "class" not in value):
        raise PydanticCustomError("scheduler", "expected a class of diffusers, or a mapping {class: ..., its options}")
    return value


def _lora(value: Any) -> Any:
    return {"path": value} if isinstance(value, str) else value


def _set(value: Any) -> Any:
    """A list of adapters as a mapping without roles."""
    if isinstance(value, list) and all(isinstance(one, str) for one in value):
        return {f"adapter {number}": one for number, one in enumerate(value, 1)}
    return value


def _texts(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def _seeds(value: Any) -> Any:
    if not isinstance(value, (int, list)) or isinstance(value, bool) or (isinstance(value, int) and value < 1):
        raise PydanticCustomError("seeds", "expected how many (at least 1), or a list")
    return list(range(value)) if isinstance(value, int) else value


def _log_with(value: Any) -> Any:
    entries = value if isinstance(value, list) else [value]
    return [{"name": entry} if isinstance(entry, str) else entry for entry in entries]


AnyLora = Annotated[Lora, BeforeValidator(_lora)]
"""An adapter, or its path."""
Seeds = Annotated[list[Annotated[int, Field(ge=0)]], BeforeValidator(_seeds), Field(min_length=1)]
"""How many, or which."""
Executor = Annotated[Workers, BeforeValidator(_workers)]
"""Who does the work, by name or with settings."""
Scheduler = Annotated[str | dict[str, Any] | None, BeforeValidator(_scheduler)]
"""A class of diffusers, with options or without."""


class OfPipeline(Strict):
    """What names a pipeline, unless a loaded one is handed in.

    Attributes:
        pipeline: "miniature/sdxl", a folder, a name on the Hub.
    """

    pipeline: str = ""

    @property
    def miniature(self) -> str | None:
        """The name of the miniature pipeline, if it is one: "sdxl", "flux"."""
        return self.pipeline.removeprefix(miniature.PREFIX) if self.pipeline.startswith(miniature.PREFIX) else None


class Config(OfPipeline):
    """One evaluation, as its YAML file holds it; `mergelab.evaluation.recipes` has the grid that its axes span.

    The pipeline may be left out where a loaded one is handed to `evaluate`.

    Attributes:
        loras: the adapters. Without `sets`, `pairs` or `distractors` they are one set.
        sets: which of them are merged with which: role -> name of one under `loras`, or a path; `name` names the set.
        pairs: role -> names or paths, and a set for each combination; `subjects` are of the role `subject`.
        distractors: sets of a target and others that are drawn at random.
        prompts: texts, templates, or texts with the adapters that they call; see `mergelab.evaluation.sets`.
        select: where options are chosen by score, the images on which.
        executor: who does the work: "ray", or `{name: ray, workers: 8, ...}`.
        scheduler: of diffusers, by its class, or `{class: ..., option: value}`; None leaves the pipeline its own.
    """

    loras: list[AnyLora] = []
    sets: list[Annotated[dict[str, str], BeforeValidator(_set)]] = []
    pairs: dict[str, Annotated[list[str], BeforeValidator(_texts), Field(min_length=1)]] | None = None
    distractors: Distractors | None = None
    merges: list[dict[str, Any]] = []
    select: Select | None = None
    prompts: Annotated[list[str | Prompt], Field(min_length=1)]
    seeds: Seeds = [0, 1, 2, 3]
    metrics: Annotated[list[str], Field(min_length=1)] = ["clip_text", "clip_image", "lpips"]
    clip: Clip | None = None
    lpips: Literal["alex", "vgg", "squeeze", "miniature"] | None = None
    dino: str = "facebook/dinov2-base"
    scheduler: Scheduler = None
    generation: Generation = Generation()
    memory: Memory = Memory()
    dtype: Literal["float32", "float16", "bfloat16"] | None = None
    device: str | None = None
    executor: Executor = Workers()
    log_with: Annotated[list[dict[str, Any]], BeforeValidator(_log_with)] = []
