"""Commands that draw images: evaluate, demo."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from mergelab.cli import streams
from mergelab.cli.arguments import Import, check_plain, import_plugins
from mergelab.errors import OptionError, OutputError


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
    log_with: Annotated[
        list[str] | None,
        typer.Option(metavar="TRACKER", help="Tell trackio, wandb, tensorboard or mlflow; as often as needed."),
    ] = None,
    push_to_hub: Annotated[
        str | None,
        typer.Option(metavar="USER/REPO", help="Push the run to the Hugging Face Hub as a dataset when it is done."),
    ] = None,
    private: Annotated[
        bool | None, typer.Option("--private/--public", help="Of a new dataset; default: as the account says.")
    ] = None,
    plugins: Import = None,
) -> str:
    """Generate with a model, its adapters and their merges, score them, and write a report."""
    from mergelab.evaluation import evaluate as evaluate_config
    from mergelab.evaluation.dataset.pushing import destination
    from mergelab.evaluation.failures import summed_up
    from mergelab.evaluation.planning import plan

    check_plain(overrides or ())
    import_plugins(plugins)
    if dry_run:
        return str(plan(config, output, overrides=overrides or ()))
    if push_to_hub is not None:  # what keeps a push from being made is known before hours of drawing
        destination(push_to_hub, private=private).found()
    elif private is not None:
        raise OptionError("--private and --public are of what --push-to-hub makes")
    with interruptible(output):
        result = evaluate_config(config, output, overrides=overrides or (), log_with=log_with)
    others = (row for row in result.failures if row["metric"] not in result.silent)
    said, wrong = [str(result)], [*summed_up(others), *result.silent.values()]
    if push_to_hub is not None:
        try:
            said.append(str(result.push_to_hub(push_to_hub, private=private)))
        except OutputError as error:
            again = shlex.join(["mergelab", "push", str(output), push_to_hub, "--run-dataset"])
            wrong.append(f"{error}; `{again}` pushes it alone")
    if wrong:
        streams.show("\n".join(said))
        raise OutputError(f"{output}: the run is done, but {'; '.join(wrong)}")
    return "\n".join(said)


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
