"""Every image that is there is scored once with every metric."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import pandas as pd

from mergelab.evaluation.executors.executor import Executor, pieces
from mergelab.evaluation.executors.task import Answer, Question, ScoreTask
from mergelab.evaluation.grid import Grid
from mergelab.evaluation.metrics.metric import Description, Picture
from mergelab.evaluation.metrics.registry import Profile
from mergelab.evaluation.names import at_seed, single, split_seed
from mergelab.evaluation.sets import AdapterSet, Called
from mergelab.evaluation.store import Store, hash_of
from mergelab.evaluation.variants import Variant
from mergelab.publishing.recipe import package_version

COLUMNS = (
    "set", "variant", "prompt_id", "prompt", "calls", "seed", "metric", "reference", "reference_seed", "value", "image",
)  # fmt: skip
"""Of `scores.parquet`."""
AT_A_TIME = 100
"""Images that a worker scores before it reports; of one prompt and seed, and so held against the same ones."""


@dataclass(frozen=True)
class _Cell:
    """One image of the grid, with a question to each metric."""

    of: AdapterSet
    variant: Variant
    prompt: Called
    seed: int
    questions: tuple[Question, ...]


def score_all(grid: Grid, profiles: Sequence[Profile], executor: Executor) -> pd.DataFrame:
    """Scores every image that is there with every metric, in a fixed order.

    Args:
        grid: the images.
        profiles: of the metrics.
        executor: who looks at the images.
    """
    known = {profile.description.name: profile.description for profile in profiles}
    rows = list[dict[str, Any]]()
    total = sum(len(one.prompts) * len(grid.config.seeds) * len(grid.of(one)) for one in grid.sets)
    groups = [several for one in grid.sets for prompt, seed in product(one.prompts, grid.config.seeds)
              for several in pieces(list(_cells(grid, one, prompt, seed, profiles)), AT_A_TIME)]  # fmt: skip
    with grid.bar(total, "scores") as bar:
        bar.update(total - sum(map(len, groups)))
        asked = ([question for cell in group for question in cell.questions] for group in groups)
        answers = answered(asked, grid.store, known, executor, grid.seconds, bar.update)
        for cell in (cell for group in groups for cell in group):
            rows += _rows(grid, cell, answers)
    grid.failures.tell()
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _cells(grid: Grid, of: AdapterSet, prompt: Called, seed: int, profiles: Sequence[Profile]) -> Iterator[_Cell]:
    """The images of a prompt and a seed that are there."""
    own = grid.of(of)
    concepts = {lora.name: lora.concepts for lora in of.adapters.values() if lora.concepts}
    photos = {name: pictures for name, pictures in grid.photos.items() if name in of.names}
    for variant in own:
        key = variant.requests[prompt.text, seed]
        if grid.store.image_path(key).exists():
            others = _comparisons(grid, own, variant, prompt.text, seed)
            asked = tuple(question_of(profile, key, prompt.text, others, concepts, photos) for profile in profiles)
            yield _Cell(of, variant, prompt, seed, asked)


def _comparisons(grid: Grid, own: Sequence[Variant], variant: Variant, prompt: str, seed: int) -> dict[str, str]:
    """Reference -> key of the image it is compared with; "single:x at seed 1" has another seed."""
    others = {
        str(other.name): other.requests[prompt, seed]
        for other in own
        if other.name != variant.name and other.name.kind != "merge"
    }
    seeds = grid.config.seeds
    if len(seeds) > 1 and variant.name.kind != "merge":
        after = seeds[(seeds.index(seed) + 1) % len(seeds)]
        others[at_seed(str(variant.name), after)] = variant.requests[prompt, after]
    return {reference: key for reference, key in others.items() if grid.store.image_path(key).exists()}


def question_of(
    profile: Profile,
    key: str,
    prompt: str,
    comparisons: Mapping[str, str],
    concepts: Mapping[str, tuple[str, ...]],
    photos: Mapping[str, tuple[Picture, ...]],
) -> Question:
    """With all that the answer depends on in its key."""
    description = profile.description
    about = description.compares_with
    comparisons = comparisons if about == "images" else {}
    concepts = concepts if about == "words" else {}
    photos = photos if description.photographs else {}
    request = {"metric": description.name, "settings": dict(profile.settings), "image": key, "prompt": prompt}
    request |= {"references": dict(comparisons), "version": package_version()}
    if about == "words":
        request["concepts"] = concepts
    if photos:
        request["photos"] = {name: sorted(picture.key for picture in pictures) for name, pictures in photos.items()}
    return Question(hash_of(request), description.name, key, prompt, comparisons, concepts, tuple(photos))


Answers = dict[str, Mapping[str, float] | Exception]
"""Key of a question -> what a metric says, or why it says nothing."""


def answered(
    groups: Iterable[Sequence[Question]],
    store: Store,
    known: Mapping[str, Description],
    executor: Executor,
    seconds: dict[str, float],
    told: Callable[[int], object],
) -> Answers:
    """The answer to each question: of an earlier run, or of a worker, which is then kept.

    Args:
        groups: questions that have images in common, and so go to one worker.
        store: where answers are kept.
        known: what each metric says of itself.
        executor: who looks at the images.
        seconds: grows: "metrics".
        told: is told how many images were answered for.
    """
    answers: Answers = {}
    tasks = list[ScoreTask]()
    for group in groups:
        missing = dict[str, Question]()
        for question in (question for question in group if question.key not in answers):
            kept = store.recall(question.key)
            if kept is None:
                missing[question.key] = question
                answers[question.key] = LookupError("no worker has said anything")
            else:
                answers[question.key] = _wrong(kept, known[question.metric]) or kept
        told(len({question.image for question in group} - {question.image for question in missing.values()}))
        if missing:
            tasks.append(ScoreTask(tuple(missing.values())))
    asked = {question.key: question for task in tasks for question in task.questions}
    seen = set[str]()
    for task, part in executor.run(tasks):
        assert isinstance(task, ScoreTask)
        found = part if isinstance(part, list) else [Answer(question.key, part, 0.0) for question in task.questions]
        for answer in found:
            seconds["metrics"] += answer.seconds / executor.workers
            values, description = answer.values, known[asked[answer.key].metric]
            if not isinstance(values, Exception):
                values = _wrong(values, description) or dict(values)
            if not isinstance(values, Exception):
                store.keep(answer.key, values)
            answers[answer.key] = values
        new = {asked[answer.key].image for answer in found} - seen
        seen |= new
        told(len(new))
    return answers


def _rows(grid: Grid, cell: _Cell, answers: Answers) -> list[dict[str, Any]]:
    """The scores of one image by all metrics."""
    name, prompt = cell.variant.name, cell.prompt
    calls = "+".join(lora.name for role, lora in cell.of.adapters.items() if role in prompt.calls)
    shared = {"set": cell.of.name, "variant": str(name), "prompt_id": prompt.index, "prompt": prompt.text}
    shared |= {"calls": calls, "seed": cell.seed, "image": f"{cell.questions[0].image}.png"}
    others = {single(lora.name) for lora in grid.config.loras} - {single(name) for name in cell.of.names}
    rows = []
    for question in cell.questions:
        values = answers[question.key]
        if isinstance(values, Exception):
            grid.failures.add(values, name, prompt.text, cell.seed, metric=question.metric, set=cell.of.name)
            continue
        for reference, value in values.items():
            about, reference_seed = split_seed(reference, cell.seed)
            if about not in others:  # a metric of the user's own may speak of all adapters of the run
                row = {"metric": question.metric, "reference": about, "reference_seed": reference_seed, "value": value}
                rows.append(shared | row)
    return rows


def _wrong(values: Mapping[str, float], description: Description) -> ValueError | None:
    """Why a score is none, or lies outside of what the metric says it can be (by more than rounding)."""
    low, high = description.range
    for reference, value in values.items():
        against = f" (against {reference})" if reference else ""
        if not math.isfinite(value):
            return ValueError(f"the score is not finite{against}")
        if not low - 1e-6 <= value <= high + 1e-6:
            return ValueError(f"the score {value:.6g} is outside of the metric's range, {low:g} to {high:g}{against}")
    return None
