"""`search: optuna`: several trials are asked for at a time, merged together, drawn wave by wave, and told.

Trial 0 is the plain sum at the usual weights and none of Optuna's; theirs begin at the point of the space that is
nearest to it. A trial that cannot be merged, drawn or scored has failed, and the search goes on.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from mergelab.adapter import Adapter
from mergelab.errors import OutputError
from mergelab.pipelines.fingerprints import adapter_hash
from mergelab.tuning.anchors import kept_weights, sum_at, usual_weights
from mergelab.tuning.bench import Bench
from mergelab.tuning.candidate import Candidate, Scene
from mergelab.tuning.config import TuneConfig
from mergelab.tuning.groups import groups_of
from mergelab.tuning.objectives import BYTES, checked_objectives, values_of, winners_of
from mergelab.tuning.optuna_study import OWNER, TRIED, importance_of, kept, opened, optuna_module, owner
from mergelab.tuning.scoring import Scored
from mergelab.tuning.space import Space, space_of
from mergelab.tuning.suggesting import candidate_of, usual_parameters
from mergelab.tuning.trial import Found, Trial
from mergelab.tuning.waves import waves_of

if TYPE_CHECKING:
    import optuna

Score = Callable[[pd.DataFrame, Sequence[Scene]], Mapping[str, Scored]]
"""Candidate -> what it keeps on some scenes, from their measured scores."""
AT_A_TIME = 4
"""Trials that are asked for together: the bench makes their merges from inputs that are decomposed once."""


def space_for(config: TuneConfig, adapters: Mapping[str, Adapter], scenes: Sequence[Scene]) -> Space:
    """The space of a search; what is wrong with it, or with the objectives, is found before anything is drawn.

    Raises:
        OptionError: Optuna is not there; what `space` or `objectives` ask for does not exist or is empty.
    """
    optuna_module()
    checked_objectives(config.objectives, list(adapters), scenes)
    layers = {name: list(adapter.layers) for name, adapter in adapters.items()}
    by = config.groups if "weights" in config.space else "none"
    groups = groups_of((layer for own in layers.values() for layer in own), by)
    return space_of(config.space, config.merge, usual_weights(config), groups, layers, kept_weights(config))


def search_optuna(
    config: TuneConfig,
    adapters: Mapping[str, Adapter],
    bench: Bench,
    score: Score,
    scenes: Sequence[Scene],
    told: Callable[[Trial], None],
    folder: Path,
    model: str,
) -> Found:
    """The best that Optuna finds in the space of the configuration.

    Trials that an earlier run of the same search told are taken as they were; those that it was measuring when it ended
    are measured again, with their parameters.

    Args:
        config: of the search.
        adapters: name -> adapter.
        bench: where candidates are measured.
        score: what the candidates keep on some scenes, from their measured scores.
        scenes: that every trial is drawn on, unless it is stopped before.
        told: hears of every trial as it ends, those of an earlier run first.
        folder: the run folder, with Optuna's file unless the configuration names a storage.
        model: the base model's fingerprint: trials on another one do not count.

    Raises:
        OptionError: as `space_for`; or the storage cannot be opened.
        OutputError: trials cannot be kept; or each failed.
    """
    space = space_for(config, adapters, scenes)
    objectives = checked_objectives(config.objectives, list(adapters), scenes)
    hashes = {name: adapter_hash(adapter) for name, adapter in adapters.items()}
    study = opened(config, scenes, folder, {"adapters": hashes, "model": model})
    run = _Run(config, space, bench, score, scenes, folder, objectives, study)
    first = run.plain_sum()
    for trial in [first, *run.ended()]:
        told(trial)
    while (left := config.trials - len(run.ended())) > 0:
        for trial in run.batch(min(AT_A_TIME, left)):
            told(trial)
        run.check_hope()
    trials = (first, *run.ended())
    with kept(config, folder):
        importance = importance_of(study, objectives)
    return Found(trials, winners_of(trials, objectives), objectives, importance)


@dataclass(frozen=True)
class _Run:
    config: TuneConfig
    space: Space
    bench: Bench
    score: Score
    scenes: Sequence[Scene]
    folder: Path
    objectives: tuple[str, ...]
    study: optuna.Study

    def plain_sum(self) -> Trial:
        """At the usual weights."""
        candidate = sum_at(self.config, 1.0)
        found = self.score(self.bench.measure([candidate], self.scenes), self.scenes)
        return self._trial(0, candidate, found.get(candidate.label), {}, "complete")

    def ended(self) -> list[Trial]:
        """All that Optuna was told the end of; the numbers leave out what a kill ended."""
        with kept(self.config, self.folder):
            known = self.study.get_trials(deepcopy=False)
        told = [one.user_attrs[TRIED] for one in known if one.state.is_finished() and TRIED in one.user_attrs]
        return [_recalled(number, record) for number, record in enumerate(told, 1)]

    def number_of(self, trial: optuna.Trial) -> int:
        """Of a trial that is being measured; the first is 1, and those that a kill ended have none."""
        known = self.study.get_trials(deepcopy=False)[: trial.number]
        return 1 + sum(not one.state.is_finished() or TRIED in one.user_attrs for one in known)

    def check_hope(self) -> None:
        """Whether anything can be merged at all."""
        trials = self.ended()
        if len(trials) >= min(AT_A_TIME, self.config.trials) and all(trial.state == "failed" for trial in trials):
            errors = dict.fromkeys(trial.error for trial in trials)
            raise OutputError(f"every trial failed: {'; '.join(errors)}")

    def batch(self, count: int) -> list[Trial]:
        """So many trials, drawn wave by wave as long as they are not stopped."""
        asked = self._asked(count)
        seen: list[Scene] = []
        frames: list[pd.DataFrame] = []
        ended: list[Trial] = []
        waves = self._waves()
        for step, wave in enumerate(waves):
            seen += wave
            frames.append(self.bench.measure([candidate for _, candidate in asked.values()], wave))
            found = self.score(pd.concat(frames, ignore_index=True), seen)
            for label, (trial, candidate) in list(asked.items()):
                state = self._state(trial, found.get(label), step, last=step == len(waves) - 1)
                if state:
                    ended.append(self._tell(trial, candidate, found.get(label), state))
                    del asked[label]
            if not asked:
                break
        return sorted(ended, key=lambda one: one.number)

    def _asked(self, count: int) -> dict[str, tuple[optuna.Trial, Candidate]]:
        """Label -> trial and candidate."""
        asked = {}
        with kept(self.config, self.folder):
            if not self.study.get_trials(deepcopy=False):
                self.study.enqueue_trial(usual_parameters(self.space))
            for _ in range(count):
                trial = self.study.ask()
                trial.set_user_attr(OWNER, owner(self.folder))
                candidate = candidate_of(self.space, trial, f"trial {self.number_of(trial)}")
                asked[candidate.label] = (trial, candidate)
        return asked

    def _waves(self) -> list[list[Scene]]:
        stops = self.config.prune and len(self.objectives) == 1 and self.objectives[0] != BYTES
        return waves_of(self.scenes, self.config.images) if stops else [list(self.scenes)]

    def _state(self, trial: optuna.Trial, found: Scored | None, step: int, *, last: bool) -> str:
        """What a wave was to a trial: its end, or empty."""
        if found is None or last:
            return "complete"
        (value,) = values_of(self.objectives, found, None)
        if not math.isfinite(value):
            return "failed"
        with kept(self.config, self.folder):
            trial.report(value, step)
            return "stopped" if trial.should_prune() else ""

    def _tell(self, trial: optuna.Trial, candidate: Candidate, found: Scored | None, state: str) -> Trial:
        one = self._trial(self.number_of(trial), candidate, found, trial.params, state)
        states = optuna_module().trial.TrialState
        by_state = {"complete": states.COMPLETE, "stopped": states.PRUNED, "failed": states.FAIL}
        values = values_of(self.objectives, found, one.bytes) if found and one.state == "complete" else None
        with kept(self.config, self.folder):
            # First what became of it, then that it ended: all that has ended is known.
            trial.set_user_attr(TRIED, _record(one))
            self.study.tell(trial, values, by_state[one.state])
        return one

    def _trial(
        self, number: int, candidate: Candidate, found: Scored | None, parameters: Mapping[str, Any], state: str
    ) -> Trial:
        """With the size of its file, where that is asked for; failed where an objective is not known."""
        complete = found is not None and state == "complete"
        size = self.bench.bytes(candidate) if complete and BYTES in self.objectives else None
        known = found is not None and all(map(math.isfinite, values_of(self.objectives, found, size)))
        if found is None or (complete and not known):
            state = "failed"
        error = self.bench.failure(candidate)
        if state == "failed":
            error = error or "it has no score"
        return Trial(number, candidate, state, found, size, error, dict(parameters))  # type: ignore[arg-type]


def _record(trial: Trial) -> dict[str, Any]:
    """A trial as JSON; its number is Optuna's to know."""
    return {key: value for key, value in asdict(trial).items() if key != "number"}


def _recalled(number: int, record: Mapping[str, Any]) -> Trial:
    found = None if record["scored"] is None else Scored(**record["scored"])
    return Trial(number, **{**record, "candidate": Candidate(**record["candidate"]), "scored": found})
