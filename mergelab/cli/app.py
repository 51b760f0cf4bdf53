"""The command line: parse, call, print. Each command is a thin wrapper of one function; torch is imported late.

A command returns what it has to say, and `run` prints it when all else is done: output that cannot be shown keeps no
file from being written.
"""

from __future__ import annotations

import json
import os
import sys
from contextlib import suppress
from io import TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.main import get_command

if TYPE_CHECKING:
    from mergelab.adapter import Adapter
    from mergelab.ranks import Rank

app = typer.Typer(
    name="mergelab",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    help="Merge several LoRA adapters into one, at the rank you choose, and see what the merge kept and what it lost.",
    epilog="Example: mergelab merge style.safetensors:0.7 subject.safetensors -o merged.safetensors",
)

# Options that belong to a method: passed on by name, so that registered methods work as well.
_EXTRA = {"allow_extra_args": True, "ignore_unknown_options": True}

_INTERRUPTED = 130  # as shells say Ctrl-C

Out = Annotated[Path, typer.Option("-o", "--output", help="File to write; for format peft a folder.")]
Format = Annotated[str, typer.Option(help="diffusers (also for nunchaku), kohya (also ComfyUI, A1111, Forge), peft.")]
Dtype = Annotated[str | None, typer.Option(help="float32, float16 or bfloat16; default: exact, as it is.")]
Force = Annotated[bool, typer.Option("--force", help="Replace an existing output (never an input).")]
Pickle = Annotated[bool, typer.Option("--allow-pickle", help="Read .bin, .pt and .ckpt too (tensors only).")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Import = Annotated[
    list[str] | None, typer.Option("--import", help="Python file or module that registers methods, metrics.")
]


@app.command(
    context_settings=_EXTRA,
    epilog="Example: mergelab merge style.safetensors:0.7 subject.safetensors:unet=1.0,text_encoder=0.5 --method ties "
    "--density 0.5 --rank 32 -o merged.safetensors",
)
def merge(
    context: typer.Context,
    adapters: Annotated[list[str], typer.Argument(help="FILE, FILE:WEIGHT or FILE:COMPONENT=WEIGHT,...")],
    output: Out,
    method: Annotated[str, typer.Option(help="See `mergelab methods`.")] = "svd",
    rank: Annotated[str | None, typer.Option(help="8, max, sum, 0.9 (share of energy) or mean=32 (a budget).")] = None,
    space: Annotated[str | None, typer.Option(help="delta, core, knots or factors.")] = None,
    density: Annotated[
        float | None, typer.Option(help="Share of entries kept, of ties, dare, magnitude_prune.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of random methods.")] = 0,
    device: Annotated[str | None, typer.Option(help="cpu or cuda.")] = None,
    format: Format = "diffusers",
    dtype: Dtype = None,
    force: Force = False,
    allow_pickle: Pickle = False,
    plugins: Import = None,
) -> str:
    """Merge adapters into one. Other options of a method are given as --name value."""
    from mergelab.adapter import check_target
    from mergelab.merging import merge as merge_adapters

    _import(plugins)
    adapters, options = _method_options([*adapters, *context.args])
    _check_spelling(options, method, [flag for parameter in context.command.params for flag in parameter.opts])
    options.update({k: v for k, v in (("space", space), ("density", density)) if v is not None})
    _check_writing(format, dtype)
    sources, weights = zip(*[_weighted(text) for text in adapters])
    loaded = [_load(source, allow_pickle) for source in sources]
    check_target(output, tuple(path for a in loaded for path in a.inputs), force, format)
    merged = merge_adapters(loaded, list(weights), method, rank=_rank(rank), seed=seed, device=device, **options)
    return f"{_save(merged, output, format, dtype)}\n{merged.report}"


@app.command(epilog="Example: mergelab inspect style.safetensors")
def inspect(file: str, as_json: Json = False, allow_pickle: Pickle = False) -> str:
    """Show what a file holds: architecture, layers, ranks, alphas, header."""
    adapter = _load(file, allow_pickle)
    if as_json:
        return json.dumps(_described(adapter), indent=2)
    extras = [f"  kept as it is: {key} {tuple(tensor.shape)}" for key, tensor in list(adapter.extras.items())[:10]]
    header = [
        f"  {key}: {value if len(value) <= 100 else value[:97] + '...'}"
        for key, value in sorted(adapter.metadata.items())
    ]
    return "\n".join([str(adapter), f"norm {adapter.norm():.4g}", *extras, *adapter.report.lines(), *header])


@app.command(epilog="Example: mergelab compare style.safetensors subject.safetensors")
def compare(adapters: list[str], as_json: Json = False, allow_pickle: Pickle = False) -> str:
    """Show where adapters agree and where they are in each other's way, before any merge."""
    from mergelab.comparing import compare as compare_adapters

    comparison = compare_adapters([_load(source, allow_pickle) for source in adapters])
    return json.dumps(comparison.to_dict(), indent=2) if as_json else str(comparison)


@app.command(epilog="Example: mergelab convert style.safetensors -o style_kohya.safetensors --format kohya")
def convert(
    file: str,
    output: Out,
    format: Format,
    dtype: Dtype = None,
    drop_extras: Annotated[bool, typer.Option("--drop-extras", help="Leave out what is no LoRA layer.")] = False,
    force: Force = False,
    allow_pickle: Pickle = False,
) -> str:
    """Write an adapter in another format; every layer keeps its change exactly."""
    adapter = _opened(file, output, format, dtype, force, allow_pickle)
    if not (drop_extras and adapter.extras):
        return _save(adapter, output, format, dtype)
    left_out = f"left out: {', '.join(list(adapter.extras)[:5])}{', ...' if len(adapter.extras) > 5 else ''}"
    return f"{left_out}\n{_save(adapter.without_extras(), output, format, dtype)}"


@app.command(epilog="Example: mergelab resize style.safetensors --rank 16 -o style_r16.safetensors")
def resize(
    file: str,
    rank: Annotated[str, typer.Option(help="8, 0.9 (share of energy) or mean=32 (a budget).")],
    output: Out,
    format: Format = "diffusers",
    dtype: Dtype = None,
    force: Force = False,
    allow_pickle: Pickle = False,
) -> str:
    """Write the best approximation of an adapter at another rank, and say what it lost."""
    from mergelab.errors import OptionError

    adapter = _opened(file, output, format, dtype, force, allow_pickle)
    parsed = _rank(rank)
    if parsed is None or parsed in ("max", "sum"):
        raise OptionError(f"rank={rank!r}: expected a number such as 16, 0.9 (share of energy) or mean=16 (a budget)")
    resized = adapter.resize(parsed)
    return f"{_save(resized, output, format, dtype)}\n{resized.report}"


@app.command(epilog="Example: mergelab methods")
def methods(as_json: Json = False, plugins: Import = None) -> str:
    """List the methods with their options and defaults."""
    from mergelab.strategies import choices_of, method_names, options_of, summary_of

    _import(plugins)
    table = {name: options_of(name) for name in method_names()}
    if as_json:
        return json.dumps(table, indent=2, default=str)
    lines = []
    for name, options in table.items():
        lines.append(f"{name}: {summary_of(name)}")
        choices = choices_of(name)
        for key, value in options.items():
            others = [choice for choice in choices.get(key, ()) if choice != value]
            lines.append(f"    --{key.replace('_', '-')} {value}" + (f" (or {', '.join(others)})" if others else ""))
    return "\n".join(lines)


@app.command(epilog="Example: mergelab evaluate config.yaml -o run --set seeds=4")
def evaluate(
    config: Annotated[Path, typer.Argument(help="A YAML file: pipeline, loras, merges, prompts, seeds, metrics.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="The run folder; an earlier run in it goes on.")],
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", help="KEY=VALUE: seeds=4, clip.model=RN50; as often as needed."),
    ] = None,
    plugins: Import = None,
) -> str:
    """Generate with a model, its adapters and their merges, score them, and write a report."""
    from mergelab.evaluation import evaluate as evaluate_config

    _import(plugins)
    return str(evaluate_config(config, output, overrides=overrides or ()))


@app.command(epilog="Example: mergelab demo --pipeline sdxl -o mergelab-demo")
def demo(
    pipeline: Annotated[str, typer.Option(help="sdxl or flux: the small models that ship with the package.")] = "sdxl",
    output: Annotated[Path, typer.Option("-o", "--output", help="The run folder.")] = Path("mergelab-demo"),
) -> str:
    """Merge a subject and a style five ways on a small model, and show what each kept: numbers, pictures, a report."""
    from mergelab.evaluation.demo import demo as run_demo

    return str(run_demo(pipeline, output))


def main() -> None:
    """Entry point: exit code 0; 2 with one line on standard error; 130 after Ctrl-C."""
    _take_any_console()
    code = run(sys.argv[1:])
    _drop_what_cannot_be_written()
    sys.exit(code)


def run(arguments: list[str]) -> int:
    """Run one command line and return its exit code."""
    from mergelab.errors import MergelabError

    try:
        answer = get_command(app).main(args=arguments, prog_name="mergelab", standalone_mode=False)
    except typer.Exit as stop:
        return stop.exit_code
    except (KeyboardInterrupt, typer.Abort):
        return _interrupted(arguments)
    except BrokenPipeError:
        return 0
    except SystemExit as stop:
        return 0 if isinstance(stop.__context__, BrokenPipeError) else int(stop.code or 0)
    except (MergelabError, OSError) as error:
        return _fail(str(error))
    except Exception as error:
        if hasattr(error, "format_message"):  # a usage error of click, which some versions of typer carry inside
            return _fail(error.format_message() or "expected a command; see mergelab --help")
        if os.environ.get("MERGELAB_DEBUG"):
            raise
        return _fail(
            f"internal error, {type(error).__name__}: {error} (MERGELAB_DEBUG=1 shows where; please report it)"
        )
    if answer == _INTERRUPTED:  # what newer versions of typer make of Ctrl-C
        return _interrupted(arguments)
    return _answer(answer) if isinstance(answer, str) else int(answer or 0)


def _interrupted(arguments: list[str]) -> int:
    goes_on = arguments[:1] in (["evaluate"], ["demo"])
    kept = "what is finished is kept; run it again to go on" if goes_on else "nothing was written"
    _complain(f"\nmergelab: interrupted; {kept}")
    return _INTERRUPTED


def _answer(text: str) -> int:
    """Print what a command has to say, when everything else is done; the exit code."""
    try:
        print(text, flush=True)
    except BrokenPipeError:  # `mergelab ... | head`
        return 0
    except OSError as error:
        done = "the command itself is done, and the files it writes are written"
        return _fail(f"standard output cannot be written: {error.strerror}; {done}")
    return 0


def _fail(message: str) -> int:
    _complain(f"mergelab: error: {' '.join(message.split())}")
    return 2


def _complain(line: str) -> None:
    with suppress(OSError):  # where nobody can be told, the exit code is what remains
        print(line, file=sys.stderr, flush=True)


def _take_any_console() -> None:
    """Give every stream a place to go, and every character: what a console cannot show is replaced.

    A descriptor that the caller closed (`>&-`) would be given to the next file that is opened, and libraries that print
    would write into it.
    """
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(descriptor)
    sys.stdout = sys.stdout or Path(os.devnull).open("w")  # noqa: SIM115 - open as long as the process is
    sys.stderr = sys.stderr or Path(os.devnull).open("w")  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="replace")


def _drop_what_cannot_be_written() -> None:
    """Empty the buffers, so that the interpreter's own flush at exit does not fail with three lines and code 120."""
    for stream in filter(None, (sys.__stdout__, sys.__stderr__)):
        try:
            stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _load(source: str, allow_pickle: bool) -> Adapter:
    """An adapter from a file, or of the miniature models by its name."""
    from mergelab.adapter import load

    if not source.startswith("miniature/") or Path(source).exists():
        return load(source, allow_pickle=allow_pickle)
    from mergelab import miniature

    return load(miniature.adapter(source).path)


def _weighted(text: str) -> tuple[str, Any]:
    """ "FILE", "FILE:0.7" or "FILE:unet=0.7,text_encoder=0.3"."""
    from mergelab.errors import OptionError

    source, colon, tail = text.rpartition(":")
    if not colon or Path(text).exists():
        return text, 1.0
    try:
        if "=" in tail:
            return source, {key: float(value) for key, _, value in (part.rpartition("=") for part in tail.split(","))}
        return source, float(tail)
    except ValueError:
        if Path(source).exists():
            raise OptionError(f"{text}: weight {tail!r}: expected a number, or COMPONENT=NUMBER,...") from None
        return text, 1.0


def _rank(text: str | None) -> Rank | None:
    from mergelab.errors import OptionError
    from mergelab.ranks import RankBudget

    if text is None or text in ("max", "sum"):
        return text
    budget = text.startswith("mean=")
    try:
        number = float(text) if "." in text and not budget else int(text.removeprefix("mean="))
    except ValueError:
        raise OptionError(f"rank={text!r}: expected a number such as 32, max, sum, 0.9 or mean=32") from None
    return RankBudget(mean=int(number)) if budget else number


def _method_options(arguments: list[str]) -> tuple[list[str], dict[str, Any]]:
    """Take `--name value` and `--name=value` out of the arguments; values are read as JSON where they can be."""
    from mergelab.errors import OptionError

    others: list[str] = []
    options: dict[str, Any] = {}
    rest = iter(arguments)
    for argument in rest:
        if not argument.startswith("-"):
            others.append(argument)
            continue
        name, equals, value = argument.lstrip("-").partition("=")
        if not argument.startswith("--") or not name:
            raise OptionError(f"there is no option {argument!r}; see mergelab merge --help and mergelab methods")
        if not equals:
            value = next(rest, "")
        if not value:
            raise OptionError(f"option --{name} needs a value")
        try:
            options[name.replace("-", "_")] = json.loads(value)
        except ValueError:
            options[name.replace("-", "_")] = value
    return others, options


def _check_spelling(options: dict[str, Any], method: str, flags: list[str]) -> None:
    """Raise where what would go to the method is one of the command's own flags, misspelt."""
    from difflib import get_close_matches

    from mergelab.errors import OptionError
    from mergelab.strategies import options_of

    own = options_of(method) if options else {}
    for name in options:
        near = get_close_matches(f"--{name}", flags, n=1, cutoff=0.75)
        if near and name not in own and not get_close_matches(name, own, cutoff=0.75):
            raise OptionError(f"there is no option --{name}; did you mean {near[0]}?")


def _check_writing(format: str, dtype: str | None) -> None:
    from mergelab.formats import check_format, to_dtype

    check_format(format)
    to_dtype(dtype)


def _opened(file: str, output: Path, format: str, dtype: str | None, force: bool, allow_pickle: bool) -> Adapter:
    """The input of a command, once it is clear that its output can be written."""
    from mergelab.adapter import check_target

    _check_writing(format, dtype)
    adapter = _load(file, allow_pickle)
    check_target(output, adapter.inputs, force, format)
    return adapter


def _save(adapter: Adapter, output: Path, format: str, dtype: str | None) -> str:
    adapter.save(output, format=format, dtype=dtype)
    files = [output] if output.is_file() else [p for p in output.rglob("*") if p.is_file()]
    size = sum(p.stat().st_size for p in files) / 1e6
    return f"{output}: {len(adapter.layers)} layers, format {format}, {size:.1f} MB"


def _described(adapter: Adapter) -> dict[str, Any]:
    layers = [
        {
            "name": name,
            "shape": list(layer.shape),
            "rank": layer.rank,
            "alpha": layer.scaling * layer.rank,
            "dtype": str(layer.lora_A.dtype).removeprefix("torch."),
        }
        for name, layer in adapter.layers.items()
    ]
    return {
        "source": adapter.source,
        "architecture": adapter.architecture,
        "norm": adapter.norm(),
        "layers": layers,
        "extras": {key: list(tensor.shape) for key, tensor in adapter.extras.items()},
        "notes": list(adapter.report.notes),
        "metadata": dict(adapter.metadata),
    }


def _import(plugins: list[str] | None) -> None:
    """Run files or import modules that register methods."""
    import importlib
    import runpy

    from mergelab.errors import MergelabError, SourceError

    for plugin in plugins or []:
        try:
            if plugin.endswith(".py"):
                runpy.run_path(plugin)
            else:
                importlib.import_module(plugin)
        except MergelabError:
            raise
        except Exception as error:
            raise SourceError(f"--import {plugin}: {type(error).__name__}: {error}") from None
