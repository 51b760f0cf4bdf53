"""Commands that write an adapter: merge, convert, resize."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mergelab.cli.arguments import (
    BaseModel,
    DropExtras,
    Dtype,
    File,
    For,
    Force,
    Format,
    Import,
    Out,
    Pickle,
    check_spelling,
    import_plugins,
    integer,
    number,
    split_options,
)
from mergelab.cli.strengths import Blocks, DryRun, FromConfig, Weighted, by_block, given, loaded, weight_table
from mergelab.errors import OptionError
from mergelab.report import carried
from mergelab.tables import counted

if TYPE_CHECKING:
    from mergelab.adapter import Adapter
    from mergelab.ranks import Rank


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
            help="8, max, sum, 0.9 (share of energy) or mean=32 (a budget); default: max of the inputs, sum for cat."
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
    device: Annotated[str | None, typer.Option(help="cpu (default) or cuda.")] = None,
    format: Format = None,
    for_: For = None,
    dtype: Dtype = None,
    drop_extras: DropExtras = False,
    force: Force = False,
    allow_pickle: Pickle = False,
    architecture: BaseModel = None,
    plugins: Import = None,
    dry_run: DryRun = False,
) -> str:
    """Merge adapters into one. Other options of a method are given as --name value."""
    from mergelab.engine.merge import merge as merge_adapters
    from mergelab.ranks import parse_rank

    import_plugins(plugins)
    adapters, options = split_options([*(adapters or ()), *context.args])
    check_spelling(options, method, [flag for parameter in context.command.params for flag in parameter.opts])
    options.update({k: v for k, v in (("space", space), ("density", density)) if v is not None})
    _check_options(format, for_, dtype)
    target = None if rank is None else parse_rank(rank)
    asked = given(adapters, config)
    originals = loaded(asked, allow_pickle, architecture)
    left_out, inputs = _without_extras(originals) if drop_extras else ([], originals)
    weights = by_block(inputs, asked.weights, block_weights)
    present = [adapter for adapter, weight in zip(inputs, weights) if weight != 0]
    chosen = _check_writable(present or inputs, output, format, for_, force)
    if dry_run:
        planned = _planned_merge(inputs, method, target, options)
        return "\n".join([*left_out, weight_table(inputs, weights), _unwritten(output, planned, chosen)])
    merged = merge_adapters(inputs, weights, method, rank=target, seed=seed, device=device, **options)
    return "\n".join([*left_out, *_save(merged, output, format, for_, dtype), *merged.report.lines()])


def convert(
    file: File,
    output: Out,
    format: Format = None,
    for_: For = None,
    dtype: Dtype = None,
    drop_extras: DropExtras = False,
    force: Force = False,
    allow_pickle: Pickle = False,
    architecture: BaseModel = None,
    block_weights: Blocks = None,
    dry_run: DryRun = False,
) -> str:
    """Write an adapter in another format; every layer keeps its change exactly."""
    if format is None and for_ is None:
        raise OptionError("convert needs --for TOOL or --format FORMAT; see mergelab convert --help")
    left_out, adapter, chosen, table = _open(
        file, output, format, for_, dtype, drop_extras, force, allow_pickle, architecture, block_weights
    )
    if dry_run:
        return "\n".join([*left_out, table, _unwritten(output, counted(len(adapter.layers), "layer"), chosen)])
    said = replace(adapter.report, notes=carried(adapter.report.notes)).lines()
    return "\n".join([*left_out, *_save(adapter, output, format, for_, dtype), *said])


def resize(
    file: File,
    rank: Annotated[str, typer.Option(help="8, 0.9 (share of energy) or mean=32 (a budget).")],
    output: Out,
    format: Format = None,
    for_: For = None,
    dtype: Dtype = None,
    drop_extras: DropExtras = False,
    force: Force = False,
    allow_pickle: Pickle = False,
    architecture: BaseModel = None,
    block_weights: Blocks = None,
    dry_run: DryRun = False,
) -> str:
    """Write the best approximation of an adapter at another rank, and say what it lost."""
    from mergelab.ranks import parse_rank, rank_text

    if (target := parse_rank(rank)) in ("max", "sum"):
        raise OptionError(f"rank={rank!r}: expected a number such as 16, 0.9 (share of energy) or mean=16 (a budget)")
    left_out, adapter, chosen, table = _open(
        file, output, format, for_, dtype, drop_extras, force, allow_pickle, architecture, block_weights
    )
    if dry_run:
        planned = f"rank {rank_text(target)}, {counted(len(adapter.layers), 'layer')}"
        return "\n".join([*left_out, table, _unwritten(output, planned, chosen)])
    resized = adapter.resize(target)
    return "\n".join([*left_out, *_save(resized, output, format, for_, dtype), *resized.report.lines()])


def _check_options(format: str | None, for_: str | None, dtype: str | None) -> None:
    from mergelab.formats import check_choice, to_dtype

    check_choice(format, for_)
    to_dtype(dtype)


def _check_writable(
    adapters: Sequence[Adapter], output: Path, format: str | None, for_: str | None, force: bool
) -> str:
    """The format of a result of these inputs; raises where it cannot be written there, before it is computed."""
    from mergelab.formats import check_writable
    from mergelab.formats.targets import check_target

    chosen = check_writable(adapters, format, for_)
    check_target(output, [path for adapter in adapters for path in adapter.inputs], force, chosen)
    return chosen


def _planned_merge(adapters: Sequence[Adapter], method: str, target: Rank | None, options: Mapping[str, Any]) -> str:
    """What would be merged, in words; raises where it could not."""
    from mergelab.engine.aligning import aligned_layers, load_all, unique_names, with_one_input
    from mergelab.methods.registry import strategy_of
    from mergelab.ranks import check_rank, rank_text

    strategy = strategy_of(method, dict(options))
    rank = strategy.checked_rank(check_rank(strategy.default_rank if target is None else target))
    names = unique_names([adapter.name for adapter in load_all(adapters)])
    layers = aligned_layers(with_one_input(adapters, names)[0], names)
    return f"method {method}, rank {rank_text(rank)}, {counted(len(layers), 'layer')}"


def _unwritten(output: Path, planned: str, format: str) -> str:
    return f"dry run, nothing was written; {output} would be: {planned}, format {format}"


def _open(
    file: str,
    output: Path,
    format: str | None,
    for_: str | None,
    dtype: str | None,
    drop_extras: bool,
    force: bool,
    allow_pickle: bool,
    architecture: str | None,
    blocks: Sequence[str] | None,
) -> tuple[list[str], Adapter, str, str]:
    """The input of a command, its blocks weighed, once it is clear that its output can be written.

    Before it stands what is left out of it; behind it the format of the output, and the table of its weights.
    """
    from mergelab.adapter import load
    from mergelab.engine.merge import merge as merge_adapters

    _check_options(format, for_, dtype)
    adapter = load(file, allow_pickle=allow_pickle, architecture=architecture)
    left_out, (adapter,) = _without_extras([adapter]) if drop_extras else ([], [adapter])
    chosen = _check_writable([adapter], output, format, for_, force)
    weights = by_block([adapter], [1.0], blocks)
    table = weight_table([adapter], weights)
    return left_out, merge_adapters([adapter], weights, "cat") if blocks else adapter, chosen, table


def _without_extras(adapters: list[Adapter]) -> tuple[list[str], list[Adapter]]:
    """What is left out, in words, and the layers alone."""
    extras = list(dict.fromkeys(key for adapter in adapters for key in adapter.extras))
    some = ", ".join(extras[:5]) + (", ..." if len(extras) > 5 else "")
    return [f"left out: {some}"] if extras else [], [adapter.without_extras() for adapter in adapters]


def _save(adapter: Adapter, output: Path, format: str | None, for_: str | None, dtype: str | None) -> list[str]:
    """Write it; what was written where, and what is to be said about it, in words."""
    written = adapter.write(output, format=format, dtype=dtype, for_=for_)
    files = [output] if output.is_file() else [p for p in output.rglob("*") if p.is_file()]
    size = sum(p.stat().st_size for p in files) / 1e6
    return [f"{output}: {counted(written.layers, 'layer')}, format {written.format}, {size:.1f} MB", *written.lines()]
