"""Align the layers of several adapters, apply a strategy to each, and report."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, is_dataclass, replace
from numbers import Integral
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from mergelab.adapter import Adapter, Source, load
from mergelab.errors import ArchitectureError, LayerError, OptionError
from mergelab.layer import BIAS, LoraLayer, layer_of, same_weight
from mergelab.lowrank import Core, Factors, Spectrum, core, exact_arithmetic, inner, stack, svd, svd_dense
from mergelab.provenance import Recipe, input_record, merged_metadata
from mergelab.ranks import Rank, RankBudget, check_rank, cut, rank_note, wanted
from mergelab.report import LayerReport, Report
from mergelab.spaces import Merged, Stacked, combine, merge_layer, view_of
from mergelab.sparsify import Trim, kth_largest_magnitudes
from mergelab.strategies import METHODS, Cat, Strategy, make
from mergelab.weights import Weight, resolve

# Energy below this share of the inputs' is what float32 leaves of a sum that is zero.
CANCELLED = 1e-12


@exact_arithmetic()
def merge(
    loras: Sequence[Adapter | Source],
    weights: Sequence[Weight] | None = None,
    method: str | Strategy = "svd",
    *,
    rank: Rank | None = None,
    seed: int = 0,
    device: torch.device | str | None = None,
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
            energy (squared singular values) to keep per layer; or `RankBudget(mean=32)`. A rank above what a layer
            can hold is capped, and the report says so. `cat` always has the sum of the ranks.
        seed: of the random methods; each layer draws from a generator of its own.
        device: where to compute, "cpu" by default; one layer at a time is moved there.
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
    strategy = make(method, options)
    if rank is None:
        rank = "sum" if isinstance(strategy, Cat) else "max"
    rank = check_rank(rank)
    if not isinstance(seed, Integral) or isinstance(seed, bool):
        raise OptionError(f"seed={seed!r}: expected an integer")
    if isinstance(strategy, Cat) and rank != "sum":
        raise OptionError(f"cat keeps the sum of the ranks; for rank={rank!r} use method='svd', the same sum truncated")
    adapters = loaded(loras)
    names = unique_names([a.name for a in adapters])
    weights = list(weights) if isinstance(weights, Iterable) and not isinstance(weights, (str, Mapping)) else weights
    table = resolve(weights, [[*a.layers, *_bias_only(a)] for a in adapters], names)
    aligned = {
        name: tuple(i for i in present if table[i][name] != 0)
        for name, present in aligned_layers(adapters, names).items()
    }
    job = _Job(strategy, rank, adapters, table, seed, _usable(device))
    thresholds = _adapter_thresholds(job, aligned)

    with tqdm(
        total=len(aligned),
        desc=f"merging ({method_label(strategy)})",
        unit="layer",
        disable=None if progress is None else not progress,
    ) as bar:
        results = []
        for name, present in aligned.items():
            results.append(_merge_one(job, name, present, thresholds))
            bar.update()
    layers, rows = _store(job, results)
    if not layers:
        raise OptionError("the merge is empty: every weight is 0, so no adapter is left")
    extras, notes = _merge_extras(job, names)
    taking_part = [a for a, own in zip(adapters, table) if any(own.values())]
    recipe = Recipe(
        method=_name_of(method, strategy),
        options=_options_record(strategy, rank, seed),
        inputs=[input_record(a, _weight_record(w)) for a, w in zip(adapters, weights or [1.0] * len(adapters))],
    )
    return Adapter(
        layers=layers,
        extras=extras,
        architecture=next((a.architecture for a in adapters if a.architecture), None),
        metadata=merged_metadata(recipe, taking_part),
        source="merge of " + ", ".join(names),
        report=Report(tuple(names), tuple(rows), tuple(notes)),
        inputs=tuple(path for a in adapters for path in a.inputs),
    )


@dataclass(frozen=True)
class _Job:
    strategy: Strategy
    rank: Rank
    adapters: list[Adapter]
    weights: list[dict[str, float]]
    seed: int
    device: torch.device


@dataclass(frozen=True)
class _Result:
    """One merged layer before its rank is final: a spectrum to cut, or factors that stay as they are."""

    name: str
    shape: tuple[int, ...]
    spectrum: Spectrum | None
    factors: Factors | None
    present: tuple[int, ...]
    energy: float
    kept: float


def _usable(device: torch.device | str | None) -> torch.device:
    """A device that tensors can be put on."""
    try:
        found = torch.device(device or "cpu")
        torch.zeros(1, device=found).sum().item()
    except (RuntimeError, AssertionError, ValueError) as error:
        reason = " ".join(str(error).split())[:100]
        raise OptionError(f"device={str(device)!r} cannot be used here, expected 'cpu' or 'cuda': {reason}") from None
    return found


def loaded(loras: Sequence[Adapter | Source], least: int = 1) -> list[Adapter]:
    """Adapters from whatever was given, none of them empty."""
    if isinstance(loras, (str, Adapter, Mapping)) or not isinstance(loras, Iterable):
        raise OptionError(f"expected a list of adapters or files, found {type(loras).__name__}")
    adapters = [lora if isinstance(lora, Adapter) else load(lora) for lora in loras]
    if len(adapters) < least:
        raise OptionError(f"expected at least {least} adapters, found {len(adapters)}")
    for adapter in adapters:
        if not adapter.layers:
            raise LayerError(f"{adapter.source}: holds no layer; expected at least one")
    return adapters


def unique_names(names: list[str]) -> list[str]:
    """Names for reports; a repeated one gets a number."""
    seen: dict[str, int] = {}
    unique = []
    for name in names:
        seen[name] = seen.get(name, 0) + 1
        unique.append(name if seen[name] == 1 else f"{name}#{seen[name]}")
    return unique


def aligned_layers(adapters: Sequence[Adapter], names: Sequence[str]) -> dict[str, list[int]]:
    """Layer name -> the adapters that have it; every layer of every adapter, in the order of the files.

    Raises:
        ArchitectureError, LayerError: the adapters are for different base models.
    """
    known = {a.architecture: name for a, name in zip(adapters, names) if a.architecture}
    if len(known) > 1:
        found = ", ".join(f"{name} is for {architecture}" for architecture, name in known.items())
        raise ArchitectureError(
            f"adapters for different base models do not go together: {found}; use adapters of one base model"
        )
    aligned: dict[str, list[int]] = {}
    for i, adapter in enumerate(adapters):
        for name in adapter.layers:
            aligned.setdefault(name, []).append(i)
    for name, present in aligned.items():
        first = present[0]
        for i in present[1:]:
            expected, shape = adapters[first].layers[name].shape, adapters[i].layers[name].shape
            if not same_weight(expected, shape):
                raise LayerError(
                    f"layer {name}: {names[first]} changes a weight of shape {expected}, {names[i]} one of shape "
                    f"{shape}; they were trained on different base models"
                )
    return aligned


@dataclass(frozen=True)
class _Aligned:
    """The changes of one layer, in the order in which they are merged."""

    present: list[int]
    changes: list[Factors]
    weights: list[float]


def _changes(job: _Job, name: str, present: Sequence[int]) -> _Aligned:
    """Factors and weights of those present; in space "factors" as PEFT has them, unscaled and in the order given."""
    if job.strategy.space == "factors":
        layers = [job.adapters[i].layers[name] for i in present]
        checked = [job.adapters[i].matrices(name, job.device) for i in present]
        changes = [Factors(x.lora_B.flatten(1).to(c.B), c.A) for x, c in zip(layers, checked)]
        return _Aligned(list(present), changes, [job.weights[i][name] * x.scaling for i, x in zip(present, layers)])
    found = {i: job.adapters[i].matrices(name, job.device) for i in present}
    order = _canonical_order(job, name, found)
    return _Aligned(order, [found[i] for i in order], [job.weights[i][name] for i in order])


def _merge_one(job: _Job, name: str, present: tuple[int, ...], thresholds: dict[int, float] | None) -> _Result:
    shape = max((a.layers[name].shape for a in job.adapters if name in a.layers), key=len)
    ranks = tuple(job.adapters[i].layers[name].rank for i in present)
    if not present:
        return _Result(name, shape, None, None, present, 0.0, 0.0)
    if isinstance(job.strategy, Cat):
        weights = job.weights
        factors = stack([job.adapters[i].matrices(name, job.device).scaled(weights[i][name]) for i in present])
        energy = inner(factors, factors)
        return _Result(name, shape, None, _to_cpu(factors), present, energy, energy)
    aligned = _changes(job, name, present)
    merged = merge_layer(
        job.strategy,
        aligned.changes,
        aligned.weights,
        [layer_generator(job.seed, name, i) for i in range(len(present))],
        None if thresholds is None else [thresholds[i] for i in aligned.present],
    )
    limit = min(shape[0], math.prod(shape[1:]))
    ask = wanted(job.rank, ranks, limit)
    final = isinstance(ask, int) and not isinstance(job.rank, RankBudget)
    if isinstance(merged, Factors) and final and ask >= merged.A.shape[0]:
        energy = inner(merged, merged)
        return _Result(name, shape, None, _to_cpu(merged), present, energy, energy)
    try:
        spectrum = _decompose(merged, ask, layer_generator(job.seed, name, -1))
    except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
        spectrum = None
    if spectrum is None or not math.isfinite(spectrum.energy):
        raise LayerError(
            f"layer {name}: the merge has values that float32 cannot hold; expected weights, lam and density of "
            f"ordinary size, found weights {[job.weights[i][name] for i in present]} and {job.strategy}"
        )
    if isinstance(job.rank, RankBudget):  # what it gets is known when all layers are
        return _Result(name, shape, _spectrum_to_cpu(spectrum), None, present, spectrum.energy, spectrum.kept)
    factors = _to_cpu(spectrum.factors())
    return _Result(name, shape, None, factors, present, spectrum.energy, spectrum.kept)


def _decompose(merged: Merged, ask: int | float, generator: torch.Generator) -> Spectrum:
    if isinstance(merged, Tensor):
        spectrum = svd_dense(merged, ask, generator)
    else:
        spectrum = svd(merged if isinstance(merged, Core) else core(merged))
    return cut(spectrum, ask)


def layer_generator(seed: int, name: str, index: int) -> torch.Generator:
    """The generator of one layer and one adapter: it depends on the seed and the layer's name, and on nothing else."""
    digest = hashlib.sha256(f"{seed}/{name}/{index}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def _canonical_order(job: _Job, name: str, changes: Mapping[int, Factors]) -> list[int]:
    """An order of the adapters that does not depend on how they were listed, nor on how a file factors a change.

    The changes are sorted by one fixed random projection of each, `w u.T delta v`. Which adapter gets which random
    draw, and in which order floating point sums them, then depends on the changes alone.
    """
    out, columns = next(iter(changes.values())).shape
    generator = layer_generator(job.seed, name, -2)
    u = torch.randn(out, generator=generator, dtype=torch.float64).to(job.device)
    v = torch.randn(columns, generator=generator, dtype=torch.float64).to(job.device)
    keys = {i: job.weights[i][name] * float((u @ c.B.double()) @ (c.A.double() @ v)) for i, c in changes.items()}
    return sorted(keys, key=keys.__getitem__)


def _adapter_thresholds(job: _Job, aligned: dict[str, tuple[int, ...]]) -> dict[int, float] | None:
    """Thresholds of a trim over whole adapters, in the space where the rule acts; None for any other trim."""
    sparsifier = job.strategy.sparsifier
    if not isinstance(sparsifier, Trim) or sparsifier.scope != "adapter":
        return None

    def views() -> Iterator[tuple[list[int], Stacked]]:
        for name, present in aligned.items():
            if present:
                layer = _changes(job, name, present)
                (stacked,) = view_of(job.strategy, layer.changes, layer.weights).stacks
                yield layer.present, stacked

    def passes() -> Iterator[tuple[int, Tensor]]:
        for present, stacked in views():
            yield from ((present[i], block) for i, block in stacked.entries())

    sizes = [0] * len(job.adapters)
    for present, stacked in views():
        for i in present:
            sizes[i] += math.prod(stacked.shape)
    counts = [int(sparsifier.density * size) for size in sizes]
    return dict(enumerate(kth_largest_magnitudes(passes, counts, sizes)))


def _store(job: _Job, results: list[_Result]) -> tuple[dict[str, LoraLayer], list[LayerReport]]:
    """Cut every layer to its final rank; layers that end with none are left out and reported."""
    spectra = [r.spectrum for r in results if r.spectrum is not None]
    spent = iter(job.rank.spend([s.S for s in spectra]) if isinstance(job.rank, RankBudget) and spectra else ())
    layers, rows = {}, []
    for result in results:
        factors, kept = result.factors, result.kept
        if result.spectrum is not None:
            spectrum = result.spectrum.truncated(next(spent))
            kept = spectrum.kept
            factors = spectrum.factors() if len(spectrum.S) else None
        if factors is not None:
            layers[result.name] = layer_of(factors, result.shape)
        rows.append(_row(job, result, factors, kept))
    return layers, rows


def _row(job: _Job, result: _Result, factors: Factors | None, kept: float) -> LayerReport:
    projections: list[float | None] = [None] * len(job.adapters)
    norms: list[float | None] = [None] * len(job.adapters)
    for i in result.present:
        change = job.adapters[i].matrices(result.name).scaled(job.weights[i][result.name])
        norms[i] = inner(change, change)
        projections[i] = inner(factors, change) if factors is not None else 0.0
    rank = factors.A.shape[0] if factors is not None else 0
    note = rank_note(job.rank, rank) if result.present else "left out: every weight is 0 there"
    energy = result.energy
    if result.present and energy < CANCELLED * sum(n for n in norms if n is not None):
        energy, kept, note = 0.0, 0.0, "the inputs cancel: what is left is rounding"
    return LayerReport(result.name, rank, energy, kept, tuple(projections), tuple(norms), note)


def _bias_only(adapter: Adapter) -> list[str]:
    """Layers of which an adapter changes nothing but the bias."""
    biased = (key.removesuffix(BIAS) for key in adapter.extras if key.endswith(BIAS))
    return [name for name in biased if name not in adapter.layers]


def _merge_extras(job: _Job, names: Sequence[str]) -> tuple[dict[str, Tensor], list[str]]:
    """Bias differences are merged by the rule; other extras are kept where they do not clash."""
    extras: dict[str, Tensor] = {}
    notes: list[str] = []
    taken: dict[str, list[str]] = {}
    owners: dict[str, list[int]] = {}
    for i, adapter in enumerate(job.adapters):
        for key in adapter.extras:
            layer = key.removesuffix(BIAS)
            if job.weights[i][layer] != 0 if key.endswith(BIAS) else any(job.weights[i].values()):
                owners.setdefault(key, []).append(i)
    for key, present in owners.items():
        tensors = [job.adapters[i].extras[key] for i in present]
        if key.endswith(BIAS):
            extras[key] = _merge_bias(job, key, {i: t.float() for i, t in zip(present, tensors)}, names)
        elif all(torch.equal(t, tensors[0]) for t in tensors[1:]):
            extras[key] = tensors[0]
            taken.setdefault(names[present[0]], []).append(key)
        else:
            found = ", ".join(names[i] for i in present)
            notes.append(f"{key} is not merged: {found} hold different values, which replace rather than add")
    for name, keys in taken.items():
        some = keys[0] if len(keys) == 1 else f"{len(keys)} tensors ({keys[0]}, ...)"
        notes.append(f"{some} taken over from {name} as they are; weights do not apply to them")
    return extras, notes


def _merge_bias(job: _Job, key: str, biases: dict[int, Tensor], names: Sequence[str]) -> Tensor:
    """The rule on dense differences, a bias being a matrix of one row."""
    if len({t.shape for t in biases.values()}) > 1:
        found = ", ".join(f"{names[i]} {tuple(t.shape)}" for i, t in biases.items())
        raise LayerError(f"{key}: the biases have different shapes: {found}; are they for one base model?")
    strategy = replace(job.strategy, space="delta", basis="changes")
    weights = {i: job.weights[i][key.removesuffix(BIAS)] for i in biases}
    order = sorted(biases, key=lambda i: weights[i] * float(biases[i].double().sum()))
    rows = [Factors(torch.ones(1, 1), biases[i][None]) for i in order]
    (stacked,) = view_of(strategy, rows, [weights[i] for i in order]).stacks
    generators = [layer_generator(job.seed, key, i) for i in range(len(order))]
    return strategy.factor * combine(strategy, stacked, generators)[0]


def _to_cpu(factors: Factors) -> Factors:
    return Factors(factors.B.cpu().contiguous(), factors.A.cpu().contiguous())


def _spectrum_to_cpu(spectrum: Spectrum) -> Spectrum:
    # Copies: a view would keep the whole decomposition in memory.
    return Spectrum(spectrum.U.cpu().clone(), spectrum.S.cpu(), spectrum.V.cpu().clone(), spectrum.energy)


def method_label(strategy: Strategy) -> str:
    """What the progress bar calls a strategy."""
    return f"{type(strategy).__name__.lower()}, {strategy.space}"


def _name_of(method: str | Strategy, strategy: Strategy) -> str:
    names = {cls: name for name, cls in reversed(METHODS.items())}
    return method if isinstance(method, str) else names.get(type(strategy), type(strategy).__name__)


def _options_record(strategy: Strategy, rank: Rank, seed: int) -> dict[str, Any]:
    options = dict(vars(strategy))
    if rule := options.pop("function", None):
        # A dataclass shows its own options; a function only where it comes from, not where it lies in memory.
        options["rule"] = repr(rule) if is_dataclass(rule) else f"{rule.__module__}.{rule.__qualname__}"
    stored = {"mean": rank.mean, "max": rank.limit} if isinstance(rank, RankBudget) else rank
    return {**options, "rank": stored, "seed": seed}


def _weight_record(weight: Weight) -> Any:
    return {k: float(v) for k, v in weight.items()} if isinstance(weight, Mapping) else float(weight)
