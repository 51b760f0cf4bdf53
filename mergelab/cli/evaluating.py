"""Commands that draw images: evaluate, demo."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from mergelab.cli import streams
from mergelab.cli.arguments import Import, check_plain, import_plugins
from mergelab.errors import OutputError
from mergelab.evaluation.failures import summed_up


def evaluate(
    config: Annotated[Path, typer.Argument(help="A YAML file: pipeline, loras, merges, prompts, seeds, metrics.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="The run folder; an earlier run in it goes on.")],
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", help="KEY=VALUE: seeds=4, clip.model=RN50; as often as needed."),
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Say what it takes and can tell: one image is drawn, nothing is written."),
    ] = False,
    plugins: Import = None,
) -> str:
    """Generate with a model, its adapters and their merges, score them, and write a report."""
    from mergelab.evaluation import evaluate as evaluate_config
    from mergelab.evaluation.planning import plan

    check_plain(overrides or ())
    import_plugins(plugins)
    if dry_run:
        return str(plan(config, output, overrides=overrides or ()))
    with interruptible(output):
        result = evaluate_config(config, output, overrides=overrides or ())
    others = (row for row in result.failures if row["metric"] not in result.silent)
    if wrong := [*summed_up(others), *result.silent.values()]:
        streams.show(str(result))
        raise OutputError(f"{output}: the run is done, but {'; '.join(wrong)}")
    return str(result)


def demo(
    pipeline: Annotated[str, typer.Option(help="sdxl or flux: the small models that ship with the package.")] = "sdxl",
    output: Annotated[Path, typer.Option("-o", "--output", help="The run folder.")] = Path("mergelab-demo"),
) -> str:
    """Merge a subject and a style five ways on a small model, and show what each kept: numbers, pictures, a report."""
    from mergelab.evaluation.demo import demo as run_demo

    with interruptible(output):
        return str(run_demo(pipeline, output))


@contextmanager
def interruptible(output: Path) -> Iterator[None]:
    """After Ctrl-C it is said whether a run folder is there, which the next call goes on from."""
    try:
        yield
    except KeyboardInterrupt:
        kept = f"what is finished is kept in {output}; run it again to go on"
        raise streams.Interrupted(kept if output.is_dir() else "nothing was written") from None
