"""The trials of a run in its folder, each as it ends."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from mergelab.evaluation.store import to_json, write
from mergelab.tuning.trial import Found, Trial

TRIALS = "trials.json"


class Ledger:
    """What `trials.json` holds: written whole at every change, so that a kill leaves what was there.

    Args:
        folder: the run folder.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / TRIALS
        self._trials: dict[int, Trial] = {}
        self._sums: dict[int, Trial] = {}

    def trial(self, trial: Trial) -> None:
        """One that the search tried has ended, or went on and ended again."""
        self._trials[trial.number] = trial
        self._write({})

    def sum(self, trial: Trial) -> None:
        """The plain sum at one strength."""
        self._sums[trial.number] = trial
        self._write({})

    def found(self, found: Found) -> None:
        """The search is over."""
        best = {"best": list(found.best), "objectives": list(found.objectives), "importance": found.importance}
        self._write(best)

    def _write(self, more: dict[str, Any]) -> None:
        trials, sums = ([asdict(own[number]) for number in sorted(own)] for own in (self._trials, self._sums))
        write(self._path, to_json({"trials": trials, "sums": sums, **more}))
