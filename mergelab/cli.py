"""The command line: parse, call, print. Each command is a thin wrapper of one function; torch is imported late."""

from __future__ import annotations

import json
import os
import sys
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
) -> None:
    """Merge adapters into one. Other options of a method are given as --name value."""
    from mergelab.adapter import check_target
    from mergelab.engine.merge import merge as merge_adapters

    _import(plugins)
    adapters, options = _method_options([*adapters, *context.args])
    _check_spelling(options, method, [flag for parameter in context.command.params for flag in parameter.opts])
    options.update({k: v for k, v in (("space", space), ("density", density)) if v is not None})
    _check_writing(format, dtype)
    sources, weights = zip(*[_weighted(text) for text in adapters])
    loaded = [_load(source, allow_pickle) for source in sources]
    check_target(output, tuple(path for a in loaded for path in a.inputs), force, format)
    merged = merge_adapters(loaded, list(weights), method, rank=_rank(rank), seed=seed, device=device, **options)
    _save(merged, output, format, dtype)
    print(merged.report)


@app.command(epilog="Example: mergelab inspect style.safetensors")
def inspect(file: str, as_json: Json = False, allow_pickle: Pickle = False) -> None:
    """Show what a file holds: architecture, layers, ranks, alphas, header."""
    adapter = _load(file, allow_pickle)
    if as_json:
        print(json.dumps(_described(adapter), indent=2))
        return
    print(adapter)
    print(f"norm {adapter.norm():.4g}")
    for key, tensor in list(adapter.extras.items())[:10]:
        print(f"  kept as it is: {key} {tuple(tensor.shape)}")
    for line in adapter.report.lines():
        print(line)
    for key, value in sorted(adapter.metadata.items()):
        print(f"  {key}: {value if len(value) <= 100 else value[:97] + '...'}")


@app.command(epilog="Example: mergelab compare style.safetensors subject.safetensors")
def compare(adapters: list[str], as_json: Json = False, allow_pickle: Pickle = False) -> None:
    """Show where adapters agree and where they are in each other's way, before any merge."""
    from mergelab.comparing import compare as compare_adapters

    comparison = compare_adapters([_load(source, allow_pickle) for source in adapters])
    print(json.dumps(comparison.to_dict(), indent=2) if as_json else comparison)


@app.command(epilog="Example: mergelab convert style.safetensors -o style_kohya.safetensors --format kohya")
def convert(
    file: str,
    output: Out,
    format: Format,
    dtype: Dtype = None,
    drop_extras: Annotated[bool, typer.Option("--drop-extras", help="Leave out what is no LoRA layer.")] = False,
    force: Force = False,
    allow_pickle: Pickle = False,
) -> None:
    """Write an adapter in another format; every layer keeps its change exactly."""
    adapter = _opened(file, output, format, dtype, force, allow_pickle)
    if drop_extras and adapter.extras:
        print(f"left out: {', '.join(list(adapter.extras)[:5])}{', ...' if len(adapter.extras) > 5 else ''}")
        adapter = adapter.without_extras()
    _save(adapter, output, format, dtype)


@app.command(epilog="Example: mergelab resize style.safetensors --rank 16 -o style_r16.safetensors")
def resize(
    file: str,
    rank: Annotated[str, typer.Option(help="8, 0.9 (share of energy) or mean=32 (a budget).")],
    output: Out,
    format: Format = "diffusers",
    dtype: Dtype = None,
    force: Force = False,
    allow_pickle: Pickle = False,
) -> None:
    """Write the best approximation of an adapter at another rank, and say what it lost."""
    from mergelab.errors import OptionError

    adapter = _opened(file, output, format, dtype, force, allow_pickle)
    parsed = _rank(rank)
    if parsed is None or parsed in ("max", "sum"):
        raise OptionError(f"rank={rank!r}: expected a number such as 16, 0.9 (share of energy) or mean=16 (a budget)")
    resized = adapter.resize(parsed)
    _save(resized, output, format, dtype)
    print(resized.report)


@app.command(epilog="Example: mergelab methods")
def methods(as_json: Json = False, plugins: Import = None) -> None:
    """List the methods with their options and defaults."""
    from mergelab.methods.registry import choices_of, method_names, options_of, summary_of

    _import(plugins)
    table = {name: options_of(name) for name in method_names()}
    if as_json:
        print(json.dumps(table, indent=2, default=str))
        return
    for name, options in table.items():
        print(f"{name}: {summary_of(name)}")
        choices = choices_of(name)
        for key, value in options.items():
            others = [choice for choice in choices.get(key, ()) if choice != value]
            print(f"    --{key.replace('_', '-')} {value}" + (f" (or {', '.join(others)})" if others else ""))


@app.command(epilog="Example: mergelab evaluate config.yaml -o run --set seeds=4")
def evaluate(
    config: Annotated[Path, typer.Argument(help="A YAML file: pipeline, loras, merges, prompts, seeds, metrics.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="The run folder; an earlier run in it goes on.")],
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", help="KEY=VALUE: seeds=4, clip.model=RN50; as often as needed."),
    ] = None,
    plugins: Import = None,
) -> None:
    """Generate with a model, its adapters and their merges, score them, and write a report."""
    from mergelab.evaluation import evaluate as evaluate_config

    _import(plugins)
    print(evaluate_config(config, output, overrides=overrides or ()))


@app.command(epilog="Example: mergelab demo --pipeline sdxl -o mergelab-demo")
def demo(
    pipeline: Annotated[str, typer.Option(help="sdxl or flux: the small models that ship with the package.")] = "sdxl",
    output: Annotated[Path, typer.Option("-o", "--output", help="The run folder.")] = Path("mergelab-demo"),
) -> None:
    """Merge a subject and a style five ways on a small model, and show what each kept: numbers, pictures, a report."""
    from mergelab.evaluation.demo import demo as run_demo

    print(run_demo(pipeline, output))


def main() -> None:
    """Entry point: exit code 0; 2 with one line on standard error; 130 after Ctrl-C."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Run one command line and return its exit code."""
    from mergelab.errors import MergelabError

    try:
        code = get_command(app).main(args=arguments, prog_name="mergelab", standalone_mode=False)
        if sys.stdout is not None:
            sys.stdout.flush()
    except typer.Exit as stop:
        return stop.exit_code
    except (KeyboardInterrupt, typer.Abort):
        code = 130
    except BrokenPipeError:
        return _nobody_reads()
    except SystemExit as stop:
        return _nobody_reads() if isinstance(stop.__context__, BrokenPipeError) else int(stop.code or 0)
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
    if code == 130:
        kept = (
            "what is finished is kept; run it again to go on"
            if arguments[:1] in (["evaluate"], ["demo"])
            else "nothing was written"
        )
        print(f"\nmergelab: interrupted; {kept}", file=sys.stderr)
    return code if isinstance(code, int) else 0


def _nobody_reads() -> int:
    """`mergelab ... | head`: what is still in the buffer goes nowhere."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.__stdout__.fileno() if sys.__stdout__ else 1)
    return 0


def _fail(message: str) -> int:
    print(f"mergelab: error: {' '.join(message.split())}", file=sys.stderr)
    return 2


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
    from mergelab.methods.registry import options_of

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


def _save(adapter: Adapter, output: Path, format: str, dtype: str | None) -> None:
    adapter.save(output, format=format, dtype=dtype)
    files = [output] if output.is_file() else [p for p in output.rglob("*") if p.is_file()]
    size = sum(p.stat().st_size for p in files) / 1e6
    print(f"{output}: {len(adapter.layers)} layers, format {format}, {size:.1f} MB")


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
