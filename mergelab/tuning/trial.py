"""What a search tried, and what it found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from mergelab.tuning.candidate import Candidate
from mergelab.tuning.scoring import Scored


@dataclass(frozen=True)
class Trial:
    """One candidate that was tried.

    Attributes:
        number: in the order in which they were tried, from 0.
        candidate: what was tried.
        state: "complete"; "stopped" before all scenes were drawn, as others were better; "failed".
        scored: on the scenes that were drawn; None where it failed.
        bytes: of the merged file, where that was asked for.
        error: why it failed.
        parameters: what was chosen, by name: "ghost", "ghost unet.up_blocks.*", "method", "rank".
    """

    number: int
    candidate: Candidate
    state: Literal["complete", "stopped", "failed"]
    scored: Scored | None
    bytes: int | None = None
    error: str = ""
    parameters: Mapping[str, float | int | str] = field(default_factory=dict)


@dataclass(frozen=True)
class Found:
    """What a search found.

    Attributes:
        trials: all that were tried, by their numbers.
        best: numbers of the best; several where objectives were weighed against each other, the first one the winner.
        objectives: what was asked for, such as ("score",) or ("joint", "bytes").
        importance: objective -> parameter -> its share in what decides the objective.
    """

    trials: tuple[Trial, ...]
    best: tuple[int, ...]
    objectives: tuple[str, ...]
    importance: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    @property
    def winner(self) -> Trial:
        """The trial whose adapter is written."""
        return self.trials[self.best[0]]
