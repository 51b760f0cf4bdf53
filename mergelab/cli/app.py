"""The table of commands, and how one command line is run: its answer, its errors, its exit code."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from importlib.metadata import version
from typing import Annotated

import typer
from typer.main import get_command

from mergelab.cli import streams
from mergelab.cli.evaluating import demo, evaluate
from mergelab.cli.extracting import extract
from mergelab.cli.fusing import fuse
from mergelab.cli.publishing import push
from mergelab.cli.several import spread
from mergelab.cli.showing import compare, doctor, inspect, methods
from mergelab.cli.tuning import tune
from mergelab.cli.writing import compose, convert, merge, resize
from mergelab.errors import MergelabError

INTERRUPTED = 130  # what shells say of Ctrl-C

# Each command is a thin wrapper of one function, and returns what it has to say. `run` prints that when all else is
# done: output that cannot be shown keeps no file from being written.
COMMANDS: dict[Callable[..., str], str] = {
    merge: "mergelab merge style.safetensors:0.7 subject.safetensors:unet=1.0,text_encoder=0.5 --method ties "
    "--density 0.5 --rank 32 -o merged.safetensors",
    inspect: "mergelab inspect style.safetensors",
    doctor: "mergelab doctor style.safetensors",
    compare: "mergelab compare style.safetensors subject.safetensors",
    convert: "mergelab convert style.safetensors -o style_kohya.safetensors --format kohya",
    resize: "mergelab resize style.safetensors --rank 16 -o style_r16.safetensors",
    compose: "mergelab compose -i style.safetensors subject.safetensors -s 0.8 0.6 -o composed.safetensors",
    extract: "mergelab extract tuned.safetensors base.safetensors --rank 32 -o style.safetensors",
    fuse: "mergelab fuse miniature/sdxl miniature/sdxl/ghost:0.8 miniature/sdxl/day -o fused",
    push: "mergelab push merged.safetensors user/repo --run run --private",
    methods: "mergelab methods",
    evaluate: "mergelab evaluate config.yaml -o run --set seeds=4",
    tune: "mergelab tune config.yaml -o run --set search=blocks",
    demo: "mergelab demo --pipeline sdxl -o mergelab-demo",
}
_WRITING = [command.__name__ for command in (merge, convert, resize, compose, extract, fuse, evaluate, tune, demo)]
# Options that belong to a method are passed on by name, so that those of registered methods work as well.
_OPEN = {"allow_extra_args": True, "ignore_unknown_options": True}

app = typer.Typer(
    name="mergelab",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    help="Merge several LoRA adapters into one, at the rank you choose, and see what the merge kept and what it lost.",
    epilog="Example: mergelab merge style.safetensors:0.7 subject.safetensors -o merged.safetensors",
)


def _show_version(asked: bool) -> None:
    if asked:
        typer.echo(f"mergelab {version('mergelab')}")
        raise typer.Exit


@app.callback()
def _options_of_all(
    asked: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", callback=_show_version, is_eager=True)
    ] = False,
) -> None: ...


for command, example in COMMANDS.items():
    app.command(epilog=f"Example: {example}", context_settings=_OPEN if command is merge else {})(command)


def main() -> None:
    """Entry point: exit code 0; 2 with one line on standard error; 130 after Ctrl-C."""
    streams.prepare()
    code = run(sys.argv[1:])
    streams.drop_unwritable()
    sys.exit(code)


def run(arguments: list[str]) -> int:
    """Run one command line and return its exit code."""
    try:
        answer = get_command(app).main(args=spread(arguments), prog_name="mergelab", standalone_mode=False)
    except typer.Exit as stop:
        answer = stop.exit_code
    except (KeyboardInterrupt, typer.Abort):
        answer = INTERRUPTED
    except streams.Interrupted as stop:
        return _interrupted(str(stop))
    except BrokenPipeError:
        answer = 0
    except SystemExit as stop:  # what rich and typer make of a broken pipe
        answer = 0 if isinstance(stop.__context__, BrokenPipeError) else stop.code
    except Exception as error:
        if os.environ.get("MERGELAB_DEBUG"):
            raise
        if isinstance(error, MergelabError):
            return _fail(str(error))
        if isinstance(error, OSError):
            return _fail(_of_the_system(error, arguments))
        if hasattr(error, "format_message"):  # a usage error of click, which some versions of typer carry inside
            return _fail(error.format_message() or "expected a command; see mergelab --help")
        kind = type(error).__name__
        return _fail(f"internal error, {kind}: {error} (MERGELAB_DEBUG=1 shows where; please report it)")
    if isinstance(answer, str):
        obstacle = streams.show(answer)
        done = "; the command is done, and the files it writes are written" if arguments[0] in _WRITING else ""
        return _fail(f"{obstacle}{done}") if obstacle else 0
    return _interrupted("nothing was written") if answer == INTERRUPTED else int(answer or 0)


def _interrupted(kept: str) -> int:
    streams.complain(f"\nmergelab: interrupted; {kept}")
    return INTERRUPTED


def _of_the_system(error: OSError, arguments: list[str]) -> str:
    """An error of the system in words, without its number."""
    reason = error.strerror or str(error)
    if error.filename is not None:
        return f"{os.fsdecode(error.filename)}: {reason}" if isinstance(error.filename, (str, bytes)) else reason
    prints = not arguments or {"--help", "--version"} & set(arguments)  # which click does, and no command
    return f"standard output cannot be written: {reason}" if prints else reason


def _fail(message: str) -> int:
    streams.complain(f"mergelab: error: {' '.join(message.split())}")
    return 2
