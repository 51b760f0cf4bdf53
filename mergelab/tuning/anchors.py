"""What every candidate is held against: the base model, each adapter alone, the plain sum at its best strength."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

import pandas as pd

from mergelab.errors import OptionError, OutputError
from mergelab.evaluation.metrics.metric import Description
from mergelab.tuning.bench import COLUMNS, Bench
from mergelab.tuning.candidate import BASE, Candidate, Scene, alone
from mergelab.tuning.config import TuneConfig
from mergelab.tuning.scoring import Score, anchors_needed, scale_of
from mergelab.tuning.trial import Trial

log = logging.getLogger(__name__)

STRENGTHS = (0.7, 0.8, 0.9, 1.0, 1.1, 1.2)
"""By which the weights of the plain sum are multiplied, to find its best strength."""


def usual_weights(config: TuneConfig) -> dict[str, float]:
    """Adapter -> its weight under `loras`, from which a search starts."""
    return {lora.name: lora.strength for lora in config.loras if not isinstance(lora.strength, dict)}


def kept_weights(config: TuneConfig) -> dict[str, float]:
    """Those of them that no search changes: of adapters that always act and show nothing, as one for few steps."""
    unchanged = {lora.name for lora in config.loras if lora.always and not lora.concepts}
    return {name: weight for name, weight in usual_weights(config).items() if name in unchanged}


def measured_anchors(config: TuneConfig, bench: Bench, scenes: Sequence[Scene]) -> tuple[pd.DataFrame, Description]:
    """The scores of the base model and of each adapter alone, as far as the score needs them; and the metric.

    Raises:
        OptionError: the metric sees no adapter.
        OutputError: nothing could be drawn or scored.
    """
    usual, metric = usual_weights(config), bench.description(str(config.score))
    candidates = {BASE: Candidate(BASE, {})} | {alone(n): Candidate(alone(n), {n: w}) for n, w in usual.items()}
    frames = [bench.measure([candidates[label]], own) for label, own in anchors_needed(usual, scenes, metric).items()]
    anchors = pd.concat(frames) if frames else pd.DataFrame(columns=list(COLUMNS))
    if frames and not len(anchors):
        raise OutputError(f"the base model cannot be scored: {bench.failure(candidates[BASE]) or 'no score at all'}")
    metric = bench.description(metric.name)
    scale = scale_of(anchors, metric)
    if metric.compares_with != "nothing" and not metric.is_share and not scale.ends:
        what = f"tells {', '.join(scale.blind)} from the base model" if scale.blind else "sees a concept"
        raise OptionError(f"score: {metric.name} never {what} on these prompts; choose another metric, or more prompts")
    if scale.blind:
        log.warning("%s does not tell %s from the base model, and leaves it out", metric.name, ", ".join(scale.blind))
    return anchors, metric


def tuned_sums(
    config: TuneConfig,
    bench: Bench,
    score: Score,
    scenes: Sequence[Scene],
    ended: Callable[[Trial], None] = lambda trial: None,
    strengths: Sequence[float] = STRENGTHS,
) -> list[Trial]:
    """The plain sum at several strengths, on all scenes of a search; `ended` is told of each."""
    trials = []
    for number, strength in enumerate(strengths):
        candidate = sum_at(config, strength)
        frame = bench.measure([candidate], scenes)
        found = score(frame, scenes).get(candidate.label)
        error = "" if found else bench.failure(candidate)
        state = "complete" if found else "failed"
        trials.append(Trial(number, candidate, state, found, error=error, parameters={"strength": strength}))  # type: ignore[arg-type]
        ended(trials[-1])
    return trials


def sum_at(config: TuneConfig, strength: float) -> Candidate:
    """The plain sum with all weights that are searched multiplied by one strength."""
    label = "sum" if strength == 1 else f"sum {strength:g}"
    weights = {name: round(weight * strength, 6) for name, weight in usual_weights(config).items()}
    return Candidate(label, weights | kept_weights(config))


def best_of(trials: Sequence[Trial]) -> Trial | None:
    """The trial with the highest score, of equals the first; None where all failed."""
    known = [trial for trial in trials if trial.scored is not None and trial.scored.total == trial.scored.total]
    return max(known, key=lambda trial: trial.scored.total if trial.scored else 0.0, default=None)
