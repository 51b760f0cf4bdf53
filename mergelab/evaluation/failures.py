"""What failed in a run: every cell is recorded, and each kind of error is said once, with a count."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from mergelab.evaluation.names import display_name
from mergelab.formats.fetching.folders import without_secrets
from mergelab.tables import counted

log = logging.getLogger(__name__)

Failure = Mapping[str, Any]
"""`set`, `variant`, `metric`, `prompt`, `seed`, `error`: of one cell; without prompt and seed of a whole variant."""


@dataclass
class Failures:
    """The failed cells of a run, as they come."""

    rows: list[Failure] = field(default_factory=list)
    _told: int = 0

    def add(
        self,
        error: Exception,
        variant: object,
        prompt: str | None = None,
        seed: int | None = None,
        *,
        metric: str | None = None,
        set: str = "",
    ) -> None:
        """Record one; a metric that failed is named, and so is the set of adapters."""
        said = f"{type(error).__name__}: {without_secrets(' '.join(str(error).split()))[:300]}"
        cell = {"set": set, "variant": str(variant), "metric": metric, "prompt": prompt, "seed": seed}
        self.rows.append(cell | {"error": said})

    def tell(self) -> None:
        """Log what was added since the last time: a line for each kind of error, however many cells it hit."""
        for line in summed_up(self.rows[self._told :]):
            log.warning("%s", line)
        self._told = len(self.rows)


def summed_up(failures: Iterable[Failure]) -> list[str]:
    """A line for each metric (or what is drawn) and type of error: how many cells, and the first of them.

    Example:
        >>> cells = [{"variant": v, "metric": "mine", "prompt": "a sks", "seed": 0, "error": "KeyError: 'base'"}
        ...          for v in ("base", "stack")]
        >>> summed_up(cells)
        ["metric mine: 2 cells failed, the first (base, 'a sks', seed 0) with KeyError: 'base'"]
    """
    kinds: dict[tuple[Any, ...], list[Failure]] = {}
    for failure in failures:
        kind = failure["metric"], failure["error"].partition(":")[0], failure["prompt"] is None
        kinds.setdefault(kind, []).append(failure)
    return [_line(alike) for alike in kinds.values()]


def _line(alike: list[Failure]) -> str:
    first = alike[0]
    variant = display_name(first["variant"])
    what = f"metric {first['metric']}: " if first["metric"] else ""
    if first["prompt"] is None:
        return f"{what}{counted(len(alike), 'variant')} failed, the first ({variant}) with {first['error']}"
    place = f"{variant}, {first['prompt']!r}, seed {first['seed']}"
    return f"{what}{counted(len(alike), 'cell')} failed, the first ({place}) with {first['error']}"
