"""Merge adapters: align their layers, apply one recipe or several to each, and report."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tqdm import tqdm

from mergelab.adapter import Adapter, Source
from mergelab.checks import short_repr
from mergelab.devices import AUTO, Device, parsed_memory
from mergelab.engine.aligning import load_all
from mergelab.engine.asking import Asked, Inputs, jobs_of
from mergelab.engine.layers import merge_layers
from mergelab.engine.outcome import outcome_of
from mergelab.engine.results import MergedLayer
from mergelab.engine.weights import Weight
from mergelab.errors import OptionError
from mergelab.formats import hashing
from mergelab.linalg.precision import full_precision
from mergelab.methods.method import Strategy
from mergelab.methods.registry import name_of
from mergelab.ranks import Rank

# What a recipe cannot have, since there is one for all of them.
_OF_ALL = ("loras", "device", "memory", "progress")


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
            energy (squared singular values) to keep per layer; a budget for the whole adapter, `RankBudget(mean=32)`
            or "mean=32"; or one of kohya's rules per layer, `SvRatio(2, max=32)` or "sv_ratio=2,max=32", `SvFro(0.9)`,
            `SvCumulative(0.8)`. A rank above what a layer can hold is capped, and the report says so. `cat` always has
            the sum of the ranks.
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
    asked = Asked("", weights, method, rank, seed, options)
    return _merge_all(loras, [asked], device, memory, progress)[0]


@full_precision()
def merge_many(
    loras: Sequence[Adapter | Source],
    recipes: Sequence[Mapping[str, Any]],
    *,
    device: Device = AUTO,
    memory: int | str | None = None,
    progress: bool | None = None,
) -> list[Adapter]:
    """Merge the same adapters by several recipes, at less than the cost of so many merges.

    The adapters are read, checked, hashed and brought to the device once; Gram matrices, thresholds of a trim and whole
    merges that differ in the rank alone are computed once for all recipes that need them. Each result is, byte for byte
    on a CPU, that of `merge(loras, **recipe)`. All of them are in memory at the end.

    Args:
        loras: adapters, or anything that `load` takes.
        recipes: keyword arguments of `merge`, for each result a mapping of them: method, weights, rank, seed, options.
        device: where to compute, as for `merge`: one place for all, except that PEFT's arithmetic on factors is always
            done on the CPU.
        memory: as for `merge`.
        progress: show one bar for all; by default on a terminal only.

    Returns:
        The merged adapters, in the order of the recipes.

    Raises:
        MergelabError: as `merge`; what is wrong in a recipe is said with its number, "recipe 3" for the third, and, as
            far as its words can tell, before anything is computed.

    Example:
        >>> recipes = [{"method": "svd", "rank": 8}, *({"method": "ties", "density": d} for d in (0.3, 0.5))]
        >>> merges = merge_many(["miniature/sdxl/ghost", "miniature/sdxl/day"], recipes)
        >>> [merged.report.retained_energy < 1 for merged in merges]
        [True, True, True]
    """
    if isinstance(recipes, (str, Mapping)) or not isinstance(recipes, Iterable):
        raise OptionError(
            f"recipes={short_repr(recipes)}: expected a list of mappings, as in [{{'method': 'svd', 'rank': 16}}]"
        )
    return _merge_all(loras, [_asked(i, recipe) for i, recipe in enumerate(recipes, 1)], device, memory, progress)


def _asked(number: int, recipe: Mapping[str, Any]) -> Asked:
    """A recipe, told from others by its number."""
    name = f"recipe {number}"
    if not isinstance(recipe, Mapping):
        raise OptionError(f"{name}: expected a mapping as {{'method': 'svd', 'rank': 16}}, found {short_repr(recipe)}")
    for key in recipe:
        if not isinstance(key, str):
            raise OptionError(f"{name}: {short_repr(key)}: expected the name of an argument of merge")
        if key in _OF_ALL:
            where = "merge_many(loras, recipes)" if key == "loras" else f"merge_many(loras, recipes, {key}=...)"
            raise OptionError(f"{name}: {key!r} is one for all recipes: expected {where}")
    options = dict(recipe)
    own = {key: options.pop(key) for key in ("weights", "method", "rank", "seed") if key in options}
    return Asked(name, options=options, **own)


def _merge_all(
    loras: Sequence[Adapter | Source],
    recipes: Sequence[Asked],
    device: Device,
    memory: int | str | None,
    progress: bool | None,
) -> list[Adapter]:
    choices = [asked.checked() for asked in recipes]
    most = parsed_memory(memory)
    inputs = Inputs.of(load_all(loras))
    jobs = jobs_of(recipes, choices, inputs, device, most)
    present = [inputs.present(job) for job in jobs]
    merged: dict[int, list[MergedLayer]] = {}
    bar = tqdm(
        total=sum(map(len, present)),
        desc=f"merging ({_summed_up([strategy for strategy, _ in choices])})",
        unit="layer",
        disable=None if progress is None else not progress,
    )
    with hashing(a.inputs[0] for a in inputs.adapters if a.is_file) as digest_of:  # beside the computing
        with bar:
            for where in dict.fromkeys(job.device for job in jobs):
                own = [i for i, job in enumerate(jobs) if job.device == where]
                merged |= zip(own, merge_layers([jobs[i] for i in own], [present[i] for i in own], bar.update))
        return [outcome_of(*one, merged.pop(i), inputs, digest_of) for i, one in enumerate(zip(jobs, recipes))]


def _summed_up(strategies: Sequence[Strategy]) -> str:
    """What a progress bar calls the merges."""
    if len(strategies) != 1:
        return f"{len(strategies)} recipes"
    return f"{name_of(strategies[0])}, {strategies[0].space}"
