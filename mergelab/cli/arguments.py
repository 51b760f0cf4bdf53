"""What stands on a command line: shared options, adapters with weights, ranks, options of methods, plug-ins."""

from __future__ import annotations

import importlib
import json
import math
import runpy
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any

import typer

from mergelab.errors import MergelabError, OptionError, SourceError

# Where adapters can come from.
SOURCES = "a path, a PEFT folder, user/repo or user/repo@revision/file on the Hugging Face Hub, https://... or s3://..."
_HELP = SOURCES[0].upper() + SOURCES[1:]
File = Annotated[str, typer.Argument(help=_HELP)]
Files = Annotated[list[str], typer.Argument(help=_HELP)]
Out = Annotated[Path, typer.Option("-o", "--output", help="File to write; for format peft a folder.")]
Format = Annotated[
    str | None,
    typer.Option(
        help="diffusers, kohya, comfy, peft or same (as the inputs); default: diffusers where it has names, else same."
    ),
]
FormatOrPacked = Annotated[
    str | None,
    typer.Option(help="diffusers, kohya, comfy, peft, same (as the input) or, with --quantized, nunchaku."),
]
Quantized = Annotated[
    str | None,
    typer.Option(
        metavar="FILE",
        help="For format nunchaku: the quantised FLUX.1 (transformer_blocks.safetensors), also on the Hub.",
    ),
]
For = Annotated[
    str | None,
    typer.Option(
        "--for",
        metavar="TOOL",
        help="Instead: comfyui, forge, a1111, sd-scripts, aitoolkit, onetrainer, invokeai, diffusers, nunchaku, peft.",
    ),
]
Dtype = Annotated[str | None, typer.Option(help="float32, float16, bfloat16 or float64; default: exact, as it is.")]
Force = Annotated[bool, typer.Option("--force", help="Replace an existing output (never an input).")]
DropExtras = Annotated[bool, typer.Option("--drop-extras", help="Leave out what is no LoRA layer (embeddings, norms).")]
Pickle = Annotated[bool, typer.Option("--allow-pickle", help="Read .bin, .pt and .ckpt too (tensors only).")]
BaseModel = Annotated[
    str | None,
    typer.Option("--architecture", help="The base model's id (sdxl, flux, ...), where a file does not tell."),
]
Base = Annotated[
    str | None,
    typer.Option(
        "--base",
        metavar="MODEL",
        help="The base model, a file or a diffusers folder: for DoRA, OFT and others that change its own weights.",
    ),
]
Device = Annotated[
    str | None,
    typer.Option(
        "--device",
        help="auto (default: a GPU where there is one and the work is worth it), cpu, cuda, cuda:1; mps is the CPU.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Import = Annotated[
    list[str] | None, typer.Option("--import", help="Python file or module that registers methods, metrics.")
]


def number(text: str) -> float:
    """A number on the command line.

    Raises:
        typer.BadParameter: it is none, or spelt as only Python reads it.
    """
    from mergelab.checks import plain_number

    try:
        return plain_number(text)
    except ValueError as error:
        raise typer.BadParameter(f"{error}; expected one such as 0.5") from None


def integer(text: str | int) -> int:
    """An integer on the command line, or the default of an option; raises as `number` does."""
    from mergelab.checks import plain_number, short_repr

    try:
        plain_number(str(text))
        return int(text)
    except ValueError:
        raise typer.BadParameter(f"{short_repr(text)} is no integer; expected one such as 42") from None


def check_plain(overrides: Sequence[str]) -> None:
    """Raise where `KEY=VALUE` has a number that is spelt as only YAML reads it ("4_0", "010", "1:30")."""
    import yaml

    from mergelab.checks import plain_number

    for text in overrides:
        value = text.partition("=")[2]
        try:
            read = yaml.safe_load(value)
        except (yaml.YAMLError, ValueError, RecursionError):
            continue  # refused where it is used
        if isinstance(read, (int, float)) and not isinstance(read, bool) and math.isfinite(read):
            try:
                plain = plain_number(value.strip())
            except ValueError:
                plain = math.nan
            if plain != read:
                raise OptionError(f"--set {text}: {value!r} is no plain number; it would be read as {read}")


def split_options(arguments: Sequence[str]) -> tuple[list[str], dict[str, Any]]:
    """Take `--name value` and `--name=value` out of the arguments; values are read as JSON where they can be.

    Example:
        >>> split_options(["a.safetensors", "--lam", "0.5", "--majority-sign=total"])
        (['a.safetensors'], {'lam': 0.5, 'majority_sign': 'total'})
    """
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


# As other tools call what stands behind a file here.
_WEIGHTS = ("weight", "weights", "strength", "strengths", "ratio", "ratios", "multiplier", "multipliers")


def check_spelling(given: Mapping[str, Any], method: str, flags: Sequence[str]) -> None:
    """Raise where what would go to the method is one of the command's own flags, misspelt."""
    from mergelab.methods.registry import options_of

    of_method = options_of(method) if given else {}
    for name in given:
        if name in _WEIGHTS and name not in of_method:
            raise OptionError(f"there is no option --{name}: a weight stands behind its file, FILE:0.7 or FILE=0.7")
        near = get_close_matches(f"--{name}", flags, n=1, cutoff=0.75)
        if near and name not in of_method and not get_close_matches(name, of_method, cutoff=0.75):
            raise OptionError(f"there is no option --{name}; did you mean {near[0]}?")


def import_plugins(plugins: Sequence[str] | None) -> None:
    """Run files or import modules that register methods and metrics."""
    for plugin in plugins or ():
        try:
            if plugin.endswith(".py"):
                runpy.run_path(plugin)
            else:
                importlib.import_module(plugin)
        except MergelabError:
            raise
        except FileNotFoundError as error:
            missing = Path(str(error.filename))
            raise SourceError(
                f"--import {plugin}: there is no such file{'' if missing == Path(plugin) else f': {missing}'}"
            ) from None
        except (Exception, SystemExit) as error:
            raise SourceError(f"--import {plugin}: {type(error).__name__}: {error}") from None
