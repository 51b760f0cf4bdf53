"""The configuration of an evaluation: its keys, their types and defaults, and the merges that its axes span."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product
from numbers import Integral
from types import NoneType
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from pydantic_core import PydanticCustomError

from mergelab import miniature
from mergelab.checks import did_you_mean, short_repr
from mergelab.errors import OptionError
from mergelab.methods.registry import method_names, strategy_of
from mergelab.pipelines.combinations.registry import COMBINATIONS, combination_of
from mergelab.ranks import check_rank, rank_text


class _Strict(BaseModel):
    """Unknown keys are errors, and so are values of another type: "8" is no number, true is none either."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, protected_namespaces=())


def _concept(value: Any) -> Any:
    if not isinstance(value, str) and not (isinstance(value, list) and all(isinstance(one, str) for one in value)):
        raise PydanticCustomError("concept", "expected a prompt, or a list of several")
    return value


class Lora(_Strict):
    """One adapter; a path alone will do.

    Attributes:
        path: whatever `mergelab.load` takes, or `miniature/sdxl/ghost`.
        name: how tables call it; the file's name where it is left out.
        weight: strength, in the stack and in every merge; a mapping gives one for each component or layer pattern.
        concept: a prompt of its concept alone, "a photo of sks", or several, whose scores are averaged; without one
            nothing is recovered, only compared.
        trigger: words of a prompt that call it; where it is left out, the words of the concept that are in no other
            adapter's concept and are more than articles.
        references: a folder of photographs of what it shows, which images are compared with.
    """

    path: str
    name: str = ""
    weight: float | dict[str, float] = 1.0
    concept: Annotated[str | list[str], BeforeValidator(_concept)] = ""
    trigger: str = ""
    references: str = ""

    @property
    def concepts(self) -> tuple[str, ...]:
        """The prompts of its concept; none where it has none."""
        return tuple(filter(None, [self.concept] if isinstance(self.concept, str) else self.concept))


class Clip(_Strict):
    """A CLIP of open_clip: `model` and `pretrained` as in `open_clip.create_model_and_transforms`."""

    model: str = "ViT-B-32"
    pretrained: str | None = "laion2b_s34b_b79k"


class Generation(_Strict):
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


def _scheduler(value: Any) -> Any:
    if not isinstance(value, (str, dict, NoneType)) or (isinstance(value, dict) and "class" not in value):
        raise PydanticCustomError("scheduler", "expected a class of diffusers, or a mapping {class: ..., its options}")
    return value


def _lora(value: Any) -> Any:
    return {"path": value} if isinstance(value, str) else value


def _seeds(value: Any) -> Any:
    if not isinstance(value, (int, list)) or isinstance(value, bool) or (isinstance(value, int) and value < 1):
        raise PydanticCustomError("seeds", "expected how many (at least 1), or a list")
    return list(range(value)) if isinstance(value, int) else value


class Config(_Strict):
    """One evaluation, as its YAML file holds it; `expanded_merges` is the grid that its axes span.

    The pipeline may be left out where a loaded one is handed to `evaluate`. A scheduler is a class of diffusers,
    EulerDiscreteScheduler, or {class: ..., and any of its options}; None: the pipeline's own.
    """

    pipeline: str = ""
    loras: Annotated[list[Annotated[Lora, BeforeValidator(_lora)]], Field(min_length=1)]
    merges: list[dict[str, Any]] = []
    prompts: Annotated[list[str], Field(min_length=1)]
    seeds: Annotated[list[Annotated[int, Field(ge=0)]], BeforeValidator(_seeds), Field(min_length=1)] = [0, 1, 2, 3]
    metrics: Annotated[list[str], Field(min_length=1)] = ["clip_text", "clip_image", "lpips"]
    clip: Clip | None = None
    lpips: Literal["alex", "vgg", "squeeze", "miniature"] | None = None
    dino: str = "facebook/dinov2-base"
    scheduler: Annotated[str | dict[str, Any] | None, BeforeValidator(_scheduler)] = None
    generation: Generation = Generation()
    memory: Memory = Memory()
    dtype: Literal["float32", "float16", "bfloat16"] | None = None
    device: str | None = None

    @property
    def miniature(self) -> str | None:
        """The name of the miniature pipeline that is evaluated, if it is one: "sdxl", "flux"."""
        return self.pipeline.removeprefix(miniature.PREFIX) if self.pipeline.startswith(miniature.PREFIX) else None


def expanded_merges(config: Config) -> dict[str, dict[str, Any]]:
    """Label -> keywords of `mergelab.merge`, or of a combination at run time, one for every point of the grid.

    A list is an axis, but for the `factors` of a schedule, which are a list: there a list of such lists is one. The
    label holds the method and every option that is given: "ties density=0.3 rank=16".

    Raises:
        OptionError: a method or an option that does not exist, a value that it cannot have, or two merges that are the
            same.
    """
    merges: dict[str, dict[str, Any]] = {}
    for entry in config.merges:
        if "method" not in entry:
            raise OptionError(f"merges: {entry!r} has no method")
        axes = [(key, _points(key, value)) for key, value in entry.items()]
        for point in product(*(values for _, values in axes)):
            keywords = _checked(dict(zip((key for key, _ in axes), point)))
            shown = {k: rank_text(v) if k == "rank" else v for k, v in keywords.items() if k != "method"}
            label = " ".join([str(keywords["method"]), *(f"{k}={v}" for k, v in shown.items())])
            if label in merges:
                raise OptionError(f"merges: {label!r} is given twice")
            merges[label] = keywords
    return merges


def _points(key: str, value: Any) -> list[Any]:
    """The values along an axis.

    Example:
        >>> _points("rank", [8, 16]), _points("every", 2), _points("factors", [[1, 0], [0, 1]])
        ([8, 16], [2], [[[1, 0], [0, 1]]])
        >>> _points("factors", [[[1, 0], 1], [1, 0.5]])
        [[[1, 0], 1], [1, 0.5]]
    """
    if key == "factors":
        many = isinstance(value, list) and any(
            isinstance(v, list) and any(isinstance(w, list) for w in v) for v in value
        )
        return list(value) if many else [value]
    return value if isinstance(value, list) else [value]


def _checked(keywords: Mapping[str, Any]) -> dict[str, Any]:
    """Keywords of `mergelab.merge` or of a combination that will not be refused."""
    for key in ("weight", "weights", "loras"):
        if key in keywords:
            raise OptionError(
                f"merges: {key!r} is no option of a merge; every adapter under loras has a weight of its own"
            )
    if keywords["method"] in COMBINATIONS:
        for key, value in keywords.items():
            if callable(value) or (isinstance(value, (list, tuple)) and any(map(callable, value))):
                raise OptionError(
                    f"merges: {key}: a function has no place in a configuration; give points of its course"
                )
        combination_of(keywords["method"], {k: v for k, v in keywords.items() if k != "method"})
        return dict(keywords)
    if keywords["method"] not in method_names():
        said = did_you_mean(str(keywords["method"]), [*method_names(), *COMBINATIONS])
        own = "one of your own: --import FILE.py that registers it"
        raise OptionError(f"merges: there is no method {keywords['method']!r}; {said}; {own}")
    options = {k: v for k, v in keywords.items() if k not in ("method", "rank", "seed")}
    strategy = strategy_of(str(keywords["method"]), options)
    seed = keywords.get("seed", 0)
    if not isinstance(seed, Integral) or isinstance(seed, bool):
        raise OptionError(f"merges: seed={short_repr(seed)}: expected an integer")
    rank = {"rank": strategy.checked_rank(check_rank(keywords["rank"]))} if "rank" in keywords else {}
    return {**keywords, **rank}
