"""`search: blocks`: weights for each adapter and group of blocks, by successive halving on common scenes and noise.

Every setting is drawn on a few scenes; the best ones are drawn on more, and the one that is best on all of them wins.
Settings are plain sums with pattern weights, drawn without a merge.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from math import isfinite

from mergelab.adapter import Adapter
from mergelab.errors import OutputError
from mergelab.tuning.anchors import best_of, usual_weights
from mergelab.tuning.bench import Bench
from mergelab.tuning.candidate import Scene
from mergelab.tuning.config import TuneConfig
from mergelab.tuning.groups import groups_of
from mergelab.tuning.scoring import Score
from mergelab.tuning.settings import candidate_of, parameters_of, settings_of
from mergelab.tuning.trial import Found, Trial


def block_trials(config: TuneConfig, adapters: Mapping[str, Adapter]) -> list[Trial]:
    """The settings of a search, as trials that are yet to be run.

    Raises:
        OptionError: the layers of the adapters have no groups as they are asked for.
    """
    layers = {name: list(adapter.layers) for name, adapter in adapters.items()}
    groups = groups_of((layer for own in layers.values() for layer in own), config.groups)
    drawn = settings_of(usual_weights(config), groups, config.settings, config.seed)
    return [
        Trial(number, candidate_of(f"setting {number}", values, groups, layers), "stopped", None,
              parameters=parameters_of(values))
        for number, values in enumerate(drawn)
    ]  # fmt: skip


def search_blocks(
    config: TuneConfig,
    adapters: Mapping[str, Adapter],
    bench: Bench,
    score: Score,
    rounds: tuple[Sequence[Scene], Sequence[Scene]],
    ended: Callable[[Trial], None] = lambda trial: None,
) -> Found:
    """The best weights for each adapter and group of blocks.

    Args:
        config: of the search.
        adapters: name -> adapter.
        bench: where candidates are measured.
        score: what they keep.
        rounds: the scenes of the first round, and those that the best are drawn on beside them.
        ended: told of every trial as it ends, and of the best ones again.

    Raises:
        OptionError: the layers of the adapters have no groups as they are asked for.
        OutputError: every setting failed.
    """
    first, second = (list(scenes) for scenes in rounds)
    trials = block_trials(config, adapters)

    def run(trial: Trial, scenes: list[Scene], state: str) -> Trial:
        frame = bench.measure([trial.candidate], scenes)
        found = score(frame, scenes).get(trial.candidate.label)
        fails = found is None or not isfinite(found.total)
        done = replace(
            trial,
            state="failed" if fails else state,  # type: ignore[arg-type]
            scored=None if fails else found,
            error=bench.failure(trial.candidate) if fails else "",
        )
        ended(done)
        return done

    trials = [run(trial, first, "stopped") for trial in trials]
    kept = ranked(trials)[: config.keep]
    for trial in kept:
        trials[trial.number] = run(trial, first + second, "complete")
    best = best_of([trials[trial.number] for trial in kept])
    if best is None:
        errors = dict.fromkeys(trial.error for trial in trials if trial.error)
        raise OutputError(f"every setting failed: {'; '.join(errors) or 'no score at all'}")
    return Found(tuple(trials), (best.number,), ("score",))


def ranked(trials: Sequence[Trial]) -> list[Trial]:
    """Those that have a score, the best first; of equals the first."""
    known = [trial for trial in trials if trial.scored is not None]
    return sorted(known, key=lambda trial: -trial.scored.total if trial.scored else 0.0)
