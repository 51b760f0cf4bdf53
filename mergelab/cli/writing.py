"""Commands that write an adapter: merge, convert, resize, compose."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mergelab.cli.arguments import (
    Base,
    BaseModel,
    Device,
    DropExtras,
    Dtype,
    File,
    For,
    Force,
    Format,
    FormatOrPacked,
    Import,
    Out,
    Pickle,
    Quantized,
    check_spelling,
    import_plugins,
    integer,
    number,
    split_options,
)
from mergelab.cli.inputs import open_input, without_extras
from mergelab.cli.outputs import Output
from mergelab.cli.strengths import (
    Blocks,
    DryRun,
    FromConfig,
    Weighted,
    by_block,
    device_of,
    given,
    loaded,
    weight_table,
)
from mergelab.errors import OptionError
from mergelab.report import carried
from mergelab.tables import counted

if TYPE_CHECKING:
    from mergelab.adapter import Adapter
    from mergelab.engine.weights import Weight
    from mergelab.ranks import Rank

_COMPOSED_FOR = "nunchaku"


def merge(
    context: typer.Context,
    output: Out,
    adapters: Weighted = None,
    config: FromConfig = None,
    block_weights: Blocks = None,
    method: Annotated[str, typer.Option(help="See `mergelab methods`.")] = "svd",
    rank: Annotated[
        str | None,
        typer.Option(
            help="8, max, sum, 0.9 (share of energy), mean=32 (a budget) or kohya's sv_ratio=2, sv_fro=0.9, "
            "sv_cumulative=0.8, with a cap sv_ratio=2,max=32; default: max of the inputs, sum for cat."
        ),
    ] = None,
    space: Annotated[str | None, typer.Option(help="delta (default), core, knots or factors.")] = None,
    density: Annotated[
        float | None,
        typer.Option(
            help="Share of entries kept, of ties, dare, magnitude_prune; default: 0.5.", parser=number, metavar="FLOAT"
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of random methods.", parser=integer, metavar="INTEGER")] = 0,
    device: Device = None,
    memory: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE", help="Of a GPU, for batches of layers: 8GB; default: 80 % of what is free, at most 10 GiB."
        ),
    ] = None,
    format: Format = None,
    for_: For = None,
    dtype: Dtype = None,
    drop_extras: DropExtras = False,
    force: Force = False,
    allow_pickle: Pickle = False,
    architecture: BaseModel = None,
    base: Base = None,
    plugins: Import = None,
    dry_run: DryRun = False,
) -> str:
    """Merge adapters into one. Other options of a method are given as --name value."""
    from mergelab.devices import LAYER_BY_LAYER, chosen_device, parsed_memory
    from mergelab.engine.merge import merge as merge_adapters
    from mergelab.ranks import parse_rank

    import_plugins(plugins)
    adapters, options = split_options([*(adapters or ()), *context.args])
    check_spelling(options, method, [flag for parameter in context.command.params for flag in parameter.opts])
    options.update({k: v for k, v in (("space", space), ("density", density)) if v is not None})
    out = Output(output, format, for_, dtype, force)
    target = None if rank is None else parse_rank(rank)
    asked = given(adapters, config)
    device, said = device_of(asked, device)
    chosen_device(device, LAYER_BY_LAYER), parsed_memory(memory)  # raise before an adapter is read
    originals = loaded(asked, allow_pickle, architecture, base)
    left_out, inputs = without_extras(originals) if drop_extras else ([], originals)
    weights = by_block(inputs, asked.weights, block_weights)
    present = [adapter for adapter, weight in zip(inputs, weights) if weight != 0]
    chosen = out.check(present or inputs)
    if dry_run:
        planned = _planned_merge(inputs, weights, method, target, options)
        return "\n".join([*left_out, *said, weight_table(inputs, weights), out.unwritten(planned, chosen)])
    merged = merge_adapters(inputs, weights, method, rank=target, seed=seed, device=device, memory=memory, **options)
    return "\n".join([*left_out, *said, *out.write(merged), *merged.report.lines()])


def convert(
    file: File,
    output: Out,
    format: FormatOrPacked = None,
    for_: For = None,
    dtype: Dtype = None,
    quantized: Quantized = None,
    drop_extras: DropExtras = False,
    force: Force = False,
    allow_pickle: Pickle = False,
    architecture: BaseModel = None,
    base: Base = None,
    block_weights: Blocks = None,
    rank: Annotated[
        str | None,
        typer.Option(help="8, 0.9 (share of energy) or mean=32: for LoKr, DoRA and the like; default: exact."),
    ] = None,
    dry_run: DryRun = False,
) -> str:
    """Write an adapter in another format; without weights by block or a rank every layer keeps its change exactly."""
    from mergelab.ranks import own_rank, parse_rank

    if format is None and for_ is None:
        raise OptionError("convert needs --for TOOL or --format FORMAT; see mergelab convert --help")
    target = None if rank is None else own_rank(parse_rank(rank))
    out = Output(output, format, for_, dtype, force, quantized)
    opened = open_input(file, out, drop_extras, allow_pickle, architecture, base, block_weights)
    if dry_run:
        return opened.planned(out, counted(len(opened.adapter.layers), "layer"))
    adapter = opened.adapter if target is None else opened.adapter.resize(target)
    said = replace(adapter.report, notes=carried(adapter.report.notes)).lines()
    return "\n".join([*opened.left_out, *out.write(adapter), *said])


def resize(
    file: File,
    rank: Annotated[
        str,
        typer.Option(
            help="8, 0.9 (share of energy), mean=32 (a budget) or kohya's sv_ratio=2, sv_fro=0.9, sv_cumulative=0.8; "
            "with a cap sv_ratio=2,max=32."
        ),
    ],
    output: Out,
    format: Format = None,
    for_: For = None,
    dtype: Dtype = None,
    drop_extras: DropExtras = False,
    force: Force = False,
    allow_pickle: Pickle = False,
    architecture: BaseModel = None,
    base: Base = None,
    block_weights: Blocks = None,
    device: Device = None,
    dry_run: DryRun = False,
) -> str:
    """Write the best approximation of an adapter at another rank, and say what it lost."""
    from mergelab.devices import LAYER_BY_LAYER, chosen_device
    from mergelab.ranks import own_rank, parse_rank, rank_text

    target = own_rank(parse_rank(rank))
    out = Output(output, format, for_, dtype, force)
    chosen = chosen_device(device, LAYER_BY_LAYER)
    opened = open_input(file, out, drop_extras, allow_pickle, architecture, base, block_weights)
    if dry_run:
        return opened.planned(out, f"rank {rank_text(target)}, {counted(len(opened.adapter.layers), 'layer')}")
    resized = opened.adapter.resize(target, device=chosen)
    return "\n".join([*opened.left_out, *out.write(resized), *resized.report.lines()])


def compose(
    files: Annotated[
        list[str], typer.Option("-i", "--input-paths", help="Adapters for FLUX.1, one or several.", metavar="FILE ...")
    ],
    strengths: Annotated[
        list[float],
        typer.Option("-s", "--strengths", help="As many strengths, of any sign.", parser=number, metavar="NUMBER ..."),
    ],
    output: Annotated[Path, typer.Option("-o", "--output-path", "--output", help="File to write.")],
    rank: Annotated[
        str | None,
        typer.Option(
            help="Of quantised layers: 256, 0.9 (share of energy) or mean=128 (a budget); default: the exact sum."
        ),
    ] = None,
    dtype: Dtype = None,
    drop_extras: DropExtras = False,
    force: Force = False,
    allow_pickle: Pickle = False,
    architecture: BaseModel = None,
    base: Base = None,
) -> str:
    """Compose FLUX.1 adapters into one for nunchaku, exactly or at a rank of your choice."""
    from mergelab.adapter import load
    from mergelab.engine.composing import checked, composed
    from mergelab.ranks import parse_rank

    out = Output(output, None, _COMPOSED_FOR, dtype, force)
    target = None if rank is None else parse_rank(rank)
    loaded = [load(file, allow_pickle=allow_pickle, architecture=architecture, base=base) for file in files]
    left_out, loaded = without_extras(loaded) if drop_extras else ([], loaded)
    numbers = checked(loaded, strengths)
    out.check(loaded)
    made = composed(loaded, numbers, rank=target)
    return "\n".join([*left_out, *out.write(made), *made.report.lines()])


def _planned_merge(
    adapters: Sequence[Adapter],
    weights: Sequence[Weight],
    method: str,
    target: Rank | None,
    options: Mapping[str, Any],
) -> str:
    """What would be merged, in words; raises where it could not."""
    from mergelab.engine.aligning import aligned_layers, load_all, unique_names, with_one_input
    from mergelab.engine.weights import resolve
    from mergelab.methods.registry import strategy_of
    from mergelab.ranks import check_rank, rank_text

    strategy = strategy_of(method, dict(options))
    rank = strategy.checked_rank(check_rank(strategy.default_rank if target is None else target))
    names = unique_names([adapter.name for adapter in load_all(adapters)])
    same = with_one_input(adapters, names)[0]
    layers = aligned_layers(same, names)
    architectures = [adapter.architecture for adapter in same]
    weighed = resolve(weights, [adapter.layers for adapter in same], names, architectures)
    kept = [name for name in layers if any(own.get(name) for own in weighed)]
    return f"method {method}, rank {rank_text(rank)}, {counted(len(kept), 'layer')}"
