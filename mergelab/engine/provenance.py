"""What a merged file says of itself: the recipe, so that anybody can make it again."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mergelab.adapter import Adapter
from mergelab.formats import joined, sha256_of, trigger_words
from mergelab.publishing.recipe import package_version


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


def input_record(adapter: Adapter, weight: Any, digest_of: Callable[[Path], str] = sha256_of) -> dict[str, Any]:
    """Name, weight and sha256 of one input (None for an adapter that is in memory), and where on the Hub it lies.

    Whether a repository is private is not known here: its name is in the header, and in the card of what is pushed.

    Example:
        >>> input_record(Adapter({}, source="style"), 0.5)
        {'name': 'style', 'weight': 0.5, 'sha256': None}
    """
    digest = digest_of(adapter.inputs[0]) if adapter.is_file else None
    record = {"name": adapter.name, "weight": weight, "sha256": digest}
    return record | ({"source": adapter.source} if adapter.is_on_the_hub else {})


def merged_metadata(recipe: Recipe, adapters: Sequence[Adapter]) -> dict[str, str]:
    """The header of a merged adapter: recipe, parents, trigger words, and what the inputs say in common."""
    names = [adapter.name for adapter in adapters]
    headers = [adapter.metadata for adapter in adapters]
    metadata = {
        **joined(headers),
        "mergelab": recipe.to_json(),
        "modelspec.title": " + ".join(names),
        "modelspec.merged_from": ", ".join(names),
    }
    if words := trigger_words(headers):
        metadata["modelspec.trigger_phrase"] = ", ".join(words)
    return metadata
