"""One evaluation from configuration to report: merge, generate, score, analyse, write."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from mergelab.comparing import Comparison, compare
from mergelab.errors import OptionError, OutputError
from mergelab.evaluation.acting import Pool, open_pool
from mergelab.evaluation.concluding import concluded
from mergelab.evaluation.config import Config
from mergelab.evaluation.design import design_of
from mergelab.evaluation.drawing import draw_missing
from mergelab.evaluation.executors.registry import open_executor
from mergelab.evaluation.exhibits import exhibits
from mergelab.evaluation.failures import Failures, summed_up
from mergelab.evaluation.grid import Grid
from mergelab.evaluation.metrics.registry import check_metrics
from mergelab.evaluation.opening import check_loaded
from mergelab.evaluation.photographs import all_photographs
from mergelab.evaluation.reading import read_config
from mergelab.evaluation.report.page import render
from mergelab.evaluation.report.tables import plain_table
from mergelab.evaluation.report.verdict import sentences
from mergelab.evaluation.result import Result
from mergelab.evaluation.results import results_of
from mergelab.evaluation.scoring import score_all
from mergelab.evaluation.selection import reported
from mergelab.evaluation.sets import AdapterSet, adapter_sets
from mergelab.evaluation.store import Store, check_kind, check_not_replaced, to_json, write
from mergelab.evaluation.summary import SUMMARY, summary_of
from mergelab.evaluation.tracking.registry import open_trackers
from mergelab.evaluation.tracking.telling import tell
from mergelab.evaluation.variants import make_variants
from mergelab.formats.files import replacing
from mergelab.pipelines.adapters import check_bare
from mergelab.pipelines.opening import Pipeline, name_of, usual_device

log = logging.getLogger(__name__)

LogWith = str | Mapping[str, Any] | Sequence[str | Mapping[str, Any]]
CONFIG = "config.yaml"
"""In the run folder: the configuration as it was resolved; its addresses are whole, to be run again."""


def evaluate(
    config: str | os.PathLike[str] | Mapping[str, Any] | Config,
    out: str | os.PathLike[str],
    *,
    pipeline: Pipeline | None = None,
    overrides: Iterable[str] = (),
    progress: bool | None = None,
    log_with: LogWith | None = None,
) -> Result:
    """Generates with a model, its adapters and their merges, and scores what each merge kept of each adapter.

    Images and scores that the run folder already holds are not computed again, so an interrupted run goes on where it
    was, and an edited configuration computes what is new. A cell that fails is recorded and the rest goes on; a metric
    that failed everywhere is in `Result.silent`.

    Args:
        config: a YAML file, a mapping, or a `Config`.
        out: the run folder.
        pipeline: a loaded diffusers pipeline, used in place of the configuration's, which then needs no key
            `pipeline`, and may not name one that this is known not to be; it is handed back unchanged.
        overrides: "seeds=4", "clip.model=RN50", ...
        progress: a progress bar; None shows one on a terminal.
        log_with: trackers of experiments that are told what was found, in place of the configuration's key: "trackio",
            "wandb", "tensorboard" or "mlflow", a mapping such as {"name": "wandb", "project": "merges", "run": "first"}
            with whatever else the tracker takes, or several of them.

    Returns:
        The findings; `report.html` in the folder shows them with the images.

    Raises:
        OptionError: a key or a value of the configuration is wrong, or no metric has anything to say; the pipeline
            handed in is none that takes adapters, carries some already, or is another than the configuration names; the
            package of a tracker is not there.
        SourceError, FormatError, LayerError: the configuration, the pipeline or an adapter cannot be read.
        ArchitectureError: the adapters are for different base models, or for another than the pipeline's.
        OutputError: the folder is in use, or is neither new, empty nor an earlier run's; a file that was given would be
            replaced; or every single cell failed. Or, after everything is written, a tracker could not be told.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> small = {
        ...     "pipeline": "miniature/sdxl",
        ...     "loras": ["miniature/sdxl/ghost", "miniature/sdxl/day"],
        ...     "merges": [{"method": "svd", "rank": 16}],
        ...     "prompts": ["a sks in szn style"],
        ...     "seeds": 1,
        ...     "metrics": ["judge"],
        ...     "generation": {"steps": 1},
        ... }
        >>> with TemporaryDirectory() as folder:
        ...     result = evaluate(small, folder, progress=False)
        >>> list(result.scores["variant"].unique())
        ['base', 'single:ghost', 'single:day', 'stack', 'merge:svd rank=16']
    """
    if pipeline is not None:
        check_bare(pipeline)
    if log_with is not None:
        overrides = [*overrides, f"log_with={json.dumps(log_with, default=str)}"]
    settings = read_config(config, overrides, pipeline=None if pipeline is None else name_of(pipeline))
    if pipeline is not None:
        check_loaded(settings.dtype, settings.memory)
    check_metrics(settings)
    if settings.executor.name == "local":
        usual_device(settings.device)  # raises where it is none
    check_kind(Path(out), "search", False, "a search (`mergelab tune`)")
    with Store(Path(out)).open() as store:
        if isinstance(config, (str, os.PathLike)):
            check_not_replaced(Path(config), store.folder / CONFIG, _as_yaml(settings))
        trackers = open_trackers(settings.log_with, store.folder)
        result, summary = _run(settings, store, pipeline, progress)
        tell(trackers, result, summary)
    return result


def _as_yaml(config: Config) -> str:
    return str(yaml.safe_dump(config.model_dump(), sort_keys=False, allow_unicode=True))


def _run(config: Config, store: Store, given: Pipeline | None, progress: bool | None) -> tuple[Result, dict[str, Any]]:
    """What was found, and what summary.json holds."""
    start = time.perf_counter()
    # What cannot work is found before anything is written, and before hours of merging and drawing.
    sets = adapter_sets(config)
    if warning := design_of(config, reported(config, sets)).warning():
        log.warning("%s", warning)
    several = len(sets) > 1 or config.executor.name != "local"
    pool = open_pool(config, given, False if several else progress)
    photos = all_photographs(config.loras)
    with open_executor(config, store.folder, given, pool) as executor:
        ready = time.perf_counter()
        write(store.folder / CONFIG, _as_yaml(config))
        failures, facts = Failures(), executor.facts
        comparison = _compared(sets, pool) if len(sets) == 1 else None
        variants = make_variants(config, sets, pool, store, failures, executor, progress if several else False)
        grid = Grid(config, store, sets, variants, photos, progress, failures)
        merged = time.perf_counter()
        draw_missing(grid, executor)
        frame = score_all(grid, facts.metrics, executor)
    if not len(frame) and failures.rows:
        raise OutputError(f"{store.folder}: every cell failed: {'; '.join(summed_up(failures.rows))}")
    if not len(frame):
        raise OptionError("no metric has anything to say: give the adapters concepts, or name other metrics")

    result = concluded(grid, frame, facts.metrics)
    result = replace(result, verdict=sentences(result), table=plain_table(result))
    with replacing(store.folder / "scores.parquet") as partial:
        frame.to_parquet(partial, index=False)
    end = time.perf_counter()
    seconds = {"loading": ready - start, "merging and comparing": merged - ready} | grid.seconds
    seconds["everything else"] = end - start - sum(seconds.values())
    summary = summary_of(result, grid, facts.metrics, facts.model, seconds)
    summary |= {"exhibits": exhibits(result, grid.variants)}
    write(store.folder / SUMMARY, to_json(summary))
    write(store.folder / "results.json", to_json(results_of(result, summary)))
    write(store.folder / "report.html", render(result, grid.variants, comparison, summary))
    return result, summary


def _compared(sets: Sequence[AdapterSet], pool: Pool) -> Comparison | None:
    """The adapters before any merge."""
    adapters = [pool.weighed(lora.name, lora.strength) for lora in sets[0].adapters.values()]
    return compare(adapters, device=pool.device) if len(adapters) > 1 else None
