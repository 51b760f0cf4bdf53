"""What is asked of a merge, checked before anything is computed: recipes, their adapters, a job for each."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from numbers import Integral
from typing import Any

from mergelab.adapter import Adapter
from mergelab.checks import short_repr
from mergelab.devices import CPU, Device, chosen_device, layer_work
from mergelab.engine.aligning import aligned_layers, unique_names, with_one_input
from mergelab.engine.extras import replacing, without_layer
from mergelab.engine.job import Input, Job, said_of
from mergelab.engine.weights import Weight, resolve
from mergelab.errors import OptionError
from mergelab.methods.method import Strategy
from mergelab.methods.registry import strategy_of
from mergelab.ranks import Rank, check_rank


@dataclass(frozen=True)
class Asked:
    """One recipe, as it was given.

    Attributes:
        name: for messages, "recipe 3"; "" for the only one.
        weights, method, rank, seed, options: as of `merge`.
    """

    name: str = ""
    weights: Sequence[Weight] | None = None
    method: str | Strategy = "svd"
    rank: Rank | None = None
    seed: int = 0
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        given = self.weights
        if isinstance(given, (set, frozenset)):
            with said_of(self.name):
                raise OptionError(f"weights={short_repr(given)}: expected a list, whose order is that of the adapters")
        if isinstance(given, Iterable) and not isinstance(given, (str, Mapping)):  # perhaps a generator
            object.__setattr__(self, "weights", list(given))

    def checked(self) -> tuple[Strategy, Rank]:
        """The method and the rank; raises `OptionError` where either, or the seed, is none."""
        with said_of(self.name):
            strategy = strategy_of(self.method, self.options)
            rank = strategy.checked_rank(check_rank(strategy.default_rank if self.rank is None else self.rank))
            if not isinstance(self.seed, Integral) or isinstance(self.seed, bool):
                raise OptionError(f"seed={self.seed!r}: expected an integer")
        return strategy, rank


@dataclass(frozen=True)
class Inputs:
    """The adapters of a merge.

    Attributes:
        names: in the report, each another.
        adapters: in the order given, with input layers of one width.
        padded: notes of what was widened.
        aligned: layer name -> the adapters that have it.
    """

    names: list[str]
    adapters: list[Adapter]
    padded: list[str]
    aligned: dict[str, list[int]]

    @staticmethod
    def of(adapters: Sequence[Adapter]) -> Inputs:
        """Of adapters for one base model."""
        names = unique_names([a.name for a in adapters])
        given, padded = with_one_input(adapters, names)
        return Inputs(names, given, padded, aligned_layers(given, names))

    def weighed(self, weights: Sequence[Weight] | None) -> tuple[Input, ...]:
        """Each with its weights."""
        layers_of = [[*a.layers, *without_layer(a)] for a in self.adapters]
        others = [replacing(a) for a in self.adapters]
        table = resolve(weights, layers_of, self.names, [a.architecture for a in self.adapters], others)
        return tuple(Input(*given) for given in zip(self.names, self.adapters, table))

    def present(self, job: Job) -> dict[str, tuple[int, ...]]:
        """Layer name -> the adapters that take part in it."""
        return {name: tuple(i for i in own if job.inputs[i].weights[name] != 0) for name, own in self.aligned.items()}


def jobs_of(
    recipes: Sequence[Asked],
    checked: Sequence[tuple[Strategy, Rank]],
    inputs: Inputs,
    device: Device,
    memory: int | None,
) -> list[Job]:
    """What each recipe asks to do with the adapters, and where: in one place, as far as it is left open.

    Raises:
        OptionError: weights that do not fit the adapters, or of which none is left; a device that is not here.
    """
    jobs = []
    for asked, (strategy, rank) in zip(recipes, checked):
        with said_of(asked.name):
            weighed = inputs.weighed(asked.weights)
            job = Job(strategy, rank, weighed, int(asked.seed), CPU, memory, asked.name)
            if not any(inputs.present(job).values()):
                raise OptionError("the merge is empty: every weight is 0, so no adapter is left")
        jobs.append(job)
    there = chosen_device(device, sum(_work(job, inputs) for job in jobs))  # raises where there is none
    return [replace(job, device=CPU if job.strategy.acts_in.acts_on_factors else there) for job in jobs]


def _work(job: Job, inputs: Inputs) -> float:
    """How much there is to do, for the choice of a device: PEFT's arithmetic on the factors is that of a CPU."""
    strategy = job.strategy
    if strategy.acts_in.acts_on_factors:
        return 0.0
    present = ((name, own) for name, own in inputs.present(job).items() if own)
    layers = ([inputs.adapters[i].layers[name] for i in own] for name, own in present)
    return sum(layer_work(own[0].shape, [layer.rank for layer in own], strategy.forms_changes) for own in layers)
