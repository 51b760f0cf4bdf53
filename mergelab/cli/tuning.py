"""The command that searches: tune."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mergelab.cli.arguments import Import, check_plain, import_plugins
from mergelab.cli.evaluating import interruptible


def tune(
    config: Annotated[Path, typer.Argument(help="A YAML file: pipeline, loras, prompts, search, score.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="The run folder; an earlier run in it goes on.")],
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", help="KEY=VALUE: settings=12, balance.own=1; as often as needed."),
    ] = None,
    plugins: Import = None,
) -> str:
    """Search the weights, or any option, of a merge by what it draws; write the best, and what it is worth."""
    from mergelab.tuning import tune as search

    check_plain(overrides or ())
    import_plugins(plugins)
    with interruptible(output):
        return str(search(config, output, overrides=overrides or ()))
