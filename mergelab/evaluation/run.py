"""One evaluation from configuration to report: merge, generate, score, analyse, write."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import yaml

from mergelab import miniature
from mergelab.adapter import Adapter, load
from mergelab.comparing import compare
from mergelab.errors import OptionError, OutputError
from mergelab.evaluation.analysis import findings, metric_ranges
from mergelab.evaluation.config import Config, Memory
from mergelab.evaluation.drawing import generate_missing
from mergelab.evaluation.exhibits import exhibits
from mergelab.evaluation.failures import Failures, summed_up
from mergelab.evaluation.grid import Grid, score_all
from mergelab.evaluation.metrics.metric import Metric
from mergelab.evaluation.metrics.registry import check_metrics, open_metrics, table_order
from mergelab.evaluation.photographs import photographs
from mergelab.evaluation.reading import read_config
from mergelab.evaluation.report.page import render
from mergelab.evaluation.report.tables import plain_table
from mergelab.evaluation.report.verdict import sentences
from mergelab.evaluation.result import Result
from mergelab.evaluation.scores import Scores
from mergelab.evaluation.store import Store, to_json, write
from mergelab.evaluation.summary import summary_of
from mergelab.evaluation.triggers import calls, triggers_of
from mergelab.evaluation.variants import at_weights, make_variants
from mergelab.formats.base_models import check_base_models
from mergelab.formats.files import replacing
from mergelab.pipelines.adapters import check_adapters, check_bare
from mergelab.pipelines.fingerprints import fingerprint
from mergelab.pipelines.opening import Pipeline, ignores_guidance, name_of, open_pipeline, usual_device
from mergelab.pipelines.schedulers import scheduled
from mergelab.pipelines.staging import Stage, at_home

CONFIG = "config.yaml"
"""In the run folder: the configuration as it was resolved; its addresses are whole, to be run again."""


def evaluate(
    config: str | os.PathLike[str] | Mapping[str, Any] | Config,
    out: str | os.PathLike[str],
    *,
    pipeline: Pipeline | None = None,
    overrides: Iterable[str] = (),
    progress: bool | None = None,
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

    Returns:
        The findings; `report.html` in the folder shows them with the images.

    Raises:
        OptionError: a key or a value of the configuration is wrong, or no metric has anything to say; the pipeline
            handed in is none that takes adapters, carries some already, or is another than the configuration names.
        SourceError, FormatError, LayerError: the configuration, the pipeline or an adapter cannot be read.
        ArchitectureError: the adapters are for different base models, or for another than the pipeline's.
        OutputError: the folder is in use, or is neither new, empty nor an earlier run's; a file that was given would be
            replaced; or every single cell failed.

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
    settings = read_config(config, overrides, pipeline=None if pipeline is None else name_of(pipeline))
    if pipeline is not None and (settings.dtype is not None or settings.memory != Memory()):
        raise OptionError("dtype and memory say how a pipeline is loaded; the one handed in is used as it is")
    check_metrics(settings)
    usual_device(settings.device)  # raises where it is none
    with Store(Path(out)).open() as store, scheduled(pipeline, settings.scheduler if pipeline is not None else None):
        if isinstance(config, (str, os.PathLike)):
            _check_not_replaced(Path(config), store.folder / CONFIG, settings)
        return _run(settings, store, pipeline, progress)


def _as_yaml(config: Config) -> str:
    return str(yaml.safe_dump(config.model_dump(), sort_keys=False, allow_unicode=True))


def _check_not_replaced(given: Path, target: Path, config: Config) -> None:
    """Raises where the run would write another configuration over the one that it was given."""
    if target.exists() and target.samefile(given) and given.read_text(encoding="utf-8") != _as_yaml(config):
        raise OutputError(
            f"{given}: is the configuration of this run, and would be replaced by its resolved form; an output never "
            "replaces an input: choose another folder for the run, or copy the file out of this one"
        )


def _run(config: Config, store: Store, given: Pipeline | None, progress: bool | None) -> Result:
    start = time.perf_counter()
    # What cannot work is found before anything is written, and before hours of merging and drawing.
    loras = {lora.name: load(lora.path) for lora in config.loras}
    check_base_models(list(loras.values()), list(loras))
    pipeline, model = (given, _identity(given)) if given is not None else _opened(config)
    check_adapters(pipeline, loras)
    asked = config.generation.adapters
    layers = dict.fromkeys(layer for adapter in loras.values() for layer in adapter.layers)
    stage = Stage(pipeline, layers, fused=None if asked is None else asked == "fused")
    keywords = _keywords(config, pipeline)
    metrics = open_metrics(config)
    photos = {lora.name: photographs(Path(lora.references), lora.name) for lora in config.loras if lora.references}
    ready = time.perf_counter()
    write(store.folder / CONFIG, _as_yaml(config))
    scaled = at_weights(config, loras)
    comparison = compare(list(scaled.values()), device=config.device) if len(scaled) > 1 else None
    failures = Failures()
    grid = Grid(config, store, make_variants(config, loras, scaled, store, failures), progress, failures, photos)
    merged = time.perf_counter()
    with _threads_for(config):
        generate_missing(grid, stage, model, keywords)
        frame = score_all(grid, metrics)
    if not len(frame) and failures.rows:
        raise OutputError(f"{store.folder}: every cell failed: {'; '.join(summed_up(failures.rows))}")
    if not len(frame):
        raise OptionError("no metric has anything to say: give the adapters concepts, or name other metrics")

    concepts = {lora.name: " ".join(lora.concepts) for lora in config.loras}
    triggers = triggers_of(concepts, {lora.name: lora.trigger for lora in config.loras})
    result = _analysed(grid, frame, metrics, loras, calls(config.prompts, triggers))
    with replacing(store.folder / "scores.parquet") as partial:
        frame.to_parquet(partial, index=False)
    end = time.perf_counter()
    seconds = {"loading": ready - start, "merging and comparing": merged - ready} | grid.seconds
    seconds["everything else"] = end - start - sum(seconds.values())
    summary = summary_of(result, grid, metrics, triggers, model, seconds)
    summary |= {"exhibits": exhibits(result, grid.variants)}
    write(store.folder / "summary.json", to_json(summary))
    write(store.folder / "report.html", render(result, grid.variants, comparison, summary))
    return result


def _identity(pipeline: Pipeline) -> str:
    """The fingerprint of a pipeline, whose weights may be offloaded."""
    with at_home(pipeline):
        return fingerprint(pipeline)


def _opened(config: Config) -> tuple[Pipeline, str]:
    """The pipeline that the configuration names, and its fingerprint."""
    memory, device = config.memory, usual_device(config.device)
    return open_pipeline(
        config.pipeline, dtype=config.dtype, device=device, offload=memory.offload, vae_tiling=memory.vae_tiling,
        compile=memory.compile, scheduler=config.scheduler,
    )  # fmt: skip


def _keywords(config: Config, pipeline: Pipeline) -> dict[str, Any]:
    """Keywords of every call of the pipeline: the configuration's, on top of the miniature's own.

    Raises:
        OptionError: a guidance scale that the model has no input for.
    """
    if config.generation.guidance is not None and ignores_guidance(pipeline):
        raise OptionError(
            "generation.guidance does nothing on a model without a guidance embedding; for true guidance set "
            "generation.options.true_cfg_scale, and generation.negative_prompt"
        )
    return (miniature.settings(config.miniature) if config.miniature else {}) | config.generation.keywords()


@contextmanager
def _threads_for(config: Config) -> Iterator[None]:
    """One thread for the miniature models: too small to share, and two wait for each other on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1 if config.miniature else before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _analysed(
    grid: Grid,
    frame: pd.DataFrame,
    metrics: Iterable[Metric],
    loras: Mapping[str, Adapter],
    calling: Mapping[str, set[str]],
) -> Result:
    """The findings, and what they say in words."""
    scores, adapters = Scores(frame), list(loras)
    described = table_order(metric.described(frame[frame["metric"] == metric.description.name]) for metric in metrics)
    result = Result(
        grid.store.folder,
        grid.config,
        described,
        frame,
        findings(scores, described, [variant.name for variant in grid.variants], adapters, calling),
        metric_ranges(scores, described, adapters, calling),
        grid.failures.rows,
    )
    return replace(result, verdict=sentences(result, calling), table=plain_table(result))
