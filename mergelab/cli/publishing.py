"""The command that publishes an adapter: push."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from mergelab.cli import streams
from mergelab.cli.arguments import BaseModel, DropExtras, Dtype, File, For, Pickle
from mergelab.errors import OptionError


def push(
    file: File,
    repo: Annotated[str, typer.Argument(help="user/repo, user/repo@revision, or repo of your own account.")],
    run: Annotated[
        Path | None, typer.Option(help="Run folder of `mergelab evaluate`: its pictures and scores go into the card.")
    ] = None,
    folder: Annotated[
        Path | None, typer.Option(help="Write there what would be pushed, and push nothing; a new or empty folder.")
    ] = None,
    private: Annotated[
        bool | None, typer.Option("--private/--public", help="Of a new repository; default: as the account says.")
    ] = None,
    commit_message: Annotated[str | None, typer.Option(help="Default: Upload LoRA with mergelab.")] = None,
    revision: Annotated[str | None, typer.Option(help="A branch; made where there is none.")] = None,
    create_pr: Annotated[bool, typer.Option("--create-pr", help="Open a pull request.")] = False,
    base_model: Annotated[
        str | None, typer.Option(help="Its name on the Hub; default: the run's, or the usual one of the family.")
    ] = None,
    license: Annotated[
        str | None, typer.Option(help="Of the adapter, such as apache-2.0; default: none named.")
    ] = None,
    run_dataset: Annotated[
        bool, typer.Option("--run-dataset", help="FILE is the folder of a run, to be pushed as a dataset.")
    ] = False,
    no_card: Annotated[bool, typer.Option("--no-card", help="Push no README.md.")] = False,
    format: Annotated[
        str | None, typer.Option(help="diffusers, kohya, comfy, peft or same; default: the file as it is.")
    ] = None,
    for_: For = None,
    dtype: Dtype = None,
    drop_extras: DropExtras = False,
    force: Annotated[
        bool, typer.Option("--force", help="Replace other files of the same names, README.md too.")
    ] = False,
    allow_pickle: Pickle = False,
    architecture: BaseModel = None,
) -> str:
    """Push an adapter to the Hugging Face Hub, with a model card. Without a format the file is pushed as it is.

    With --run-dataset: push the run of an evaluation as a dataset.
    """
    of_both: dict[str, Any] = {"private": private, "commit_message": commit_message, "revision": revision}
    of_both |= {"create_pr": create_pr, "overwrite": force, "folder": folder}
    if run_dataset:
        of_adapters = {
            "--run": run, "--base-model": base_model, "--license": license, "--no-card": no_card, "--format": format,
            "--for": for_, "--dtype": dtype, "--drop-extras": drop_extras, "--allow-pickle": allow_pickle,
            "--architecture": architecture,
        }  # fmt: skip
        if given := [name for name, value in of_adapters.items() if value]:
            raise OptionError(f"{', '.join(given)}: of an adapter; --run-dataset pushes a run, as it is")
        from mergelab.evaluation import push_run

        with _interruptible(folder):
            return str(push_run(file, repo, **of_both))
    from mergelab.adapter import load

    adapter = load(file, allow_pickle=allow_pickle, architecture=architecture)
    if drop_extras:
        if not (format or for_ or dtype):
            raise OptionError("--drop-extras writes another file: give --format, --for or --dtype with it")
        adapter = adapter.without_extras()
    with _interruptible(folder):
        pushed = adapter.push_to_hub(
            repo,
            format=format,
            dtype=dtype,
            for_=for_,
            run=run,
            base_model=base_model,
            license=license,
            card=not no_card,
            **of_both,
        )
    return str(pushed)


@contextmanager
def _interruptible(folder: Path | None) -> Iterator[None]:
    """After Ctrl-C it is said what is there."""
    try:
        yield
    except KeyboardInterrupt:
        of_repo = "the repository holds all of the files, or none of them"
        raise streams.Interrupted(of_repo if folder is None else "nothing was written") from None
