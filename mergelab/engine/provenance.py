"""What a merged file says of itself: the recipe, so that anybody can make it again."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from mergelab.adapter import Adapter
from mergelab.formats import sha256_of

# Header keys under which tools keep the words that call an adapter, without a tool's prefix, spelt with letters alone.
_TRIGGER_KEYS = (
    *("triggerphrase", "triggerphrases", "triggerwords", "triggerword", "triggers", "instanceprompt"),
    *("trainedwords", "trainedword", "activationtext", "activationwords", "activationword"),
)


@dataclass(frozen=True)
class Recipe:
    """How a merge was made.

    Attributes:
        method: its name.
        options: of the method and of the merge (rank, seed, ...), by name, JSON-ready.
        inputs: one `input_record` for each adapter.
    """

    method: str
    options: dict[str, Any]
    inputs: list[dict[str, Any]]

    def to_json(self) -> str:
        """With the version of mergelab, under sorted keys, so that the same recipe has the same bytes."""
        content = {
            "method": self.method,
            "options": self.options,
            "inputs": self.inputs,
            "version": package_version(),
        }
        return json.dumps(content, sort_keys=True, default=str)


def package_version() -> str:
    """Of the installed mergelab; "unknown" in a bare checkout."""
    try:
        return version("mergelab")
    except PackageNotFoundError:
        return "unknown"


def input_record(adapter: Adapter, weight: Any) -> dict[str, Any]:
    """Name, weight and sha256 of one input (None for an adapter that is in memory).

    Example:
        >>> input_record(Adapter({}, source="style"), 0.5)
        {'name': 'style', 'weight': 0.5, 'sha256': None}
    """
    digest = sha256_of(adapter.inputs[0]) if adapter.is_file else None
    return {"name": adapter.name, "weight": weight, "sha256": digest}


def trigger_words(adapters: Sequence[Adapter]) -> list[str]:
    """The trigger words of all inputs, in their order, each once.

    Example:
        >>> headers = {"modelspec.trigger_phrase": "sks, dog"}, {"trained_words": '["szn style", "sks"]'}
        >>> trigger_words([Adapter({}, metadata=header) for header in headers])
        ['sks', 'dog', 'szn style']
    """
    words: dict[str, None] = {}
    for adapter in adapters:
        found = {key: _TRIGGER_KEYS.index(name) for key in adapter.metadata if (name := _bare(key)) in _TRIGGER_KEYS}
        for key in sorted(found, key=lambda key: (found[key], key)):
            for word in ",".join(_texts(adapter.metadata[key])).split(","):
                if word.strip():
                    words[word.strip()] = None
    return list(words)


def _bare(key: str) -> str:
    """A header key by which spellings are compared: "ss_trigger_words" and "triggerWords" are one."""
    return re.sub("[^a-z]", "", re.sub(r"^(modelspec\.|ss_|st_|ot_)", "", key.lower()))


def _texts(value: str) -> list[str]:
    """The texts of a header's value, which is one, or a list in JSON."""
    try:
        texts = json.loads(value) if value.lstrip().startswith("[") else value
    except (ValueError, RecursionError):
        texts = value
    return [text for text in texts if isinstance(text, str)] if isinstance(texts, list) else [value]


def merged_metadata(recipe: Recipe, adapters: Sequence[Adapter]) -> dict[str, str]:
    """The header of a merged adapter: recipe, parents and trigger words."""
    names = [adapter.name for adapter in adapters]
    metadata = {
        "mergelab": recipe.to_json(),
        "modelspec.title": " + ".join(names),
        "modelspec.merged_from": ", ".join(names),
    }
    if words := trigger_words(adapters):
        metadata["modelspec.trigger_phrase"] = ", ".join(words)
    return metadata
