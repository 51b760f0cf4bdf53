"""Commands that write an adapter: merge, convert, resize, compose."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mergelab.cli.arguments import (
    SOURCES,
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
    Quantized,
    check_spelling,
    import_plugins,
    integer,
    number,
    parse_weighted,
    split_options,
)
from mergelab.errors import OptionError
from mergelab.report import carried
from mergelab.tables import counted

if TYPE_CHECKING:
    from mergelab.adapter import Adapter

_COMPOSED_FOR = "nunchaku"


def merge(
    context: typer.Context,
    adapters: Annotated[
        list[str], typer.Argument(help=f"{SOURCES} Each alone, as FILE:WEIGHT or FILE:COMPONENT=WEIGHT,...")
    ],
    output: Out,
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
) -> str:
    """Merge adapters into one. Other options of a method are given as --name value."""
    from mergelab.adapter import load
    from mergelab.engine.merge import merge as merge_adapters
    from mergelab.ranks import parse_rank

    import_plugins(plugins)
    adapters, options = split_options([*adapters, *context.args])
    check_spelling(options, method, [flag for parameter in context.command.params for flag in parameter.opts])
    options.update({k: v for k, v in (("space", space), ("density", density)) if v is not None})
    _check_options(format, for_, dtype)
    target = None if rank is None else parse_rank(rank)
    sources, weights = zip(*[parse_weighted(text) for text in adapters])
    loaded = [load(source, allow_pickle=allow_pickle, architecture=architecture) for source in sources]
    left_out, loaded = _without_extras(loaded) if drop_extras else ([], loaded)
    _check_writable([a for a, weight in zip(loaded, weights) if weight != 0] or loaded, output, format, for_, force)
    merged = merge_adapters(loaded, list(weights), method, rank=target, seed=seed, device=device, **options)
    return "\n".join([*left_out, *_save(merged, output, format, for_, dtype), *merged.report.lines()])


def convert(
    file: File,
    output: Out,
    format: Format = None,
    for_: For = None,
    dtype: Dtype = None,
    quantized: Quantized = None,
    drop_extras: DropExtras = False,
    force: Force = False,
    allow_pickle: Pickle = False,
    architecture: BaseModel = None,
) -> str:
    """Write an adapter in another format; every layer keeps its change exactly."""
    from mergelab.formats import check_choice, located

    if format is None and for_ is None:
        raise OptionError("convert needs --for TOOL or --format FORMAT; see mergelab convert --help")
    check_choice(format, for_, quantized)
    model = located(quantized)
    left_out, adapter = _open(file, output, format, for_, dtype, drop_extras, force, allow_pickle, architecture, model)
    said = replace(adapter.report, notes=carried(adapter.report.notes)).lines()
    return "\n".join([*left_out, *_save(adapter, output, format, for_, dtype, model), *said])


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
) -> str:
    """Write the best approximation of an adapter at another rank, and say what it lost."""
    from mergelab.ranks import parse_rank

    if (target := parse_rank(rank)) in ("max", "sum"):
        raise OptionError(f"rank={rank!r}: expected a number such as 16, 0.9 (share of energy) or mean=16 (a budget)")
    left_out, adapter = _open(file, output, format, for_, dtype, drop_extras, force, allow_pickle, architecture)
    resized = adapter.resize(target)
    return "\n".join([*left_out, *_save(resized, output, format, for_, dtype), *resized.report.lines()])


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
        typer.Option(help="256, 0.9 (share of energy) or mean=128 (a budget); default: the exact sum of the ranks."),
    ] = None,
    dtype: Dtype = None,
    drop_extras: DropExtras = False,
    force: Force = False,
    allow_pickle: Pickle = False,
    architecture: BaseModel = None,
) -> str:
    """Compose FLUX.1 adapters into one for nunchaku, exactly or at a rank of your choice."""
    from mergelab.adapter import load
    from mergelab.engine.composing import check_inputs
    from mergelab.engine.composing import compose as compose_adapters
    from mergelab.ranks import parse_rank

    _check_options(None, _COMPOSED_FOR, dtype)
    target = None if rank is None else parse_rank(rank)
    loaded = [load(file, allow_pickle=allow_pickle, architecture=architecture) for file in files]
    left_out, loaded = _without_extras(loaded) if drop_extras else ([], loaded)
    check_inputs(loaded, strengths)
    _check_writable(loaded, output, None, _COMPOSED_FOR, force)
    composed = compose_adapters(loaded, strengths, rank=target)
    return "\n".join([*left_out, *_save(composed, output, None, _COMPOSED_FOR, dtype), *composed.report.lines()])


def _check_options(format: str | None, for_: str | None, dtype: str | None) -> None:
    from mergelab.formats import check_choice, to_dtype

    check_choice(format, for_)
    to_dtype(dtype)


def _check_writable(
    adapters: Sequence[Adapter],
    output: Path,
    format: str | None,
    for_: str | None,
    force: bool,
    quantized: Path | None = None,
) -> None:
    """Raise where a result of these inputs cannot be written there, before it is computed."""
    from mergelab.formats import check_writable
    from mergelab.formats.targets import check_target

    chosen = check_writable(adapters, format, for_, quantized)
    model = [quantized] if quantized else []
    check_target(output, [*model, *(path for adapter in adapters for path in adapter.inputs)], force, chosen)


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
    quantized: Path | None = None,
) -> tuple[list[str], Adapter]:
    """What is left out of the input of a command, and the input, once it is clear that its output can be written."""
    from mergelab.adapter import load

    _check_options(format, for_, dtype)
    adapter = load(file, allow_pickle=allow_pickle, architecture=architecture)
    left_out, (adapter,) = _without_extras([adapter]) if drop_extras else ([], [adapter])
    _check_writable([adapter], output, format, for_, force, quantized)
    return left_out, adapter


def _without_extras(adapters: list[Adapter]) -> tuple[list[str], list[Adapter]]:
    """What is left out, in words, and the layers alone."""
    extras = list(dict.fromkeys(key for adapter in adapters for key in adapter.extras))
    some = ", ".join(extras[:5]) + (", ..." if len(extras) > 5 else "")
    return [f"left out: {some}"] if extras else [], [adapter.without_extras() for adapter in adapters]


def _save(
    adapter: Adapter,
    output: Path,
    format: str | None,
    for_: str | None,
    dtype: str | None,
    quantized: Path | None = None,
) -> list[str]:
    """Write it; what was written where, and what is to be said about it, in words."""
    written = adapter.write(output, format=format, dtype=dtype, for_=for_, quantized=quantized)
    files = [output] if output.is_file() else [p for p in output.rglob("*") if p.is_file()]
    size = sum(p.stat().st_size for p in files) / 1e6
    return [f"{output}: {counted(written.layers, 'layer')}, format {written.format}, {size:.1f} MB", *written.lines()]
