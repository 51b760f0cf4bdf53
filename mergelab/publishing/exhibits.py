"""What an evaluation showed of an adapter: read from the run folder, for the very adapter that was drawn."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mergelab.errors import MergelabError, OptionError, SourceError
from mergelab.formats import ReadOptions, read
from mergelab.layer import AdapterData, same_weight
from mergelab.linalg.lowrank import inner
from mergelab.linalg.precision import full_precision
from mergelab.publishing.base_models import is_hub_name

_SUMMARY, _KEY = "summary.json", "exhibits"
_SAME = 0.01
"""Relative distance up to which two changes are one: a cast to bfloat16 moves it by less than half of that."""


@dataclass(frozen=True)
class Picture:
    """An image that the adapter drew.

    Attributes:
        prompt: of what.
        path: where it lies.
    """

    prompt: str
    path: Path

    @property
    def name(self) -> str:
        """In the repository."""
        return f"images/{self.path.name}"


@dataclass(frozen=True)
class Score:
    """One column of the table of scores: what it is called, what it means, and its cell of each variant.

    Attributes:
        head, help: of the column.
        cells: base model, adapters alone, stack and the merge -> estimate and interval, as people read them.
        value: of the adapter itself, None where it has none.
    """

    head: str
    help: str
    cells: Mapping[str, str]
    value: float | None


@dataclass(frozen=True)
class Exhibit:
    """What a run says of one of its merges.

    Attributes:
        name: of the merge in the run.
        pictures: one for each prompt.
        scores: the columns of the table.
        design: prompts and seeds, in words.
        settings: of the pipeline, in words.
        base_model: the name of the pipeline that drew, None where it is a folder here.
        triggers: words that call the adapters.
    """

    name: str
    pictures: tuple[Picture, ...]
    scores: tuple[Score, ...]
    design: str
    settings: str
    base_model: str | None
    triggers: tuple[str, ...]


def exhibit_of(run: str | os.PathLike[str], data: AdapterData) -> Exhibit:
    """What the run in a folder shows of an adapter.

    Raises:
        SourceError: the folder holds no finished run, or a damaged one.
        OptionError: none of its merges is this adapter.
    """
    folder = Path(run)
    summary = _summary(folder)
    try:
        return _read(folder, summary[_KEY], summary["triggers"], data)
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        what = f"{type(error).__name__}: {error}"
        raise SourceError(
            f"{folder / _SUMMARY}: its {_KEY!r} are damaged ({what}); run `mergelab evaluate` again"
        ) from None


def _read(folder: Path, content: Mapping[str, Any], triggers: Mapping[str, list[str]], data: AdapterData) -> Exhibit:
    merge = _merge_of(folder, content["merges"], data)
    others = {known["row"] for known in content["merges"]} - {merge["row"]}
    rows = {row["name"]: row["cells"] for row in content["rows"] if row["name"] not in others}
    scores = [
        Score(
            column["head"],
            column["help"],
            {name: _in_words(cells[i]) for name, cells in rows.items()},
            _number(rows[merge["row"]][i]["value"]),
        )
        for i, column in enumerate(content["columns"])
    ]
    # Names alone are taken from the file: it may be another's, and a path in it would be published.
    pictures = (
        Picture(str(known["prompt"]), folder / "images" / Path(known["image"]).name) for known in merge["pictures"]
    )
    words = (str(word) for words in triggers.values() for word in words)
    return Exhibit(
        merge["row"],
        tuple(picture for picture in pictures if picture.path.is_file() and not picture.path.is_symlink()),
        tuple(scores),
        content["design"],
        ", ".join(f"{name} {value}" for name, value in content["generation"].items()),
        content["pipeline"] if is_hub_name(content["pipeline"]) else None,
        tuple(dict.fromkeys(words)),
    )


def _summary(folder: Path) -> dict[str, Any]:
    path = folder / _SUMMARY
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SourceError(f"{path}: expected a finished run of `mergelab evaluate`: {error.strerror}") from None
    except ValueError as error:
        raise SourceError(f"{path}: is no JSON: {error}") from None
    if not isinstance(summary, dict) or _KEY not in summary:
        raise SourceError(
            f"{path}: holds no {_KEY!r}, as runs of an earlier mergelab; run `mergelab evaluate` on this folder again, "
            "which draws nothing anew"
        )
    return summary


def _merge_of(folder: Path, merges: list[dict[str, Any]], data: AdapterData) -> dict[str, Any]:
    """The merge whose change is that of the adapter."""
    distances = {i: _distance(folder / known["file"], data) for i, known in enumerate(merges)}
    nearest = min(distances, key=lambda i: distances[i], default=None)
    if nearest is None or distances[nearest] > _SAME:
        made = f"; they lie in {folder / 'adapters'}" if merges else ""
        raise OptionError(
            f"run={str(folder)!r}: none of its merges is {data.source}{made}: push one of them, or evaluate this"
        )
    return merges[nearest]


def _distance(path: Path, data: AdapterData) -> float:
    """Relative distance of the change in a file from that of an adapter."""
    try:
        other, _ = read(path, ReadOptions(architecture=data.architecture))
    except MergelabError:
        return math.inf
    if set(other.layers) != set(data.layers) or not all(
        same_weight(other.layers[name].shape, layer.shape) for name, layer in data.layers.items()
    ):
        return math.inf
    with full_precision():
        terms = [(data.matrices(name), other.matrices(name)) for name in data.layers]
        norm = sum(inner(a, a) for a, _ in terms)
        squared = norm + sum(inner(b, b) - 2 * inner(a, b) for a, b in terms)
    return math.sqrt(max(0.0, squared) / norm) if norm > 0 else math.inf


def _in_words(cell: Mapping[str, Any]) -> str:
    return f"{cell['text']} [{cell['bounds']}]" if cell["bounds"] else str(cell["text"])


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, (int, float)) else None
