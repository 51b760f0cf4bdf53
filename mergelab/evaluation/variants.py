"""The columns of the grid: base, singles, stack and merges of every set, each with what acts in it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mergelab.evaluation.acting import Acting, Pool, added
from mergelab.evaluation.config import Config, Weight
from mergelab.evaluation.executors.executor import Executor, pieces
from mergelab.evaluation.executors.task import MergeTask, Unit
from mergelab.evaluation.failures import Failures
from mergelab.evaluation.merging import AT_A_TIME, Planned, planned_merges
from mergelab.evaluation.names import BASE, STACK, VariantName
from mergelab.evaluation.progress import bar
from mergelab.evaluation.recipes import Recipe, recipes
from mergelab.evaluation.sets import AdapterSet
from mergelab.evaluation.store import Store, file_name, hash_of
from mergelab.pipelines.combinations.registry import COMBINATIONS, combination_of


@dataclass
class Variant:
    """One column of the grid: what acts in it, and what that costs.

    Attributes:
        name: its kind, and which one of that kind.
        set: the name of the set of adapters.
        acting: what acts in it.
        requests: of every image that is asked for, its key.
        cost: seconds to merge, bytes of the file; seconds per image.
        layers: the report of a merge, one row for each layer.
        recipe: of a merge.
    """

    name: VariantName
    set: str
    acting: Acting
    requests: dict[Unit, str] = field(default_factory=dict)
    cost: dict[str, float] = field(default_factory=dict)
    layers: list[dict[str, Any]] = field(default_factory=list)
    recipe: Recipe | None = None


def make_variants(
    config: Config,
    sets: Sequence[AdapterSet],
    pool: Pool,
    store: Store,
    failures: Failures,
    executor: Executor,
    progress: bool | None = False,
) -> list[Variant]:
    """Base, singles, stack, merges and combinations of every set; a merge that fails is recorded and left out.

    Args:
        config: what is run.
        sets: of adapters.
        pool: the adapters.
        store: where merges are kept; those that it holds already are not made again.
        failures: grows.
        executor: who merges.
        progress: a bar of the merges; None shows one on a terminal.
    """
    planned = {one.name: _planned(config, one, pool, store) for one in sets}
    known = _made({one.name: tuple(one.names) for one in sets}, planned, executor, progress)
    return [variant for one in sets for variant in _of(config, one, pool, planned[one.name], known, failures)]


def _planned(config: Config, of: AdapterSet, pool: Pool, store: Store) -> dict[str, Planned]:
    names, usual = list(of.names), [lora.strength for lora in of.adapters.values()]
    merges = [recipe for recipe in recipes(config, of) if recipe.keywords["method"] not in COMBINATIONS]
    folder = store.adapters / file_name(of.name) if len(config.sets) > 1 else store.adapters
    return planned_merges(merges, usual, {name: pool.hash(name) for name in names}, folder)


Known = dict[tuple[str, str], dict[str, Any] | Exception]
"""Set and label -> the record of a merge, or why it failed."""


def _made(
    names: Mapping[str, tuple[str, ...]],
    planned: Mapping[str, Mapping[str, Planned]],
    executor: Executor,
    progress: bool | None,
) -> Known:
    """The record of each merge; where it failed, why: the others are made all the same."""
    known: Known = {}
    tasks = list[MergeTask]()
    for name, merges in planned.items():
        missing = [(label, one) for label, one in merges.items() if not _recalled(known, name, label, one)]
        tasks += [MergeTask(name, names[name], dict(some)) for some in pieces(missing, AT_A_TIME)]
    with bar(sum(len(task.planned) for task in tasks), "merges", progress, unit="merge") as told:
        for task, part in executor.run(tasks):
            assert isinstance(task, MergeTask)
            if isinstance(part, Exception):  # workers died of it
                known |= {(task.set, label): part for label in task.planned}
                told.update(len(task.planned))
                continue
            found = part.record
            try:
                if not isinstance(found, Exception):
                    task.planned[part.label].keep(found, part.file)
            except Exception as error:  # a full disk
                found = error
            known[task.set, part.label] = found
            told.update()
    return known


def _recalled(known: Known, of: str, label: str, planned: Planned) -> bool:
    """Whether a merge is made already, or cannot be; what is known of it then stands in `known`."""
    try:
        if (record := planned.record()) is not None:
            known[of, label] = record
            return True
        planned.forget()
    except OSError as error:
        known[of, label] = error
    return (of, label) in known


def _of(
    config: Config, of: AdapterSet, pool: Pool, planned: Mapping[str, Planned], known: Known, failures: Failures
) -> list[Variant]:
    """The variants of a set."""
    usual: dict[str, Weight] = {lora.name: lora.strength for lora in of.adapters.values()}
    variants = [Variant(BASE, of.name, added({}, pool))]
    variants += [
        Variant(VariantName("single", name), of.name, added({name: weight}, pool)) for name, weight in usual.items()
    ]
    if len(usual) > 1:
        variants.append(Variant(STACK, of.name, added(usual, pool)))
    for recipe in recipes(config, of):
        name = VariantName("merge", recipe.label)
        if recipe.keywords["method"] in COMBINATIONS:
            options = {key: value for key, value in recipe.keywords.items() if key != "method"}
            rule = combination_of(recipe.keywords["method"], options)
            weights = usual if recipe.weights is None else dict(zip(usual, recipe.weights))
            variants.append(Variant(name, of.name, added(weights, pool, rule), recipe=recipe))
        elif isinstance(found := known[of.name, recipe.label], Exception):
            failures.add(found, name, set=of.name)
        else:
            variants.append(_merged(name, of.name, recipe, planned[recipe.label], found))
    return variants


def _merged(name: VariantName, of: str, recipe: Recipe, planned: Planned, known: Mapping[str, Any]) -> Variant:
    """A merge that is kept in the run."""
    cost = {"seconds to merge": known["seconds"], "bytes": planned.path.stat().st_size}
    return Variant(
        name,
        of,
        Acting(hash_of({"adapters": [known["tensors"]]}), merged={name.label: planned.path}),
        cost=cost | {"retained energy": known["retained_energy"]},
        layers=known["layers"],
        recipe=recipe,
    )
