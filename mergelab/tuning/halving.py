"""`search: blocks`: weights for each adapter and group of blocks, by successive halving on common scenes and noise.

Every setting is drawn on a few scenes, the later ones around the best of those before; the best of all are drawn on
more scenes, and the one that is best on all of them wins. The best setting that is the plain sum at one strength is
always among these, so that what wins has won against it too. Settings are plain sums with pattern weights, drawn
without a merge.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from math import isfinite

from mergelab.adapter import Adapter
from mergelab.errors import OutputError
from mergelab.tuning.anchors import best_of, kept_weights, usual_weights
from mergelab.tuning.bench import Bench
from mergelab.tuning.candidate import Scene
from mergelab.tuning.config import TuneConfig
from mergelab.tuning.groups import Groups, groups_of
from mergelab.tuning.scoring import Score
from mergelab.tuning.settings import TOGETHER, Values, candidate_of, first_settings, parameters_of, settings_around
from mergelab.tuning.trial import Found, Trial

PLAIN = len(TOGETHER)
"""So many settings are first, which are the plain sum at one strength."""
GENERATION, PARENTS = 8, 3
"""Settings that are drawn around the best so far before these are looked at again; and how many are the best."""


def groups_for(config: TuneConfig, adapters: Mapping[str, Adapter]) -> Groups:
    """The groups of a search.

    Raises:
        OptionError: the layers of the adapters have no groups as they are asked for.
    """
    return groups_of((layer for adapter in adapters.values() for layer in adapter.layers), config.groups)


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
    kept_as_is = kept_weights(config)
    usual = {name: weight for name, weight in usual_weights(config).items() if name not in kept_as_is}
    groups, layers = groups_for(config, adapters), {name: list(adapter.layers) for name, adapter in adapters.items()}

    def run(several: Sequence[Trial], scenes: list[Scene], state: str) -> list[Trial]:
        known = score(bench.measure([trial.candidate for trial in several], scenes), scenes)
        done = list[Trial]()
        for trial in several:
            found = known.get(trial.candidate.label)
            fails = found is None or not isfinite(found.total)
            done.append(
                replace(
                    trial,
                    state="failed" if fails else state,  # type: ignore[arg-type]
                    scored=None if fails else found,
                    error=bench.failure(trial.candidate) if fails else "",
                )
            )
            ended(done[-1])
        return done

    trials, drawn = list[Trial](), list[Values]()
    while len(drawn) < config.settings:
        best, seed = [drawn[trial.number] for trial in ranked(trials)[:PARENTS]], f"{config.seed} {len(drawn)}"
        if drawn and not best:
            break  # everything failed
        born = settings_around(best, GENERATION, seed) if best else first_settings(usual, groups)
        new = list[Trial]()
        for number, values in enumerate(born[: config.settings - len(drawn)], len(drawn)):
            candidate = candidate_of(f"setting {number}", values, groups, layers, kept_as_is)
            new.append(Trial(number, candidate, "stopped", None, parameters=parameters_of(values)))
        drawn += born[: len(new)]
        trials += run(new, first, "stopped")
    kept = list(dict.fromkeys(trial.number for trial in [*ranked(trials)[: config.keep], *ranked(trials[:PLAIN])[:1]]))
    for trial in run([trials[number] for number in kept], first + second, "complete"):
        trials[trial.number] = trial
    winner = best_of([trials[number] for number in kept])
    if winner is None:
        errors = dict.fromkeys(trial.error for trial in trials if trial.error)
        raise OutputError(f"every setting failed: {'; '.join(errors) or 'no score at all'}")
    return Found(tuple(trials), (winner.number,), ("score",))


def ranked(trials: Sequence[Trial]) -> list[Trial]:
    """Those that have a score, the best first; of equals the first."""
    known = [trial for trial in trials if trial.scored is not None]
    return sorted(known, key=lambda trial: -trial.scored.total if trial.scored else 0.0)
