"""The command that writes a base model: fuse."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mergelab.cli.arguments import BaseModel, DropExtras, Pickle
from mergelab.cli.strengths import Blocks, DryRun, FromConfig, Weighted, by_block, given, loaded, weight_table
from mergelab.errors import OptionError


def fuse(
    output: Annotated[Path, typer.Option("-o", "--output", help="File to write; for a folder a new folder.")],
    base: Annotated[
        str | None, typer.Argument(help="The base model: a safetensors file, or the folder of a pipeline.")
    ] = None,
    adapters: Weighted = None,
    config: FromConfig = None,
    block_weights: Blocks = None,
    drop_extras: DropExtras = False,
    force: Annotated[
        bool, typer.Option("--force", help="Replace an existing file (never an input, never a folder).")
    ] = False,
    allow_pickle: Pickle = False,
    architecture: BaseModel = None,
    dry_run: DryRun = False,
) -> str:
    """Write a base model with adapters fused into its weights: same keys, same dtypes, tensor by tensor."""
    from mergelab.engine.checkpoint import fuse_checkpoint

    asked = given(adapters, config)
    unread = asked.config.unread if asked.config and base is None else ()
    base = base or (asked.config.base if asked.config else None)
    if not base:
        raise OptionError(f"no base model: {config} has no model.name_or_path; give BASE before the options")
    originals = loaded(asked, allow_pickle, architecture)
    left_out = [f"left out: {key} of {adapter.name}" for adapter in originals for key in adapter.extras if drop_extras]
    fused = [adapter.without_extras() for adapter in originals] if drop_extras else originals
    weights = by_block(fused, asked.weights, block_weights)
    notes = [f"not read, the base model is {base} as it is: {', '.join(unread)}"] if unread else []
    told = [weight_table(fused, weights), "dry run, nothing was written; it would be:"] if dry_run else []
    written = fuse_checkpoint(base, fused, output, weights, overwrite=force, dry_run=dry_run)
    return "\n".join([*left_out, *told, *written.lines(), *notes])
