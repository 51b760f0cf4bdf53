"""The search with Optuna: several trials are asked for at a time, merged together, drawn wave by wave, and told."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from mergelab.errors import MergelabError
from mergelab.evaluation.merging import AT_A_TIME
from mergelab.tuning.bench import Bench
from mergelab.tuning.candidate import Candidate, Scene
from mergelab.tuning.config import TuneConfig
from mergelab.tuning.objectives import BYTES, best_of, checked_objectives, values_of
from mergelab.tuning.optuna_study import OWNER, TRIED, importance_of, kept, opened, owner, quietly
from mergelab.tuning.scoring import Scored
from mergelab.tuning.space import Space
from mergelab.tuning.suggesting import candidate_of, usual_parameters
from mergelab.tuning.trial import Found, Trial
from mergelab.tuning.waves import waves_of

if TYPE_CHECKING:
    import optuna

Score = Callable[[pd.DataFrame, Sequence[Scene]], Mapping[str, Scored]]
"""From measured scores to what each candidate keeps, on these scenes."""
SUM = "sum"
"""The plain sum at the usual weights: the first candidate of every search."""


def search_optuna(
    config: TuneConfig,
    space: Space,
    bench: Bench,
    score: Score,
    scenes: Sequence[Scene],
    folder: Path,
    ended: Callable[[Trial], None] = lambda trial: None,
    identity: Mapping[str, Any] | None = None,
) -> Found:
    """The best that Optuna finds in a space.

    The plain sum is trial 0 and none of Optuna's; theirs begin at the point of the space that is nearest to it. A trial
    that cannot be merged or drawn is one that failed, and the search goes on. Trials that an earlier run of the same
    configuration told are taken as they were.

    Args:
        config: how many trials, for which objectives, kept where.
        space: what is searched.
        bench: measures candidates.
        score: what they keep.
        scenes: on which they are measured.
        folder: the run folder.
        ended: told of each trial, those of an earlier run included.
        identity: what decides scores beside the configuration: hashes of the adapters.

    Raises:
        OptionError: Optuna is not there; an objective that nothing tells; a storage that cannot be opened.
        OutputError: trials cannot be kept.
        MergelabError: every trial failed.
    """
    objectives = checked_objectives(config.objectives, list(space.usual), scenes)
    with quietly():
        study = opened(config, scenes, folder, identity or {})
        run = _Run(config, space, bench, score, scenes, folder, objectives, study)
        ended(run.first())
        for trial in run.told():
            ended(trial)
        if not study.get_trials(deepcopy=False):
            study.enqueue_trial(usual_parameters(space))
        while (left := config.trials - len(run.told())) > 0:
            for trial in run.batch(min(AT_A_TIME, left)):
                ended(trial)
            run.check_hope()
        with kept(config, folder):
            importance = importance_of(study, objectives)
    trials = tuple([run.first(), *run.told()])
    return Found(trials, best_of(trials, objectives), objectives, importance)


@dataclass
class _Run:
    config: TuneConfig
    space: Space
    bench: Bench
    score: Score
    scenes: Sequence[Scene]
    folder: Path
    objectives: tuple[str, ...]
    study: optuna.Study
    _first: list[Trial] = field(default_factory=list)

    def first(self) -> Trial:
        """The plain sum; it is drawn once."""
        if not self._first:
            candidate = Candidate(SUM, self.space.usual)
            found = self.score(self.bench.measure([candidate], self.scenes), self.scenes).get(SUM)
            self._first.append(self._ended(0, candidate, found, {}))
        return self._first[0]

    def told(self) -> list[Trial]:
        """What Optuna knows the end of, in the order in which it was asked for; numbers leave out what a kill ended."""
        with kept(self.config, self.folder):
            known = self.study.get_trials(deepcopy=False)
        ended = [trial for trial in known if trial.state.is_finished() and TRIED in trial.user_attrs]
        return [_trial(number, one) for number, one in enumerate(ended, 1)]

    def check_hope(self) -> None:
        """Whether anything can be merged at all."""
        trials = self.told()
        if len(trials) >= min(AT_A_TIME, self.config.trials) and all(trial.state == "failed" for trial in trials):
            raise MergelabError(f"each of {len(trials)} trials failed; the first: {trials[0].error}")

    def batch(self, count: int) -> list[Trial]:
        """So many trials: all are merged together, and drawn wave by wave as long as they are not stopped."""
        asked: dict[str, tuple[optuna.Trial, Candidate]] = {}
        with kept(self.config, self.folder):
            for _ in range(count):
                trial = self.study.ask()
                trial.set_user_attr(OWNER, owner(self.folder))
                candidate = candidate_of(self.space, trial, f"trial {trial.number + 1}")
                asked[candidate.label] = (trial, candidate)
        seen: list[Scene] = []
        frames: list[pd.DataFrame] = []
        ended: list[Trial] = []
        waves = self._waves()
        for step, wave in enumerate(waves):
            seen += wave
            frames.append(self.bench.measure([candidate for _, candidate in asked.values()], wave))
            found = self.score(pd.concat(frames, ignore_index=True), seen)
            for label, (trial, candidate) in list(asked.items()):
                scored = found.get(label)
                state = self._state(trial, scored, step, last=step == len(waves) - 1)
                if state:
                    ended.append(self._tell(trial, candidate, scored, state))
                    del asked[label]
            if not asked:
                break
        return sorted(ended, key=lambda one: one.number)

    def _waves(self) -> list[list[Scene]]:
        stops = self.config.prune and len(self.objectives) == 1 and self.objectives[0] != BYTES
        return waves_of(self.scenes, self.config.images) if stops else [list(self.scenes)]

    def _state(self, trial: optuna.Trial, scored: Scored | None, step: int, *, last: bool) -> str:
        """What a wave was to a trial: its end, or empty."""
        if scored is None:
            return "failed"
        if last:
            return "complete"
        (value,) = values_of(self.objectives, scored, None)
        if not math.isfinite(value):
            return "failed"
        with kept(self.config, self.folder):
            trial.report(value, step)
            return "stopped" if trial.should_prune() else ""

    def _tell(self, trial: optuna.Trial, candidate: Candidate, scored: Scored | None, state: str) -> Trial:
        from optuna.trial import TrialState

        one = self._ended(trial.number + 1, candidate, scored, trial.params, state)
        values = values_of(self.objectives, scored, one.bytes) if scored and one.state == "complete" else None
        with kept(self.config, self.folder):
            # Before the end is told: a trial that has ended is one of which all is known.
            trial.set_user_attr(TRIED, _record(one))
            states = {"complete": TrialState.COMPLETE, "stopped": TrialState.PRUNED, "failed": TrialState.FAIL}
            self.study.tell(trial, values, states[one.state])
        return one

    def _ended(
        self, number: int, candidate: Candidate, scored: Scored | None, parameters: Mapping[str, Any],
        state: str = "complete",
    ) -> Trial:  # fmt: skip
        """With the size of its file, where that is asked for; failed where an objective is not known."""
        error = self.bench.failure(candidate)
        size = None
        if scored is not None and state == "complete" and BYTES in self.objectives:
            size = self.bench.bytes(candidate)
        known = scored is not None and state != "failed"
        if known and scored is not None and state == "complete":
            known = all(map(math.isfinite, values_of(self.objectives, scored, size)))
        if not known:
            lacking = error or "it has no score by what is asked for"
            return Trial(number, candidate, "failed", scored, size, lacking, dict(parameters))
        return Trial(number, candidate, "stopped" if state == "stopped" else "complete", scored, size, error, dict(parameters))


def _record(trial: Trial) -> dict[str, Any]:
    """A trial as JSON; only its number is Optuna's to know."""
    record = asdict(trial)
    del record["number"]
    return record


def _trial(number: int, told: optuna.trial.FrozenTrial) -> Trial:
    record = dict(told.user_attrs[TRIED])
    scored = record.pop("scored")
    return Trial(
        number,
        Candidate(**record.pop("candidate")),
        scored=None if scored is None else Scored(**scored),
        **record,
    )
