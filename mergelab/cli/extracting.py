"""The command that takes an adapter out of a tuned model: extract."""

from __future__ import annotations

from typing import Annotated

import typer

from mergelab.cli.arguments import BaseModel, Device, DropExtras, Dtype, For, Force, Format, Out
from mergelab.cli.outputs import Output
from mergelab.cli.strengths import DryRun
from mergelab.tables import counted

_MODEL = "a safetensors file in any dialect, or the folder of a diffusers pipeline"


def extract(
    tuned: Annotated[str, typer.Argument(help=f"The tuned model: {_MODEL}.")],
    base: Annotated[str, typer.Argument(help=f"The model that it was tuned from: {_MODEL}.")],
    output: Out,
    rank: Annotated[str, typer.Option(help="8, 0.9 (share of energy) or mean=32 (a budget).")] = "32",
    components: Annotated[
        str | None,
        typer.Option(metavar="NAMES", help="Which models to compare: unet,text_encoder; default: all that both have."),
    ] = None,
    format: Format = None,
    for_: For = None,
    dtype: Dtype = None,
    drop_extras: DropExtras = False,
    force: Force = False,
    architecture: BaseModel = None,
    device: Device = None,
    dry_run: DryRun = False,
) -> str:
    """Write what tuning has changed in a model as an adapter, and say what its rank cannot hold."""
    from dataclasses import replace

    from mergelab.devices import LAYER_BY_LAYER, chosen_device
    from mergelab.engine.extracting import compared
    from mergelab.ranks import own_rank, parse_rank, rank_text

    out = Output(output, format, for_, dtype, force)
    target = own_rank(parse_rank(rank))
    chosen_device(device, LAYER_BY_LAYER)  # raises before a model is read
    names = [name.strip() for name in components.split(",")] if components is not None else None
    models = compared(tuned, base, components=names, architecture=architecture)
    left_out = []
    if drop_extras and models.found.biases:
        left_out = [f"left out: {counted(len(models.found.biases), 'difference')} of a bias"]
        models = replace(models, found=replace(models.found, biases={}))
    written = out.check([models.stand_in()])
    if dry_run:
        planned = f"rank {rank_text(target)}, {counted(len(models.found.layers), 'layer')}"
        return "\n".join([*left_out, *models.lines(), out.unwritten(planned, written)])
    adapter = models.adapter(target, device=device)
    return "\n".join([*left_out, *out.write(adapter), *adapter.report.lines()])
