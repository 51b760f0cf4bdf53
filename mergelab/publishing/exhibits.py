"""What an evaluation showed of an adapter: read from the run folder, for the very adapter that was drawn."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mergelab.errors import MergelabError, OptionError, SourceError
from mergelab.formats import ReadOptions, read
from mergelab.layer import AdapterData, same_weight
from mergelab.linalg.lowrank import inner
from mergelab.linalg.workspace import each_layer
from mergelab.publishing.base_models import is_hub_name

_SUMMARY, _KEY = "summary.json", "exhibits"
_SAME = 1e-5
"""Relative distance up to which two changes are one where neither was cast: what is left of other factors of it."""


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
        OptionError: none of its merges is this adapter, the tensors beside its layers included.
    """
    folder = Path(run)
    summary = read_summary(folder)
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
            {name: in_words(cells[i]) for name, cells in rows.items()},
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


def read_summary(folder: Path) -> dict[str, Any]:
    """summary.json of a finished run.

    Raises:
        SourceError: there is none, or a damaged one, or one of a mergelab before there were exhibits.
    """
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
    """The merge that is the adapter."""
    distances = {i: _distance(folder / known["file"], data) for i, known in enumerate(merges)}
    nearest = min(distances, key=lambda i: distances[i], default=None)
    if nearest is None or distances[nearest] > 1:
        made = f"; they lie in {folder / 'adapters'}" if merges else ""
        raise OptionError(
            f"run={str(folder)!r}: none of its merges is {data.source} as it is to be pushed{made}: push one of them, "
            "all of it, or evaluate this"
        )
    return merges[nearest]


def _distance(path: Path, data: AdapterData) -> float:
    """How far what a file holds is from an adapter, in units of what a cast between their dtypes may move it."""
    try:
        other, _ = read(path, ReadOptions(architecture=data.architecture))
    except MergelabError:
        return math.inf
    terms = each_layer(lambda name: _parts_of(name, data, other), (*data.layers, *other.layers)).values()
    norm = sum(here for here, _, _ in terms)
    squared = sum(here + there - 2 * both for here, there, both in terms)
    layers = math.sqrt(max(0.0, squared) / norm) if norm > 0 else math.inf
    pairs = ((data.extras.get(key), other.extras.get(key)) for key in {**data.extras, **other.extras})
    return max(layers, *(_apart(*pair) for pair in pairs), 0.0) / _moved(data, other)


def _parts_of(name: str, data: AdapterData, other: AdapterData) -> tuple[float, float, float]:
    """Squared norms of a layer here and there, and the inner product; zeros may be on one side alone."""
    here, there = (which.matrices(name) if name in which.layers else None for which in (data, other))
    if here is None or there is None:
        one = here or there
        return (0.0, 0.0, 0.0) if one is None or inner(one, one) == 0 else (0.0, math.inf, 0.0)
    if not same_weight(data.layers[name].shape, other.layers[name].shape):
        return 0.0, math.inf, 0.0
    return float(inner(here, here)), float(inner(there, there)), float(inner(here, there))


def _apart(here: Tensor | None, there: Tensor | None) -> float:
    """Relative distance of a tensor beside the layers; zeros may be on one side alone."""
    tensors = [tensor.double() for tensor in (here, there) if tensor is not None]
    norm = max(float(tensor.norm()) for tensor in tensors)
    if len(tensors) < 2 or tensors[0].shape != tensors[1].shape:
        return math.inf if norm > 0 else 0.0
    return float((tensors[0] - tensors[1]).norm()) / norm if norm > 0 else 0.0


def _moved(*adapters: AdapterData) -> float:
    """Relative distance up to which the two are one: a cast to bfloat16, of both factors, moves by no more than eps."""
    kinds = [{layer.lora_A.dtype for layer in which.layers.values()} for which in adapters]
    return _SAME if kinds[0] == kinds[1] else max(_SAME, *(torch.finfo(kind).eps for kind in set().union(*kinds)))


def in_words(cell: Mapping[str, Any]) -> str:
    """A cell of the table of scores: the estimate, and its bounds where it has some."""
    return f"{cell['text']} [{cell['bounds']}]" if cell["bounds"] else str(cell["text"])


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, (int, float)) else None
