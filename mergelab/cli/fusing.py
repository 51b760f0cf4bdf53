"""The command that writes a base model: fuse."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mergelab.cli.arguments import SOURCES, BaseModel, DropExtras, Force, Pickle, parse_weighted


def fuse(
    base: Annotated[str, typer.Argument(help="The base model: a safetensors file, or the folder of a pipeline.")],
    adapters: Annotated[
        list[str], typer.Argument(help=f"{SOURCES} Each alone, as FILE:WEIGHT or FILE:COMPONENT=WEIGHT,...")
    ],
    output: Annotated[Path, typer.Option("-o", "--output", help="File to write; for a folder a new folder.")],
    drop_extras: DropExtras = False,
    force: Force = False,
    allow_pickle: Pickle = False,
    architecture: BaseModel = None,
) -> str:
    """Write a base model with adapters fused into its weights: same keys, same dtypes, tensor by tensor."""
    from mergelab.adapter import load
    from mergelab.engine.checkpoint import fuse_checkpoint

    sources, weights = zip(*[parse_weighted(text) for text in adapters])
    loaded = [load(source, allow_pickle=allow_pickle, architecture=architecture) for source in sources]
    left_out = [f"left out: {key} of {adapter.name}" for adapter in loaded for key in adapter.extras if drop_extras]
    if drop_extras:
        loaded = [adapter.without_extras() for adapter in loaded]
    written = fuse_checkpoint(base, loaded, output, list(weights), overwrite=force)
    return "\n".join([*left_out, *written.lines()])
