"""One pair: both searches, the plain sums, and all of them on what was held out."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from experiments.tuning.pairs import METRICS, config
from mergelab.evaluation.acting import open_pool
from mergelab.evaluation.executors.registry import open_executor
from mergelab.evaluation.progress import bar
from mergelab.evaluation.store import Store
from mergelab.miniature import MiniatureAdapter
from mergelab.tuning.anchors import best_of, measured_anchors, sum_at, tuned_sums
from mergelab.tuning.candidate import BASE, Candidate, Scene, alone
from mergelab.tuning.halving import search_blocks
from mergelab.tuning.measuring import DrawingBench
from mergelab.tuning.reading import evaluation_of, prompts_of, read_tuning, seeds_of
from mergelab.tuning.scenes import Asked, rounds
from mergelab.tuning.scoring import scored

STRENGTHS = (0.6, 0.7, 0.85, 1.0, 1.15)


def measured(
    pipeline: str, subject: MiniatureAdapter, style: MiniatureAdapter, score: str, budget: str, folder: Path
) -> dict[str, Any]:
    """What became of one pair: "sum" (at 1, 1), "best sum", "blocks" -> metric -> its parts on what was held out.

    The best sum is the plain sum at the strength that was best on the scenes of the search; "blocks" is the winner.
    """
    start = time.perf_counter()
    own = read_tuning(config(pipeline, subject, style, score, budget))
    evaluation = evaluation_of(own, prompts_of(own)[0], seeds=list(own.seeds), metrics=list(METRICS))
    pool = open_pool(evaluation, None, False)
    with (
        Store(folder).open() as store,
        open_executor(evaluation, folder, None, pool) as executor,
        DrawingBench(evaluation, store, pool, executor, {}, own.merge, bar(1, "", False)) as bench,
    ):
        roles, searched = _searched(own, pool.loras, replace(bench, metrics=[score]))
        kept = held_out(prompts_of(own)[1], seeds_of(own)[1])
        values = _held_out(roles, kept, list(pool.loras), bench, own.balance)
    return {
        "pipeline": pipeline, "subject": subject.name, "style": style.name, "score": score,
        "seconds": time.perf_counter() - start, **searched,
        "weights": {role: one.weights for role, one in roles.items()}, "held out": values,
    }  # fmt: skip


def _searched(
    config: Any, adapters: Mapping[str, Any], bench: DrawingBench
) -> tuple[dict[str, Candidate], dict[str, Any]]:
    """The candidates that a search chose, and what it saw of them."""
    start = time.perf_counter()
    first, second = rounds(prompts_of(config)[0], seeds_of(config)[0], config.images, config.more, config.balance)
    anchors, metric = measured_anchors(config, bench, first + second)
    score = partial(scored, anchors=anchors, metric=metric, balance=config.balance)
    found = search_blocks(config, adapters, bench, lambda frame, own: score(frame, scenes=own), (first, second))
    seconds = time.perf_counter() - start
    sums = tuned_sums(config, bench, lambda frame, own: score(frame, scenes=own), first + second, strengths=STRENGTHS)
    best, winner = best_of(sums), found.winner.candidate
    assert best is not None
    chosen = {"sum": sum_at(config, 1.0), "best sum": best.candidate, "blocks": winner}
    return chosen, {
        "seconds of the search": seconds, "strength": best.parameters["strength"], "setting": found.winner.number,
        "searched": {"best sum": asdict(best.scored), "blocks": asdict(found.winner.scored)},  # type: ignore[call-overload]
    }  # fmt: skip


def held_out(prompts: Sequence[Asked], seeds: Sequence[int]) -> list[Scene]:
    """Scenes that call both with every seed, the others with one."""
    scenes = [Scene(prompt.text, prompt.calls, seed) for prompt in prompts for seed in seeds]
    return [scene for scene in scenes if scene.part == "joint" or scene.seed == seeds[0]]


def _held_out(
    roles: Mapping[str, Candidate], scenes: list[Scene], adapters: list[str], bench: DrawingBench, balance: Any
) -> dict[str, dict[str, dict[str, float]]]:
    anchors = bench.measure([Candidate(BASE, {}), *(Candidate(alone(name), {name: 1.0}) for name in adapters)], scenes)
    frames = [bench.measure([Candidate(role, one.weights, one.merge)], scenes) for role, one in roles.items()]
    frame = pd.concat(frames)
    by_metric = {name: scored(frame, anchors, scenes, bench.description(name), balance) for name in METRICS}
    parts = ("joint", "own", "plain", "total")
    return {role: {name: {part: getattr(found[role], part) for part in parts} for name, found in by_metric.items()}
            for role in roles}  # fmt: skip
