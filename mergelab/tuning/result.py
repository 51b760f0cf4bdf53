"""What a search found, with what became of it on held-out prompts and seeds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from mergelab.evaluation.config import Weight
from mergelab.evaluation.result import Result
from mergelab.tables import as_text
from mergelab.tuning.anchors import best_of
from mergelab.tuning.candidate import Candidate
from mergelab.tuning.config import TuneConfig
from mergelab.tuning.scoring import PARTS, Scored
from mergelab.tuning.trial import Found, Trial

WINNER, TUNED_SUM, SUM = "winner", "sum at its best strength", "sum"
"""What the held-out scores are of: the winner as it is written, and the plain sums."""


@dataclass(frozen=True, repr=False)
class Tuned:
    """What a search found; everything in it is also in the run folder.

    Attributes:
        folder: the run folder.
        config: as it was resolved.
        found: the trials, and the best of them.
        sums: the plain sum at several strengths, on the scenes of the search.
        held_out: an evaluation of the winner and of the plain sums on prompts and seeds that the search has not seen.
        variants: "winner", "sum at its best strength", "sum" -> the name of the variant in that evaluation.
        scored: the same -> what each keeps there, on the scale of the search.
        path: the adapter that is written.
        report: the page that shows all this; None where none was written.
    """

    folder: Path
    config: TuneConfig
    found: Found
    sums: tuple[Trial, ...]
    held_out: Result
    variants: Mapping[str, str]
    scored: Mapping[str, Scored]
    path: Path
    report: Path | None = None
    notes: tuple[str, ...] = field(default=())

    @property
    def winner(self) -> Candidate:
        """What is written."""
        return self.found.winner.candidate

    @property
    def best_sum(self) -> Trial | None:
        """The plain sum at its best strength."""
        return best_of(self.sums)

    @property
    def search_score(self) -> float:
        """The winner's score while searching: the best of many, so too high."""
        return self.found.winner.scored.total if self.found.winner.scored else float("nan")

    @property
    def held_out_score(self) -> float:
        """The winner's score on what the search has not seen."""
        return self.scored[WINNER].total if WINNER in self.scored else float("nan")

    @property
    def selection_bias(self) -> float:
        """By how much the search promised too much (other prompts may also be harder or easier)."""
        return self.search_score - self.held_out_score

    def __repr__(self) -> str:
        lines = [f"{self.found.winner.candidate.label} is the best of {len(self.found.trials)} by {self.config.score}:"]
        lines += [f"  {name}: {weight_text(weight)}" for name, weight in self.winner.weights.items()]
        if self.winner.merge is not None:
            lines += ["  " + " ".join(f"{key}={value}" for key, value in self.winner.merge.items())]
        head = ("on held-out scenes", "score", *PARTS)
        rows = [(label, *(f"{value:.3f}" for value in (one.total, one.joint, one.own, one.plain)))
                for label, one in self.scored.items()]  # fmt: skip
        lines += ["", as_text([head, *rows]), ""]
        why = ": the best of many looks better than it is" if self.selection_bias > 0 else ""
        lines += [f"While searching it scored {self.search_score:.3f} ({self.selection_bias:+.3f}){why}."]
        own = self.scored.get(WINNER)
        if better := [name for name, one in self.scored.items() if own and one.total > own.total]:
            lines += [f"On what was held out the {better[0]} scores higher: prefer it, or search with more images."]
        lines += [*self.notes, f"adapter: {self.path}", f"evaluation: {self.held_out.folder / 'report.html'}"]
        return "\n".join([*lines, *([f"report: {self.report}"] if self.report else [])])


def weight_text(weight: Weight) -> str:
    """A weight for people.

    Example:
        >>> weight_text(0.9), weight_text({"*": 1.0, "unet.up_blocks": 1.25})
        ('0.9', '* 1, unet.up_blocks 1.25')
    """
    if isinstance(weight, Mapping):
        return ", ".join(f"{key} {value:g}" for key, value in weight.items())
    return f"{weight:g}"
