"""The configuration of a search: its keys, their types and defaults."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from mergelab.evaluation.config import (
    AnyLora,
    Clip,
    Executor,
    Generation,
    Memory,
    OfPipeline,
    Prompt,
    Scheduler,
    Seeds,
    Strict,
    Workers,
)

Count = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0)]
Prompts = Annotated[list[str | Prompt], Field(min_length=1)]


class HeldOut(Strict):
    """What the winner is reported on.

    Attributes:
        prompts: texts or templates, as an evaluation has them; left out: half of each kind of `prompts`, which are then
            not drawn while searching.
        seeds: left out: as many as while searching, and others.
        metrics: beside the score, which the search has made the most of.
    """

    prompts: Prompts | None = None
    seeds: Seeds | None = None
    metrics: list[str] = Field(default=[])


class Balance(Strict):
    """How much each part of the score counts; they are divided by their sum.

    Attributes:
        joint: prompts that call several adapters.
        own: prompts that call one.
        plain: prompts that call none.
    """

    joint: Share = 1.0
    own: Share = 1.0
    plain: Share = 0.5


class TuneConfig(OfPipeline):
    """One search, as its YAML file holds it.

    Attributes:
        pipeline, loras, generation, clip, lpips, dino, scheduler, memory, dtype, device, executor: as
            in an evaluation; an adapter that always acts and has no concept, as one for few steps, keeps its weight.
        prompts: what is drawn while searching, as an evaluation has them: they call several adapters, one, or none.
        seeds: of the noise while searching.
        held_out: what the winner is reported on.
        search: "blocks": weights for each adapter and group of blocks, by halving; "optuna": anything in `space`.
        score: the metric that is maximised; left out: as the main metric of an evaluation.
        balance: of the parts of the score.
        merge: keywords of `mergelab.merge` for the winner ("blocks", which searches on the plain sum: the default loses
            nothing of it) or every trial ("optuna").
        seed: of all that is drawn at random.
        groups: of layers that share a weight: "blocks", "components", or "none" for one weight for each adapter.
        settings: how many weights are tried.
        images: composed scenes that each setting is tried on first; as many of each other kind as `balance` asks for.
        keep: how many settings go on.
        more: further composed scenes for those.
        trials: how many Optuna tries.
        space: what Optuna may choose: a list of values, or {low, high} with `step` or `log`.
        objectives: "score", "joint", "own", "plain", "minimum", "recovery:NAME" or "bytes"; several give a front.
        prune: stop a trial that is behind after a few scenes.
        storage: of Optuna's; left out: a file in the run folder.
    """

    loras: Annotated[list[AnyLora], Field(min_length=2)]
    prompts: Prompts
    seeds: Seeds = Field(default=[0, 1, 2, 3])
    held_out: HeldOut = HeldOut()
    search: Literal["blocks", "optuna"] = "blocks"
    score: str | None = None
    balance: Balance = Balance()
    merge: dict[str, Any] = Field(default={"method": "svd", "rank": "sum"})
    seed: Annotated[int, Field(ge=0)] = 0
    groups: Literal["blocks", "components", "none"] = "blocks"
    settings: Count = 40
    images: Count = 8
    keep: Count = 4
    more: Annotated[int, Field(ge=0)] = 12
    trials: Count = 60
    space: dict[str, Any] = Field(default={})
    objectives: Annotated[list[str], Field(min_length=1)] = Field(default=["score"])
    prune: bool = True
    storage: str | None = None
    clip: Clip | None = None
    lpips: Literal["alex", "vgg", "squeeze", "miniature"] | None = None
    dino: str = "facebook/dinov2-base"
    scheduler: Scheduler = None
    generation: Generation = Generation()
    memory: Memory = Memory()
    dtype: Literal["float32", "float16", "bfloat16"] | None = None
    device: str | None = None
    executor: Executor = Workers()
