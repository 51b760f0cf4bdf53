"""What trackers are told of a run: its configuration, numbers, tables, pictures and files."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from PIL import Image

from mergelab.evaluation.contact_sheets import contact_sheets
from mergelab.evaluation.names import apart
from mergelab.evaluation.result import Result
from mergelab.evaluation.store import Store, file_name
from mergelab.formats.fetching import public

FILES = ("scores.parquet", "summary.json", "results.json", "report.html")
"""Of the run folder, as they are. Its config.yaml may hold addresses that open something."""
LONGEST = 240
"""Characters of a number's name; trackers take 250, and its bounds have four and five more."""


@dataclass(frozen=True)
class Record:
    """What is told.

    Attributes:
        config: as it was resolved; addresses without what opens them.
        scalars: every finding and its bounds, where they are finite, and what each variant costs.
        tables: findings and contrasts.
        result: whose pictures and files it is.
    """

    config: dict[str, Any]
    scalars: dict[str, float]
    tables: dict[str, pd.DataFrame]
    result: Result

    def sheets(self) -> Iterator[tuple[str, Image.Image]]:
        """A contact sheet for each set of adapters, one at a time."""
        for name, sheet in contact_sheets(self.result.scores, Store(self.result.folder).images):
            yield f"contact-sheets/{name}", sheet

    @property
    def files(self) -> list[Path]:
        """Those that are there."""
        return [path for path in (self.result.folder / name for name in FILES) if path.is_file()]


def record_of(result: Result, summary: Mapping[str, Any]) -> Record:
    """The record of a run.

    Args:
        result: what was found.
        summary: what `summary.json` holds.
    """
    rows = {name: list(map(_flat, summary.get(name, ()))) for name in ("findings", "contrasts")}
    return Record(
        public(result.config.model_dump()),
        dict(_scalars(rows["findings"], summary.get("costs", {}))),
        {name: pd.DataFrame(found) for name, found in rows.items() if found},
        result,
    )


def _scalars(findings: Iterable[Mapping[str, Any]], costs: Mapping[str, Mapping[str, float]]) -> Iterator[Any]:
    taken: set[str] = set()
    for row in findings:
        name = apart(scalar_name(*(row.get(key) for key in _PARTS)), taken)  # "a=b" and "a b" are spelt alike
        for value, end in (("estimate", ""), ("low", "_low"), ("high", "_high")):
            if (number := row.get(value)) is not None and math.isfinite(number):
                yield name + end, float(number)
    for variant, cost in costs.items():
        for what, number in cost.items():
            yield apart(scalar_name("cost", what, variant), taken), float(number)


_PARTS = ("quantity", "metric", "reference", "prompts", "variant")


def scalar_name(*parts: str | None) -> str:
    """The name of a number: letters, digits, `_`, `-` and `.`, parted by slashes, which all trackers take.

    What is too long is cut, and told apart by a hash of the whole.

    Example:
        >>> scalar_name("recovery", "judge", "single:ghost", None, "merge:ties density=0.3 rank=8")
        'recovery/judge/single-ghost/merge-ties-density-0.3-rank-8'
    """
    name = "/".join(file_name(part) or "-" for part in parts if part)
    tail = hashlib.sha256(name.encode()).hexdigest()[:8]
    return name if len(name) <= LONGEST else f"{name[: LONGEST - 9]}-{tail}"


def _flat(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row of a table: the interval as its three numbers; what has rows of its own is left to summary.json."""
    plain = {key: value for key, value in row.items() if not isinstance(value, (Mapping, list, tuple))}
    return plain | dict(row.get("interval") or {})
