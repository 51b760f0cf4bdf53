"""Align the layers of several adapters, apply a strategy to each, and report."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from numbers import Integral
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from mergelab.adapter import Adapter, Source
from mergelab.devices import AUTO, CPU, Device, chosen_device, layer_work, parsed_memory
from mergelab.engine.aligning import aligned_layers, load_all, unique_names, with_one_input
from mergelab.engine.extras import bias_only, merge_extras, replacing
from mergelab.engine.job import Input, Job
from mergelab.engine.layers import merge_layers
from mergelab.engine.provenance import Recipe, input_record, merged_metadata
from mergelab.engine.results import store
from mergelab.engine.weights import Weight, resolve, weight_record
from mergelab.errors import OptionError
from mergelab.formats import hashing
from mergelab.layer import common_dialect
from mergelab.linalg.precision import full_precision
from mergelab.methods.method import Level, Strategy
from mergelab.methods.registry import name_of, options_record, strategy_of
from mergelab.ranks import Rank, budget_note, check_rank, rank_record
from mergelab.report import LayerReport, Report, carried


@full_precision()
def merge(
    loras: Sequence[Adapter | Source],
    weights: Sequence[Weight] | None = None,
    method: str | Strategy = "svd",
    *,
    rank: Rank | None = None,
    seed: int = 0,
    device: Device = AUTO,
    memory: int | str | None = None,
    progress: bool | None = None,
    **options: Any,
) -> Adapter:
    """Merge several adapters into one.

    Loading the result at strength 1.0 equals, for the exact methods, stacking the inputs at their weights. Layers
    that only some adapters have are merged from those; the others cast no vote there and stand in no denominator.

    Args:
        loras: adapters, or anything that `load` takes.
        weights: one entry per adapter, any sign: a number, or a mapping from components ("unet") or layer patterns
            ("unet.up_blocks.*") to numbers, of which the last that matches wins. Default 1.0 each. An adapter at 0
            is absent.
        method: a name (see `mergelab methods`) or a strategy such as `Ties(density=0.3)`.
        rank: an int; "max" (of the inputs, layer by layer; the default); "sum"; a float in (0, 1), the share of the
            energy (squared singular values) to keep per layer; or a budget for the whole adapter,
            `RankBudget(mean=32)` or "mean=32". A rank above what a layer can hold is capped, and the report says so.
            `cat` always has the sum of the ranks.
        seed: of the random methods: a draw is a function of seed, layer, entry, and the place of the adapter's change
            among those of the layer, whatever order they are given in and whatever their weights.
        device: where to compute: "auto" (a GPU by CUDA or ROCm, where there is one and the work is worth its start;
            else the CPU), "cpu", "cuda", "cuda:1", ...; the result is the same to float tolerance, the draws are equal.
        memory: how much of a GPU's memory batches of layers may take: "8GB", "8 GiB" or bytes. Default: 80 % of what is
            free, and no more than 10 GiB.
        progress: show a bar; by default on a terminal only.
        **options: of the method: `density=`, `space=`, ...

    Returns:
        The merged adapter, float32, with a `report`; `save` writes it.

    Raises:
        MergelabError: with one sentence that says what was expected, what was found and what to do.

    Example:
        >>> import torch
        >>> from mergelab import LoraLayer, Adapter
        >>> style, subject = (
        ...     Adapter({"unet.mid_block.attentions.0.proj_in": LoraLayer(torch.randn(4, 8), torch.randn(8, 4))})
        ...     for _ in range(2))
        >>> merge([style, subject], weights=[0.7, 1.0], method="ties", density=0.5, rank=6).ranks
        {'unet.mid_block.attentions.0.proj_in': 6}
    """
    strategy = strategy_of(method, options)
    rank = strategy.checked_rank(check_rank(strategy.default_rank if rank is None else rank))
    if not isinstance(seed, Integral) or isinstance(seed, bool):
        raise OptionError(f"seed={seed!r}: expected an integer")
    memory = parsed_memory(memory)
    adapters = load_all(loras)
    names = unique_names([a.name for a in adapters])
    adapters, padded = with_one_input(adapters, names)
    weights = list(weights) if isinstance(weights, Iterable) and not isinstance(weights, (str, Mapping)) else weights
    layers_of, others = [[*a.layers, *bias_only(a)] for a in adapters], [replacing(a) for a in adapters]
    table = resolve(weights, layers_of, names, [a.architecture for a in adapters], others)
    aligned = {
        name: tuple(i for i in present if table[i][name] != 0)
        for name, present in aligned_layers(adapters, names).items()
    }
    inputs = tuple(Input(*given) for given in zip(names, adapters, table))
    job = Job(strategy, rank, inputs, int(seed), _device(device, strategy, adapters, aligned), memory)
    bar = tqdm(
        total=len(aligned),
        desc=f"merging ({name_of(strategy)}, {strategy.space})",
        unit="layer",
        disable=None if progress is None else not progress,
    )
    with hashing(a.inputs[0] for a in adapters if a.is_file) as digest_of:  # beside the computing
        with bar:
            merged = merge_layers(job, aligned, bar.update)
        layers, rows = store(job, merged)
        records = _input_records(inputs, weights, digest_of)
    if not layers:
        raise OptionError("the merge is empty: every weight is 0, so no adapter is left")
    extras, notes = merge_extras(job)
    taking_part = [given.adapter for given in inputs if any(given.weights.values())]
    recipe = Recipe(
        method=method if isinstance(method, str) else name_of(strategy),
        options={**options_record(strategy), "rank": rank_record(rank), "seed": job.seed},
        inputs=records,
    )
    dialect, spelling = common_dialect(taking_part)
    return Adapter(
        layers=layers,
        extras=extras,
        architecture=next((a.architecture for a in adapters if a.architecture), None),
        metadata=merged_metadata(recipe, taking_part),
        source="merge of " + ", ".join(names),
        report=Report(tuple(names), tuple(rows), (*_budget_notes(job, rows), *notes, *padded, *_reading_notes(job))),
        inputs=tuple(path for a in adapters for path in a.inputs),
        dialect=dialect,
        spelling=spelling,
    )


def _device(
    device: Device, strategy: Strategy, adapters: Sequence[Adapter], aligned: Mapping[str, Sequence[int]]
) -> torch.device:
    """Where to compute: what there is to do decides, and PEFT's arithmetic on the factors is that of a CPU."""
    if strategy.acts_in.acts_on_factors:
        chosen_device(device, 0.0)  # raises where there is none
        return CPU
    dense = strategy.level is not Level.LAYER and strategy.acts_in.is_dense and not strategy.is_exact_sum
    layers = ([adapters[i].layers[name] for i in present] for name, present in aligned.items() if present)
    return chosen_device(device, sum(layer_work(own[0].shape, [layer.rank for layer in own], dense) for own in layers))


def _budget_notes(job: Job, rows: Sequence[LayerReport]) -> Iterator[str]:
    """Where the layers could not spend a budget."""
    taking_part = [row.rank for row in rows if any(norm is not None for norm in row.norms)]
    if note := budget_note(job.rank, taking_part):
        yield note


def _reading_notes(job: Job) -> Iterator[str]:
    """How the files of those that take part were understood."""
    for given in job.inputs:
        if any(given.weights.values()):
            yield from (f"{given.name}: {note}" for note in carried(given.adapter.notes))


def _input_records(
    inputs: Sequence[Input], weights: Sequence[Weight] | None, digest_of: Callable[[Path], str]
) -> list[dict[str, Any]]:
    """What the recipe says of each input."""
    records = [weight_record(w, given.weights) for w, given in zip(weights or [1.0] * len(inputs), inputs)]
    return [input_record(given.adapter, record, digest_of) for given, record in zip(inputs, records)]
