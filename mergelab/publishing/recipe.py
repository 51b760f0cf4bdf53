"""How an adapter was made, from its header."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any


@dataclass(frozen=True)
class Input:
    """One adapter that went into a merge.

    Attributes:
        name: a short name.
        weight: in words.
        sha256: of its file, "" for one that was in memory.
        source: its name on the Hub, "" where it is not known.
    """

    name: str
    weight: str
    sha256: str = ""
    source: str = ""


@dataclass(frozen=True)
class Recipe:
    """How a merge was made.

    Attributes:
        method: its name.
        options: name -> value, in words.
        inputs: what went into it.
        version: of mergelab.
        resized: how often the result was resized afterwards.
    """

    method: str
    options: Mapping[str, str]
    inputs: tuple[Input, ...]
    version: str
    resized: int = 0


def recipe_of(header: Mapping[str, str]) -> Recipe | None:
    """The recipe in a header; None where there is none that can be read.

    Example:
        >>> text = '{"method": "svd", "options": {"rank": 8}, "version": "1", "inputs": [{"name": "a", "weight": 0.5}]}'
        >>> recipe_of({"mergelab": text}).inputs, recipe_of({"mergelab": "?"}), recipe_of({})
        ((Input(name='a', weight='0.5', sha256='', source=''),), None, None)
    """
    try:
        content = json.loads(header.get("mergelab", ""))
        inputs = tuple(_input(record) for record in content["inputs"])
        options = {str(name): in_words(value) for name, value in content["options"].items() if value is not None}
        method, written_by = str(content["method"]), str(content.get("version", "unknown"))
        resized = len(content.get("resized", ()))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    return Recipe(method, options, inputs, written_by, resized)


@cache
def package_version() -> str:
    """Of the installed mergelab; "unknown" in a bare checkout."""
    try:
        return version("mergelab")
    except PackageNotFoundError:
        return "unknown"


def resized_header(header: Mapping[str, str], name: str, sha256: str | None, rank: Any) -> dict[str, str]:
    """The header of an adapter that was resized: a recipe, or in the recipe of what it was made by a line of its own.

    Args:
        header: of what is resized.
        name, sha256: of its file; None for what is in memory.
        rank: as `rank_record` writes it.

    Example:
        >>> found = recipe_of(resized_header({}, "style", None, 8))
        >>> found.method, found.options, found.inputs[0].name
        ('resize', {'rank': '8'}, 'style')
    """
    entry = {"name": name, "weight": 1.0, "sha256": sha256}
    if recipe_of(header):
        recipe = json.loads(header["mergelab"])
        step = {**entry, "rank": rank, "version": package_version()}
        recipe["resized"] = [*recipe.get("resized", []), step]
    else:
        recipe = {"method": "resize", "options": {"rank": rank}, "inputs": [entry], "version": package_version()}
    return {**header, "mergelab": json.dumps(recipe, sort_keys=True)}


def _input(record: Mapping[str, Any]) -> Input:
    sha256, source = record.get("sha256") or "", record.get("source") or ""
    return Input(str(record["name"]), in_words(record["weight"]), str(sha256), str(source))


def in_words(value: Any) -> str:
    """A value of a recipe as people write it.

    Example:
        >>> in_words(1.0), in_words({"unet": 0.5, "text_encoder": 1}), in_words(None), in_words("svd")
        ('1', 'unet 0.5, text_encoder 1', '–', 'svd')
    """
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {in_words(item)}" for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(map(in_words, value))
    if isinstance(value, float):
        return f"{value:g}"
    return "–" if value is None else str(value)
