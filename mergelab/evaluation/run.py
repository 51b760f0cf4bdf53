"""One evaluation from configuration to report: merge, generate, score, analyse, write."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from itertools import product
from pathlib import Path
from typing import Any

import pandas as pd
import yaml
from tqdm import tqdm

from mergelab.adapter import Adapter, load
from mergelab.comparing import Comparison, compare
from mergelab.errors import MergelabError, OutputError
from mergelab.evaluation import metrics as metric_table
from mergelab.evaluation.analysis import COLUMNS, Anchor, Finding, Scores, anchors, calls, findings, triggers_of
from mergelab.evaluation.config import Config, expanded_merges, read
from mergelab.evaluation.generation import Pipeline, adapter_hash, draw, fingerprint, open_pipeline, swap
from mergelab.evaluation.metrics import Metric, Picture
from mergelab.evaluation.store import Store, file_name, hash_of, to_json, write
from mergelab.merging import merge
from mergelab.provenance import package_version

log = logging.getLogger(__name__)


@dataclass
class Variant:
    """One column of the grid: the adapters that are active for it, and what they cost.

    Attributes:
        name: `base`, `single:<name>`, `stack` or `merge:<label>`.
        adapters: active together at strength 1; the weights are in them already.
        requests: (prompt, seed) -> key of the image.
        cost: seconds to merge, bytes of the file; seconds per image.
        layers: the report of a merge, one row for each layer.
    """

    name: str
    adapters: dict[str, Adapter]
    requests: dict[tuple[str, int], str] = field(default_factory=dict)
    cost: dict[str, float] = field(default_factory=dict)
    layers: list[dict[str, Any]] = field(default_factory=list)


@dataclass
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
    verdict: list[str]

    def to_frame(self) -> pd.DataFrame:
        """The findings as a table."""
        rows = [{**{k: v for k, v in vars(f).items() if k != "interval"}, **vars(f.interval)} for f in self.findings]
        return pd.DataFrame(rows)

    def __repr__(self) -> str:
        from mergelab.evaluation.verdict import table

        places = [f"merged adapters: {self.folder / 'adapters'}", f"report: {self.folder / 'report.html'}"]
        return "\n".join([*self.verdict, "", table(self), "", *places])


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
    with Store(Path(out)).open() as store:
        return _run(settings, store, pipeline, progress)


def _run(config: Config, store: Store, pipeline: Pipeline | None, progress: bool | None) -> Result:
    clock = {"start": time.perf_counter()}
    write(store.folder / "config.yaml", yaml.safe_dump(config.model_dump(), sort_keys=False, allow_unicode=True))
    failures: list[dict[str, Any]] = []
    loras = {lora.name: load(lora.path) for lora in config.loras}
    comparison = compare(list(loras.values())) if len(loras) > 1 else None
    variants = _variants(config, loras, store, failures)

    pipe = open_pipeline(config) if pipeline is None else pipeline
    clock["generating"] = time.perf_counter()
    notes, identity = _generate(config, variants, pipe, store, failures, progress)
    clock["scoring"] = time.perf_counter()

    concepts = {lora.name: lora.concept for lora in config.loras}
    scorers = metric_table.build(config, concepts)
    frame = _score(config, variants, scorers, store, failures, progress)
    clock["end"] = time.perf_counter()
    if not len(frame):
        raise OutputError(f"{store.folder}: every cell failed, the first with: {failures[0]['error']}")

    triggers = triggers_of(concepts, {lora.name: lora.trigger for lora in config.loras})
    calling = calls(config.prompts, triggers)
    scores = Scores(frame)
    result = Result(
        store.folder,
        config,
        frame,
        findings(scores, [variant.name for variant in variants], list(loras), calling),
        anchors(scores, list(loras), calling),
        failures,
        [],
    )
    from mergelab.evaluation import verdict

    result.verdict[:] = verdict.words(result, calling)
    _write(result, variants, comparison, triggers, notes, identity, clock)
    return result


def _variants(
    config: Config, loras: Mapping[str, Adapter], store: Store, failures: list[dict[str, Any]]
) -> list[Variant]:
    """Base, singles, stack and merges; a merge that fails is recorded and left out."""
    weights = {lora.name: lora.weight for lora in config.loras}
    scaled = {name: _at(adapter, weights[name]) for name, adapter in loras.items()}
    found = [Variant("base", {}), *(Variant(f"single:{name}", {name: a}) for name, a in scaled.items())]
    if len(loras) > 1:
        found.append(Variant("stack", scaled))
    inputs = {name: adapter_hash(adapter) for name, adapter in loras.items()}
    for label, keywords in expanded_merges(config).items():
        try:
            found.append(_merged(label, keywords, config, loras, inputs, store))
        except MergelabError as error:
            log.warning("merge %s: %s", label, error)
            failures.append({"variant": f"merge:{label}", "prompt": None, "seed": None, "error": str(error)})
    return found


def _at(adapter: Adapter, weight: float | dict[str, float]) -> Adapter:
    """The adapter at a weight, with one for each part or one for all."""
    return merge([adapter], [weight], method="cat") if isinstance(weight, dict) else weight * adapter


def _merged(
    label: str,
    keywords: Mapping[str, Any],
    config: Config,
    loras: Mapping[str, Adapter],
    inputs: Mapping[str, str],
    store: Store,
) -> Variant:
    """Merges once: the file of an earlier run is used again if it was made from the same inputs in the same way."""
    weights = [lora.weight for lora in config.loras]
    request = {"inputs": inputs, "weights": weights, "keywords": dict(keywords)}
    key = hash_of(request | {"version": package_version()})
    path = store.adapters / f"{file_name(label)}.safetensors"
    record = path.with_suffix(".json")
    known = json.loads(record.read_text()) if record.exists() and path.exists() else {}
    if known.get("key") != key:
        start = time.perf_counter()
        merged = merge(list(loras.values()), weights, **keywords)
        seconds = time.perf_counter() - start
        merged.save(path)
        frame = merged.report.to_frame()
        known = {
            "key": key,
            "seconds": seconds,
            "retained_energy": merged.report.retained_energy,
            "shares": merged.report.shares,
            "layers": json.loads(frame.to_json(orient="records")),
        }
        write(record, to_json(known))
    cost = {"seconds to merge": known["seconds"], "bytes": path.stat().st_size} | {
        "retained energy": known["retained_energy"]
    }
    return Variant(f"merge:{label}", {label: load(path)}, cost=cost, layers=known["layers"])


def _generate(
    config: Config,
    variants: list[Variant],
    pipeline: Pipeline,
    store: Store,
    failures: list[dict[str, Any]],
    progress: bool | None,
) -> tuple[list[str], str]:
    """Draws what is missing, variant by variant; returns what was not loaded, and the fingerprint of the model."""
    swap(pipeline, {})
    identity = fingerprint(pipeline)
    keywords = _keywords(config)
    for variant in variants:
        adapters = sorted(adapter_hash(adapter) for adapter in variant.adapters.values())
        for prompt in config.prompts:
            for seed in config.seeds:
                request = {"model": identity, "adapters": adapters, "prompt": prompt, "seed": seed}
                request |= {"keywords": keywords, "memory": config.memory.model_dump()}
                variant.requests[prompt, seed] = hash_of(request)
    notes: list[str] = []
    missing = sum(not store.image_path(key).exists() for v in variants for key in v.requests.values())
    with tqdm(total=missing, desc="images", disable=_hidden(progress)) as bar:
        try:
            for variant in variants:
                todo = {unit: key for unit, key in variant.requests.items() if not store.image_path(key).exists()}
                if todo:
                    bar.set_postfix_str(variant.name)
                    notes += _draw_all(variant, todo, pipeline, keywords, store, failures, bar)
        finally:
            swap(pipeline, {})
    return list(dict.fromkeys(notes)), identity


def _draw_all(
    variant: Variant,
    todo: Mapping[tuple[str, int], str],
    pipeline: Pipeline,
    keywords: Mapping[str, Any],
    store: Store,
    failures: list[dict[str, Any]],
    bar: Any,
) -> list[str]:
    try:
        notes = swap(pipeline, variant.adapters)
    except Exception as error:  # whatever diffusers or PEFT find wrong with a file concerns this variant alone
        log.warning("%s: %s", variant.name, error)
        failures.append({"variant": variant.name, "prompt": None, "seed": None, "error": _said(error)})
        bar.update(len(todo))
        return []
    start = time.perf_counter()
    for (prompt, seed), key in todo.items():
        try:
            store.save_image(key, draw(pipeline, prompt, seed, keywords))
        except Exception as error:  # out of memory, a NaN: this cell alone
            log.warning("%s, %r, seed %d: %s", variant.name, prompt, seed, error)
            failures.append({"variant": variant.name, "prompt": prompt, "seed": seed, "error": _said(error)})
        bar.update()
    variant.cost["seconds per image"] = (time.perf_counter() - start) / len(todo)
    return notes


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def _keywords(config: Config) -> dict[str, Any]:
    """Of every call of the pipeline."""
    from mergelab import miniature

    usual = miniature.settings(config.miniature) if config.miniature else {}
    return usual | config.generation.keywords()


def _hidden(progress: bool | None) -> bool | None:
    return None if progress is None else not progress


def _score(
    config: Config,
    variants: list[Variant],
    scorers: list[Metric],
    store: Store,
    failures: list[dict[str, Any]],
    progress: bool | None,
) -> pd.DataFrame:
    """Scores every image that is there with every metric, in a fixed order."""
    rows: list[dict[str, Any]] = []
    total = sum(len(variant.requests) for variant in variants) * len(scorers)
    names = "+".join(lora.name for lora in config.loras)
    with tqdm(total=total, desc="scores", disable=_hidden(progress)) as bar:
        for prompt, seed in product(config.prompts, config.seeds):
            for variant in variants:
                comparisons = _comparisons(config, variants, variant, prompt, seed, store)
                key = variant.requests[prompt, seed]
                cell = {"set": names, "variant": variant.name, "prompt_id": config.prompts.index(prompt)}
                cell |= {"prompt": prompt, "seed": seed, "image": f"{key}.png"}
                for metric in scorers:
                    bar.update()
                    if not store.image_path(key).exists():
                        continue
                    try:
                        values = _scored(metric, key, prompt, comparisons, store)
                    except Exception as error:  # a metric, perhaps the user's own, that fails on one image
                        failures.append({"variant": variant.name, "prompt": prompt, "seed": seed}
                                        | {"error": f"{metric.name}: {_said(error)}"})  # fmt: skip
                        continue
                    for reference, value in values.items():
                        name, _, other = reference.partition("@")
                        row = {"metric": metric.name, "reference": name, "value": value}
                        rows.append(cell | row | {"reference_seed": int(other) if other else seed})
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _comparisons(
    config: Config, variants: list[Variant], variant: Variant, prompt: str, seed: int, store: Store
) -> dict[str, str]:
    """Reference -> key of the image it is compared with; "single:x@1" is the same prompt with seed 1."""
    found = {}
    for other in variants:
        if other.name != variant.name and not other.name.startswith("merge:"):
            found[other.name] = other.requests[prompt, seed]
    if len(config.seeds) > 1 and not variant.name.startswith("merge:"):
        after = config.seeds[(config.seeds.index(seed) + 1) % len(config.seeds)]
        found[f"{variant.name}@{after}"] = variant.requests[prompt, after]
    return {reference: key for reference, key in found.items() if store.image_path(key).exists()}


def _scored(metric: Metric, key: str, prompt: str, comparisons: Mapping[str, str], store: Store) -> Mapping[str, float]:
    """The values of one metric for one image, from an earlier run where it has them."""
    request = {"metric": metric.name, "settings": dict(metric.settings), "image": key, "prompt": prompt}
    request_key = hash_of(request | {"references": dict(comparisons)})
    values = store.score(request_key)
    if values is None:
        references = {name: Picture(other, store.load_image(other)) for name, other in comparisons.items()}
        values = dict(metric.score(Picture(key, store.load_image(key)), prompt, references))
        store.save_score(request_key, values)
    return values


def _write(
    result: Result,
    variants: list[Variant],
    comparison: Comparison | None,
    triggers: Mapping[str, list[str]],
    notes: list[str],
    identity: str,
    clock: Mapping[str, float],
) -> None:
    """scores.parquet, summary.json, report.html."""
    from mergelab.evaluation import report

    partial = result.folder / ".scores.parquet.partial"
    result.scores.to_parquet(partial, index=False)
    partial.replace(result.folder / "scores.parquet")
    packages = ("torch", "diffusers", "transformers", "peft", "open_clip_torch", "lpips", "numpy")
    summary = {
        "verdict": result.verdict,
        "findings": [{**vars(f), "interval": vars(f.interval)} for f in result.findings],
        "anchors": [vars(anchor) for anchor in result.anchors],
        "failures": result.failures,
        "notes": notes,
        "triggers": dict(triggers),
        "costs": {variant.name: variant.cost for variant in variants},
        "model": identity,
        "seeds": result.config.seeds,
        "seconds": {
            "merging": clock["generating"] - clock["start"],
            "generating": clock["scoring"] - clock["generating"],
            "scoring": clock["end"] - clock["scoring"],
        },
        "versions": {"mergelab": package_version()} | {name: version(name) for name in packages},
    }
    write(result.folder / "summary.json", to_json(summary))
    write(result.folder / "report.html", report.render(result, variants, comparison, summary))
