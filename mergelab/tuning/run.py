"""One search from configuration to report: draw, score, choose, merge, evaluate on what was held out."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from mergelab.evaluation.acting import Pool, open_pool
from mergelab.evaluation.executors.registry import open_executor
from mergelab.evaluation.opening import check_loaded
from mergelab.evaluation.photographs import all_photographs
from mergelab.evaluation.progress import bar
from mergelab.evaluation.store import Store, check_kind, check_not_replaced, write
from mergelab.pipelines.adapters import check_bare
from mergelab.pipelines.opening import Pipeline, name_of, usual_device
from mergelab.tuning.anchors import STRENGTHS, best_of, measured_anchors, tuned_sums, usual_weights
from mergelab.tuning.candidate import Scene
from mergelab.tuning.config import TuneConfig
from mergelab.tuning.halving import groups_for, search_blocks
from mergelab.tuning.holding_out import evaluated
from mergelab.tuning.ledger import Ledger
from mergelab.tuning.measuring import DrawingBench
from mergelab.tuning.optuna_search import search_optuna, space_for
from mergelab.tuning.reading import evaluation_of, prompts_of, read_tuning, seeds_of
from mergelab.tuning.report.gallery import searched
from mergelab.tuning.report.page import render
from mergelab.tuning.result import Tuned
from mergelab.tuning.scenes import rounds
from mergelab.tuning.scoring import Scored, scored

CONFIG, ADAPTER, REPORT = "config.yaml", "tuned.safetensors", "report.html"
"""In the run folder: the configuration as it was resolved; the winner; the page."""


def tune(
    config: str | os.PathLike[str] | Mapping[str, Any] | TuneConfig,
    out: str | os.PathLike[str],
    *,
    pipeline: Pipeline | None = None,
    overrides: Iterable[str] = (),
    progress: bool | None = None,
) -> Tuned:
    """Searches how to merge adapters, by what their merges draw, and writes the best with an honest account of it.

    Every candidate is drawn on the same scenes from the same noise. The winner is evaluated on prompts and seeds that
    the search has not seen, against the plain sum, also at its own best strength. What was drawn is kept in the run
    folder: a killed search goes on where it was, and an edited one draws what is new.

    Args:
        config: a YAML file, a mapping, or a `TuneConfig`.
        out: the run folder.
        pipeline: a loaded diffusers pipeline, used in place of the configuration's; it is handed back unchanged.
        overrides: "settings=12", "balance.own=1", ...
        progress: a progress bar; None shows one on a terminal.

    Returns:
        What was found; `tuned.safetensors` in the folder is the winner, its recipe in the header.

    Raises:
        OptionError: a key or a value of the configuration is wrong, the score sees none of the adapters, or their
            layers are in no known blocks.
        SourceError, FormatError, LayerError: the configuration, the pipeline or an adapter cannot be read.
        ArchitectureError: the adapters are for different base models, or for another than the pipeline's.
        OutputError: the folder is in use, or is neither new, empty nor an earlier run's; every setting failed.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> small = {
        ...     "pipeline": "miniature/sdxl",
        ...     "loras": ["miniature/sdxl/ghost", "miniature/sdxl/day"],
        ...     "prompts": ["a sks in szn style", "a sks", "a red star in szn style", "a red star"],
        ...     "seeds": 1,
        ...     "settings": 2, "images": 1, "keep": 1, "more": 0,
        ...     "generation": {"steps": 1},
        ... }
        >>> with TemporaryDirectory() as folder:
        ...     tuned = tune(small, folder, progress=False)
        >>> tuned.path.name, list(tuned.winner.weights)
        ('tuned.safetensors', ['ghost', 'day'])
    """
    if pipeline is not None:
        check_bare(pipeline)
    settings = read_tuning(config, overrides, pipeline=None if pipeline is None else name_of(pipeline))
    if pipeline is not None:
        check_loaded(settings.dtype, settings.memory)
    if settings.executor.name == "local":
        usual_device(settings.device)  # raises where it is none
    pool = open_pool(evaluation_of(settings), pipeline, False)
    if settings.search == "blocks":
        groups_for(settings, pool.loras)  # raises where their layers have no groups
    else:
        space_for(settings, pool.loras, _scenes(settings)[0])  # raises where it asks for what is not there
    check_kind(Path(out), "search", True, "an evaluation")
    with Store(Path(out)).open() as store:
        text = str(yaml.safe_dump(settings.model_dump(), sort_keys=False, allow_unicode=True))
        if isinstance(config, (str, os.PathLike)):
            check_not_replaced(Path(config), store.folder / CONFIG, text)
        return _run(settings, text, pool, store, pipeline, progress)


def _run(
    config: TuneConfig, text: str, pool: Pool, store: Store, given: Pipeline | None, progress: bool | None
) -> Tuned:
    prompts, seeds, ledger = prompts_of(config)[0], seeds_of(config)[0], Ledger(store.folder)
    first, second = _scenes(config)
    scenes = first + second
    evaluation = evaluation_of(config, prompts, seeds=seeds, metrics=[config.score])
    photos = all_photographs(config.loras)
    blocks = config.search == "blocks"
    drawn = config.settings * len(first) + config.keep * len(scenes) if blocks else config.trials * len(scenes)
    images = drawn + len(STRENGTHS) * len(scenes)
    with open_executor(evaluation, store.folder, given, pool) as executor, bar(images, "searching", progress) as told:
        write(store.folder / CONFIG, text)
        with DrawingBench(evaluation, store, pool, executor, photos, config.merge, told) as bench:
            anchors, metric = measured_anchors(config, bench, scenes)

            def judged(frame: pd.DataFrame, own: Sequence[Scene]) -> Mapping[str, Scored]:
                return scored(frame, anchors, own, metric, config.balance)

            if blocks:
                found = search_blocks(config, pool.loras, bench, judged, (first, second), ledger.trial)
            else:
                model = executor.facts.model
                found = search_optuna(config, pool.loras, bench, judged, scenes, ledger.trial, store.folder, model)
            sums = tuned_sums(config, bench, judged, scenes, ledger.sum)
            ledger.found(found)
            path = bench.merged(found.winner.candidate).save(store.folder / ADAPTER)
            shown = searched(bench, usual_weights(config), found.winner.candidate, best_of(sums), scenes)
    held_out, variants, on_held_out = evaluated(
        config, store.folder, given, found.winner.candidate, best_of(sums), metric, progress
    )
    report = store.folder / REPORT
    tuned = Tuned(store.folder, config, found, tuple(sums), held_out, variants, on_held_out, path, report)
    write(report, render(tuned, shown))
    return tuned


def _scenes(config: TuneConfig) -> tuple[list[Scene], list[Scene]]:
    """Of the first round, and of the second; Optuna draws both in waves."""
    prompts, seeds = prompts_of(config)[0], seeds_of(config)[0]
    return rounds(prompts, seeds, config.images, config.more, config.balance)
