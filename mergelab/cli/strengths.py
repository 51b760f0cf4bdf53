"""Which adapters at which weights: as a command line or a configuration says it, block by block, and as a table."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer

from mergelab.cli.arguments import SOURCES
from mergelab.errors import OptionError
from mergelab.tables import as_text, counted

if TYPE_CHECKING:
    from mergelab.adapter import Adapter
    from mergelab.engine.weights import Weight
    from mergelab.formats.aitoolkit import GenerateConfig

Weighted = Annotated[
    list[str] | None,
    typer.Argument(help=f"{SOURCES} Each alone, as FILE:WEIGHT, FILE=WEIGHT or FILE:COMPONENT=WEIGHT,..."),
]
FromConfig = Annotated[
    Path | None,
    typer.Option("--config", metavar="YAML", help="Adapters and weights from a generate config of AI Toolkit instead."),
]
Blocks = Annotated[
    list[str] | None,
    typer.Option(
        "--block-weights",
        metavar="TEXT",
        help="Weights by block, sdxl:1,0,0,... or a preset, sdxl:OUTALL; once for all adapters, or once for each.",
    ),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Check the options and show the weights; write nothing.")]

# What no weight has.
_PATH = re.compile(r"[/\\]")
# Before and behind the colon of a time.
_HOURS, _MINUTES = re.compile(r"(?<!\d)\d\d$"), re.compile(r"\d\d(\.\d+)?")


class Given(NamedTuple):
    """Adapters as they were asked for.

    Attributes:
        sources, weights: one of each for every adapter.
        config: where they stand, if that is a configuration.
    """

    sources: Sequence[str]
    weights: Sequence[Weight]
    config: GenerateConfig | None = None


def given(adapters: Sequence[str] | None, config: Path | None) -> Given:
    """The adapters of a command line, or those of a configuration.

    Raises:
        OptionError: there are none, or both.
    """
    if config is None:
        if not adapters:
            raise OptionError(
                "no adapters: expected files with weights, or --config with a generate config of AI Toolkit"
            )
        parsed = [parse_weighted(text) for text in adapters]
        return Given([source for source, _ in parsed], [weight for _, weight in parsed])
    if adapters:
        raise OptionError(f"adapters stand on the command line ({adapters[0]}) and in {config}; give one of the two")
    from mergelab.formats.aitoolkit import generate_config

    read = generate_config(config)
    return Given(read.loras, read.weights, read)


def loaded(asked: Given, allow_pickle: bool, architecture: str | None, base: str | None = None) -> list[Adapter]:
    """The adapters themselves; those of a configuration have to be for the base model that it tells."""
    from mergelab.adapter import load

    told = architecture or (asked.config.architecture if asked.config else None)
    return [load(source, allow_pickle=allow_pickle, architecture=told, base=base) for source in asked.sources]


def device_of(asked: Given, device: str | None) -> tuple[str | None, list[str]]:
    """The device of a command line, or else that of a configuration; and what is to be said where that is not here."""
    if device is not None or asked.config is None or asked.config.device is None:
        return device, []
    from mergelab.devices import LAYER_BY_LAYER, chosen_device

    told = asked.config.device
    try:
        return str(chosen_device(told, LAYER_BY_LAYER)), []
    except OptionError:
        return None, [f"not used, since it is not here: device {told} of {asked.config.path}; see --device"]


def parse_weighted(text: str) -> tuple[str, float | dict[str, float]]:
    """A source and its weight, from `FILE`, `FILE:0.7`, `FILE=0.7` or `FILE:unet=0.7,text_encoder=0.3`.

    What exists under the whole text is meant by it. In the query of an address "=" is the address's own.

    Example:
        >>> parse_weighted("style.safetensors:0.7"), parse_weighted("style.safetensors=0.7")
        (('style.safetensors', 0.7), ('style.safetensors', 0.7))
        >>> parse_weighted("https://example.org/style?type=1"), parse_weighted("s3://bucket/style.safetensors=0.7")
        (('https://example.org/style?type=1', 1.0), ('s3://bucket/style.safetensors', 0.7))
        >>> parse_weighted("style.safetensors:unet=0.7,unet.mid_block.*=1"), parse_weighted("user/repo/a.safetensors")
        (('style.safetensors', {'unet': 0.7, 'unet.mid_block.*': 1.0}), ('user/repo/a.safetensors', 1.0))
    """
    if "://" not in text and Path(text).exists():
        return text, 1.0
    for source, tail in _cuts(text):
        try:
            return source, _weight(tail)
        except ValueError:
            if _is_file(source):
                raise OptionError(f"{text}: weight {tail!r}: expected a number, or COMPONENT=NUMBER,...") from None
    return text, 1.0


def _cuts(text: str) -> list[tuple[str, str]]:
    """Where a text may be cut in two, source and weight: the likelier first.

    Behind a file, the longest that there is; else at the last sign. In a query there is no such sign but a colon, and
    that of a time is none either ("?date=2024-01-01T00:00:30").
    """
    in_query = "://" in text and "?" in text
    places = [i for i, sign in enumerate(text) if sign == ":" or (sign == "=" and not in_query)]
    cuts = [(text[:i], text[i + 1 :]) for i in reversed(places) if _is_file(text[:i])]
    cuts += [(text[:i], text[i + 1 :]) for i in (text.rfind(":"), text.rfind("=")) if i in places]
    if in_query:
        cuts = [(source, tail) for source, tail in cuts if not (_HOURS.search(source) and _MINUTES.fullmatch(tail))]
    return [(source, tail) for source, tail in cuts if _may_be_source(source) and not _PATH.search(tail)]


def _may_be_source(text: str) -> bool:
    """An address goes on behind its host, which may have a colon and a port."""
    return bool(text) and ("://" not in text or text.count("/") > 2)


def _is_file(source: str) -> bool:
    return source.endswith(".safetensors") or ("://" not in source and Path(source).exists())


def _weight(text: str) -> float | dict[str, float]:
    from mergelab.checks import plain_number

    if "=" not in text:
        return plain_number(text)
    parts = (part.rpartition("=") for part in text.split(","))
    return {key: plain_number(value) for key, _, value in parts}


def by_block(adapters: Sequence[Adapter], weights: Iterable[Weight], blocks: Sequence[str] | None) -> list[Weight]:
    """The weights of each adapter, times those of its blocks.

    Raises:
        OptionError: neither one text for all adapters nor one for each; a text that `block_weights` refuses.
    """
    strengths = list(weights)
    if not blocks:
        return strengths
    if len(blocks) not in (1, len(adapters)):
        raise OptionError(
            f"--block-weights is given {counted(len(blocks), 'time')} for {counted(len(adapters), 'adapter')}: "
            "expected once for all, or once for each"
        )
    from mergelab.engine.block_weights import block_weights

    texts = blocks if len(blocks) > 1 else [*blocks] * len(adapters)
    return [block_weights(t, w, architecture=a.architecture) for t, w, a in zip(texts, strengths, adapters)]


def weight_table(adapters: Sequence[Adapter], weights: Sequence[Weight]) -> str:
    """Which part of each adapter has which weight, and how many layers that is: by block, else by component.

    Raises:
        OptionError: weights that do not fit, or all 0.
    """
    from mergelab.engine.aligning import unique_names
    from mergelab.engine.block_weights import BlockWeights
    from mergelab.engine.weights import resolve

    names = unique_names([adapter.name for adapter in adapters])
    rows = [("adapter", "part", "weight", "layers")]
    table = resolve(weights, [adapter.layers for adapter in adapters], names)
    if not any(any(resolved.values()) for resolved in table):
        raise OptionError("every weight is 0, so no adapter is left")
    for name, weight, resolved in zip(names, weights, table):
        counts: dict[tuple[str, float], int] = {}
        if isinstance(weight, BlockWeights) and not isinstance(weight.strength, Mapping):
            counts = {(block, weight.strength * value): 0 for block, value in weight.blocks.items()}
        for layer, number in resolved.items():
            part = weight.block(layer) if isinstance(weight, BlockWeights) else None
            place = (part or layer.partition(".")[0], number)
            counts[place] = counts.get(place, 0) + 1
        rows += [(name, part, f"{number:g}", str(count)) for part, number, count in _folded(counts)]
    return as_text(rows)


def _folded(counts: Mapping[tuple[str, float], int]) -> list[tuple[str, float, int]]:
    """Parts with their weights and numbers of layers; blocks that follow each other at one weight are one part.

    Example:
        >>> _folded({("D00", 1.0): 14, ("D01", 1.0): 14, ("S00", 1.0): 6, ("S01", 0.0): 6})
        [('D00-D01', 1.0, 28), ('S00', 1.0, 6), ('S01', 0.0, 6)]
    """
    folded: list[tuple[str, float, int]] = []
    for (part, weight), count in counts.items():
        first, _, last = folded[-1][0].partition("-") if folded else ("", "", "")
        if folded and folded[-1][1] == weight and _follows(part, last or first):
            folded[-1] = (f"{first}-{part}", weight, folded[-1][2] + count)
        else:
            folded.append((part, weight, count))
    return folded


def _follows(block: str, other: str) -> bool:
    """Whether a block is the next of its kind."""
    return block[-2:].isdecimal() and other[-2:].isdecimal() and other == f"{block[:-2]}{int(block[-2:]) - 1:02}"
