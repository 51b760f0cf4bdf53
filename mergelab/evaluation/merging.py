"""The merges of a run: those that it holds already are used again, the others made several at a time, and kept."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mergelab.adapter import Adapter
from mergelab.engine.merge import merge, merge_many
from mergelab.evaluation.config import Weight
from mergelab.evaluation.recipes import Recipe
from mergelab.evaluation.store import file_name, hash_of, to_json, write
from mergelab.methods.registry import METHODS
from mergelab.pipelines.fingerprints import adapter_hash
from mergelab.publishing.recipe import package_version

AT_A_TIME = 4
"""Merges that are made together, and held until they are written: four of FLUX.1 at rank 32 are 3 GB."""


@dataclass(frozen=True)
class Planned:
    """One merge of a run.

    Attributes:
        keywords: of `merge`, with the weights.
        key: a hash of all that decides the result.
        path: of its file.
    """

    keywords: Mapping[str, Any]
    key: str
    path: Path

    def record(self) -> dict[str, Any] | None:
        """What is known of the merge, if its file was made from the same inputs in the same way."""
        record = self.path.with_suffix(".json")
        known = json.loads(record.read_text(encoding="utf-8")) if record.exists() and self.path.exists() else {}
        own = self.keywords["method"] not in METHODS  # a rule of the user's own may have been edited
        return None if own or known.get("key") != self.key or "tensors" not in known else known

    def forget(self) -> None:
        """Drop what is known: a kill must not leave a new file under the record of another."""
        self.path.with_suffix(".json").unlink(missing_ok=True)

    def keep(self, record: Mapping[str, Any], file: bytes | None) -> None:
        """Write what is known of the merge, and the file itself, where it does not lie there yet."""
        if file is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write(self.path, file)
        write(self.path.with_suffix(".json"), to_json(record))


def record_of(planned: Planned, merged: Adapter, seconds: float, written: Adapter) -> dict[str, Any]:
    """What is kept of a merge, beside its file.

    Args:
        planned: as it was asked for.
        merged: as it was made, with its report.
        seconds: it took.
        written: as its file has it.
    """
    return {
        "key": planned.key,
        "seconds": seconds,
        "tensors": adapter_hash(written),
        "retained_energy": merged.report.retained_energy,
        "shares": merged.report.shares,
        "layers": json.loads(merged.report.to_frame().to_json(orient="records")),
    }


def planned_merges(
    recipes: Sequence[Recipe], usual: Sequence[Weight], inputs: Mapping[str, str], folder: Path
) -> dict[str, Planned]:
    """Each merge by its label.

    Args:
        recipes: of the merges.
        usual: weights of those that have none of their own.
        inputs: name of an adapter -> its hash.
        folder: where the files lie.
    """
    planned = {}
    for recipe in recipes:
        weights = list(usual if recipe.weights is None else recipe.weights)
        request = {"inputs": inputs, "weights": weights, "keywords": recipe.keywords, "version": package_version()}
        path = folder / f"{file_name(recipe.label)}.safetensors"
        planned[recipe.label] = Planned({**recipe.keywords, "weights": weights}, hash_of(request), path)
    return planned


def made_together(
    asked: Sequence[Mapping[str, Any]], adapters: Sequence[Adapter], device: str | None, progress: bool | None
) -> Iterator[tuple[Adapter, float] | Exception]:
    """Merges and their seconds: all at once, or, where one of them fails, one by one."""
    merged = list[Adapter]()
    start = time.perf_counter()
    if len(asked) > 1:
        with suppress(Exception):  # the merges by themselves tell whose it is
            merged = merge_many(adapters, asked, device=device, progress=progress)
    if merged:
        seconds = (time.perf_counter() - start) / len(asked)
        yield from ((merged.pop(0), seconds) for _ in asked)
        return
    for keywords in asked:
        start = time.perf_counter()
        try:
            made = merge(adapters, device=device, progress=progress, **keywords)
        except Exception as error:  # out of memory, a rule of the user's own: this merge alone
            yield error
        else:
            yield made, time.perf_counter() - start
