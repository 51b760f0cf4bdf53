"""One evaluation from configuration to report: merge, generate, score, analyse, write."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from mergelab.adapter import load
from mergelab.comparing import compare
from mergelab.engine.provenance import package_version
from mergelab.errors import OptionError, OutputError
from mergelab.evaluation import metrics as metric_table
from mergelab.evaluation import report, variants, verdict
from mergelab.evaluation.analysis import Anchor, Finding, Scores, anchors, calls, findings, triggers_of
from mergelab.evaluation.cells import Job, generate, score
from mergelab.evaluation.config import Config, read
from mergelab.evaluation.fingerprints import fingerprint
from mergelab.evaluation.generation import (
    Pipeline,
    check_adapters,
    check_given,
    device_of,
    keywords_of,
    open_pipeline,
    threads_for,
)
from mergelab.evaluation.scorers import Metric
from mergelab.evaluation.store import Store, to_json, write
from mergelab.formats.architectures import check_base_models


@dataclass(frozen=True, repr=False)
class Result:
    """What an evaluation found; everything in it is also in the run folder.

    Attributes:
        folder: the run folder.
        config: as it was resolved.
        scores: one row for each image and metric, as in `scores.parquet`.
        findings: the estimates with their intervals.
        anchors: floor, ceiling and noise of every metric.
        failures: cells that failed: variant, prompt, seed, error.
        verdict: the findings in words.
    """

    folder: Path
    config: Config
    scores: pd.DataFrame
    findings: list[Finding]
    anchors: list[Anchor]
    failures: list[dict[str, Any]]
    verdict: list[str] = field(default_factory=list)

    def to_frame(self) -> pd.DataFrame:
        """The findings as a table."""
        rows = [{**{k: v for k, v in vars(f).items() if k != "interval"}, **vars(f.interval)} for f in self.findings]
        return pd.DataFrame(rows)

    def __repr__(self) -> str:
        places = [f"merged adapters: {self.folder / 'adapters'}", f"report: {self.folder / 'report.html'}"]
        return "\n".join([*self.verdict, "", verdict.table(self), "", *places])


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
    was, and an edited configuration computes what is new. A cell that fails is recorded and the rest goes on.

    Args:
        config: a YAML file, a mapping, or a `Config`.
        out: the run folder.
        pipeline: a loaded diffusers pipeline, used in place of the configuration's; it is handed back unchanged.
        overrides: "seeds=4", "clip.model=RN50", ...
        progress: a progress bar; None shows one on a terminal.

    Returns:
        The findings; `report.html` in the folder shows them with the images.

    Raises:
        MergelabError: the configuration, an adapter or the pipeline cannot be used, the folder is in use, or
            every single cell failed.
    """
    settings = read(config, overrides)
    metric_table.check_names(settings)
    device_of(settings)
    if pipeline is not None:
        check_given(pipeline, settings)
    with Store(Path(out)).open() as store:
        return _run(settings, store, pipeline, progress)


def _run(config: Config, store: Store, pipeline: Pipeline | None, progress: bool | None) -> Result:
    start = time.perf_counter()
    # What cannot work is found before anything is written, and before hours of merging and drawing.
    loras = {lora.name: load(lora.path) for lora in config.loras}
    check_base_models(list(loras.values()), list(loras))
    opened, identity = open_pipeline(config) if pipeline is None else (pipeline, fingerprint(pipeline))
    check_adapters(opened, loras)
    keywords = keywords_of(config, opened)
    concepts = {lora.name: lora.concept for lora in config.loras}
    scorers = metric_table.build(config, concepts)
    ready = time.perf_counter()
    write(store.folder / "config.yaml", yaml.safe_dump(config.model_dump(), sort_keys=False, allow_unicode=True))
    scaled = variants.at_weights(config, loras)
    comparison = compare(list(scaled.values())) if len(scaled) > 1 else None
    failures: list[dict[str, Any]] = []
    job = Job(config, store, variants.make(config, loras, scaled, store, failures), progress, failures)
    merged = time.perf_counter()
    with threads_for(config):
        generate(job, opened, identity, keywords)
        frame = score(job, scorers)
    if not len(frame) and failures:
        raise OutputError(f"{store.folder}: every cell failed, the first with: {failures[0]['error']}")
    if not len(frame):
        raise OptionError("no metric has anything to say: give the adapters concepts, or name other metrics")

    triggers = triggers_of(concepts, {lora.name: lora.trigger for lora in config.loras})
    calling = calls(config.prompts, triggers)
    scores = Scores(frame)
    found = findings(scores, [variant.name for variant in job.variants], list(loras), calling)
    result = Result(store.folder, config, frame, found, anchors(scores, list(loras), calling), failures)
    result = replace(result, verdict=verdict.words(result, calling))
    partial = store.folder / ".scores.parquet.partial"
    frame.to_parquet(partial, index=False)
    partial.replace(store.folder / "scores.parquet")
    end = time.perf_counter()
    seconds = {"loading": ready - start, "merging and comparing": merged - ready} | job.spent
    seconds["everything else"] = end - start - sum(seconds.values())
    summary = _summary(result, job, scorers, triggers, identity, seconds)
    write(store.folder / "summary.json", to_json(summary))
    write(store.folder / "report.html", report.render(result, job.variants, comparison, summary))
    return result


def _summary(
    result: Result,
    job: Job,
    scorers: list[Metric],
    triggers: Mapping[str, list[str]],
    identity: str,
    seconds: Mapping[str, float],
) -> dict[str, Any]:
    """What summary.json holds."""
    packages = ("torch", "diffusers", "transformers", "peft", "open_clip_torch", "lpips", "numpy")
    return {
        "verdict": result.verdict,
        "findings": [{**vars(f), "interval": vars(f.interval)} for f in result.findings],
        "anchors": [vars(anchor) for anchor in result.anchors],
        "failures": result.failures,
        "notes": list(dict.fromkeys(job.notes)),
        "triggers": dict(triggers),
        "metrics": {
            scorer.name: {"higher_is_better": scorer.higher_is_better} | dict(scorer.settings) for scorer in scorers
        },
        "costs": {variant.name: variant.cost for variant in job.variants},
        "model": identity,
        "seeds": result.config.seeds,
        "seconds": dict(seconds),
        "versions": {"mergelab": package_version()} | {name: version(name) for name in packages},
    }
