"""The winner on prompts and seeds that the search has not seen, by an ordinary evaluation."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from mergelab.evaluation.metrics.metric import Description
from mergelab.evaluation.names import BASE as BASE_VARIANT
from mergelab.evaluation.names import STACK, VariantName
from mergelab.evaluation.result import Result
from mergelab.evaluation.run import evaluate
from mergelab.pipelines.opening import Pipeline
from mergelab.tuning.anchors import usual_weights
from mergelab.tuning.candidate import BASE, Candidate, Scene, alone
from mergelab.tuning.config import TuneConfig
from mergelab.tuning.reading import evaluation_of, prompts_of, seeds_of
from mergelab.tuning.result import SUM, TUNED_SUM, WINNER
from mergelab.tuning.scoring import Scored, scored
from mergelab.tuning.trial import Trial

FOLDER = "held-out"
"""In the run folder: an evaluation's."""


def evaluated(
    config: TuneConfig,
    folder: Path,
    pipeline: Pipeline | None,
    winner: Candidate,
    best_sum: Trial | None,
    metric: Description,
    progress: bool | None,
) -> tuple[Result, dict[str, str], dict[str, Scored]]:
    """The evaluation; which of its variants is the winner, and which are the plain sums; and what they keep.

    Args:
        config: of the search.
        folder: its run folder.
        pipeline: one that is loaded, without adapters.
        winner: as it is written.
        best_sum: the plain sum at its best strength.
        metric: which counts.
        progress: a progress bar.
    """
    usual = usual_weights(config)
    merges = [{**(config.merge if winner.merge is None else winner.merge), "weights": _all(winner, usual)}]
    variants = {WINNER: str(VariantName("merge", WINNER))}
    if best_sum is not None:
        merges.append({"method": "cat", "weights": _all(best_sum.candidate, usual)})
        variants[TUNED_SUM] = str(VariantName("merge", TUNED_SUM))
    merges = [entry | {"label": label} for entry, label in zip(merges, variants)]
    prompts, seeds = prompts_of(config)[1], seeds_of(config)[1]
    metrics = list(dict.fromkeys([metric.name, *config.held_out.metrics]))
    asked = evaluation_of(config, prompts, seeds=seeds, merges=merges, metrics=metrics)
    variants[SUM] = str(STACK)
    result = evaluate(asked, folder / FOLDER, pipeline=pipeline, progress=progress)
    scenes = [Scene(prompt.text, prompt.calls, seed) for prompt in prompts for seed in seeds]
    frame = _as_measured(result.scores, list(usual))
    found = scored(frame, frame, scenes, metric, config.balance)
    return result, variants, {name: found[variant] for name, variant in variants.items() if variant in found}


def _all(candidate: Candidate, usual: Mapping[str, float]) -> dict[str, Any]:
    """With 0 for an adapter that is absent, which an evaluation would give its usual weight."""
    return {name: candidate.weights.get(name, 0.0) for name in usual}


def _as_measured(scores: pd.DataFrame, adapters: list[str]) -> pd.DataFrame:
    """The scores of an evaluation as a bench has them; the variant is the candidate."""
    same = scores[scores["reference_seed"] == scores["seed"]]
    names = {str(BASE_VARIANT): BASE} | {str(VariantName("single", name)): alone(name) for name in adapters}
    return same.assign(candidate=[names.get(variant, variant) for variant in same["variant"]])
