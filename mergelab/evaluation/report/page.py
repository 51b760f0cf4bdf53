"""report.html: one self-contained file with the verdict, the numbers and the pictures."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Callable, Mapping, Sequence
from itertools import combinations, product
from typing import TYPE_CHECKING, Any

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image

from mergelab.comparing import Comparison
from mergelab.evaluation import plots
from mergelab.evaluation.analysis import Finding
from mergelab.evaluation.store import Store
from mergelab.evaluation.verdict import (
    calm_of,
    decimal,
    found,
    front,
    main_metric,
    own_metrics,
    pair_metrics,
    percent,
    recoveries,
    variants_of,
)

if TYPE_CHECKING:
    from mergelab.evaluation.run import Result
    from mergelab.evaluation.variants import Variant

_WAYS = {"lpips": "distance from", "clip_image": "likeness to", "dino": "likeness to"}
THUMBNAIL = 256
"""Longer side, in pixels, of the images inside the report; the run folder has them whole."""


def render(
    result: Result, variants: Sequence[Variant], comparison: Comparison | None, summary: Mapping[str, Any]
) -> str:
    """The page."""
    environment = Environment(
        loader=PackageLoader("mergelab.evaluation", "."), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.filters["decimal"] = decimal
    metric = main_metric(result)
    return environment.get_template("report.html.j2").render(
        pipeline=result.config.pipeline,
        verdict=result.verdict,
        comparison=comparison.verdict().splitlines() if comparison else [],
        metric=metric or "",
        distances="lpips" in pair_metrics(result),
        columns=_columns(result, metric),
        rows=[_row(result, variant, metric) for variant in variants if variant.name != "base"],
        prompts=[_grid(result, variants, prompt) for prompt in result.config.prompts],
        variants=[short(variant.name) for variant in variants],
        seeds=result.config.seeds,
        pixelated=_is_small(result, variants),
        scatters=_scatters(result, metric),
        layers=_layers(variants, comparison),
        anchors=summary["anchors"],
        findings=[_finding(row) for row in result.findings],
        failures=result.failures,
        notes=summary["notes"],
        config=yaml.safe_dump(result.config.model_dump(exclude_defaults=True), sort_keys=False, allow_unicode=True),
        versions=summary["versions"],
        seconds=summary["seconds"],
    )


def short(variant: str) -> str:
    """As a person calls it: "single:ghost" is "ghost alone"."""
    if variant.startswith("single:"):
        return f"{variant.removeprefix('single:')} alone"
    return variant.removeprefix("merge:")


def _columns(result: Result, metric: str | None) -> list[dict[str, str]]:
    """Head and explanation of each column."""
    names = [lora.name for lora in result.config.loras]
    columns = [
        {"head": f"recovery of {name}", "help": f"{metric}: 0 % as the base model, 100 % as {name} alone"}
        for name in names
        if metric
    ]
    columns += [
        {"head": f"{pair} to {name}", "help": f"{_WAYS[pair]} the image of {name} alone, same prompt and seed"}
        for pair, name in product(pair_metrics(result), names)
    ]
    columns.append({"head": "without a trigger", "help": "change of the prompt's score where no adapter is called"})
    columns += [
        {"head": name, "help": "a metric of your own: its mean over all prompts"} for name in own_metrics(result)
    ]
    columns += [
        {"head": "energy", "help": "share of the merge's energy (its squared singular values) that its rank holds"},
        {"head": "MB", "help": "size of the file"},
        {"head": "seconds to merge", "help": "what the merge took"},
        {"head": "seconds an image", "help": "what an image takes; adapters are loaded beside the model, not fused"},
    ]
    return columns


def _row(result: Result, variant: Variant, metric: str | None) -> dict[str, Any]:
    """Cells of one variant: what is shown and what is sorted by."""
    cells = []
    kept = recoveries(result, variant.name, metric) if metric else {}
    for lora in result.config.loras:
        if metric:
            cells.append(_cell(kept[lora.name].interval, percent) if lora.name in kept else _nothing())
    for pair, lora in product(pair_metrics(result), result.config.loras):
        row = found(result, "similarity", variant.name, pair, f"single:{lora.name}")
        cells.append(_cell(row.interval) if row else _nothing())
    calm = calm_of(result, variant.name)
    cells.append(_cell(calm.interval) if calm else _nothing())
    for name in own_metrics(result):
        score = found(result, "score", variant.name, name, "")
        cells.append(_cell(score.interval) if score else _nothing())
    cost = variant.cost
    cells.append(_number(cost.get("retained energy"), "{:.1%}"))
    cells.append(_number(cost["bytes"] / 1e6 if "bytes" in cost else None, "{:.2f}"))
    cells.append(_number(cost.get("seconds to merge"), "{:.2f}"))
    cells.append(_number(cost.get("seconds per image"), "{:.2f}"))
    return {"name": short(variant.name), "kind": variant.name.partition(":")[0], "cells": cells}


def _cell(interval: Any, form: Callable[[float], str] = decimal) -> dict[str, Any]:
    if not math.isfinite(interval.estimate):
        return _nothing()
    bounds = f"{form(interval.low)} to {form(interval.high)}" if math.isfinite(interval.low) else ""
    return {"text": form(interval.estimate), "bounds": bounds, "value": interval.estimate}


def _finding(row: Finding) -> dict[str, Any]:
    """One line of the table of all findings."""
    p = "" if row.p is None else f"{row.p:.3f}"
    reference = short(row.reference) if row.reference else "its prompt"
    return {"quantity": row.quantity, "variant": short(row.variant), "metric": row.metric, "reference": reference,
            "cell": _cell(row.interval), "p": p}  # fmt: skip


def _number(value: float | None, form: str) -> dict[str, Any]:
    return _nothing() if value is None else {"text": form.format(value), "bounds": "", "value": value}


def _nothing() -> dict[str, Any]:
    return {"text": "–", "bounds": "", "value": ""}


def _grid(result: Result, variants: Sequence[Variant], prompt: str) -> dict[str, Any]:
    """The images of a prompt: a row for each seed, a column for each variant."""
    rows = [[_image(result, variant, prompt, seed) for variant in variants] for seed in result.config.seeds]
    return {"prompt": prompt, "rows": rows}


def _image(result: Result, variant: Variant, prompt: str, seed: int) -> dict[str, str]:
    key = variant.requests[prompt, seed]
    path = Store(result.folder).image_path(key)
    label = f"{short(variant.name)}: {prompt}, seed {seed}"
    if not path.exists():
        return {"source": "", "full": "", "label": f"{label}: failed"}
    data, kind = path.read_bytes(), "png"
    with Image.open(path) as image:
        if max(image.size) > THUMBNAIL:
            small = image.convert("RGB")
            small.thumbnail((THUMBNAIL, THUMBNAIL))
            buffer = io.BytesIO()
            small.save(buffer, format="JPEG", quality=88)
            data, kind = buffer.getvalue(), "jpeg"
    source = f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
    return {"source": source, "full": f"images/{key}.png", "label": label}


def _is_small(result: Result, variants: Sequence[Variant]) -> bool:
    """Whether the images are so small that their pixels should be seen as they are."""
    for key in (key for variant in variants for key in variant.requests.values()):
        path = Store(result.folder).image_path(key)
        if path.exists():
            with Image.open(path) as image:
                return max(image.size) <= 96
    return False


def _scatters(result: Result, metric: str | None) -> list[str]:
    """Recovery of one adapter against that of another, for each pair."""
    if metric is None:
        return []
    kept = {name: recoveries(result, name, metric) for name in variants_of(result)}
    figures = []
    for first, second in combinations([lora.name for lora in result.config.loras], 2):
        points = {short(name): {first: rows[first].interval.estimate, second: rows[second].interval.estimate}
                  for name, rows in kept.items() if first in rows and second in rows}  # fmt: skip
        if points:
            labels = (f"recovery of {first}", f"recovery of {second}")
            flat = {name: (point[first], point[second]) for name, point in points.items()}
            shown = {name: {key: round(share, 2) for key, share in point.items()} for name, point in points.items()}
            figures.append(plots.scatter(flat, front(shown), labels))
    return figures


def _layers(variants: Sequence[Variant], comparison: Comparison | None) -> list[dict[str, str]]:
    """Retained energy of every merge, and the interference of the adapters, along the layers."""
    figures = []
    kept = {short(v.name): [row["retained_energy"] for row in v.layers] for v in variants if v.layers}
    if kept:
        drawing = plots.lines(kept, ("layer", "retained energy"), 0.0, 1.0)
        figures.append({"title": "Energy of each merge that its rank holds, layer by layer", "svg": drawing})
    if comparison is not None and comparison.rows:
        for measure, low, high in (("cosine", 0.0, 0.0), ("sign_conflict", 0.0, 0.5)):
            series = {
                f"{a}, {b}": [getattr(row, measure) for row in comparison.rows if (row.first, row.second) == (a, b)]
                for a, b in comparison.shared_layers
            }
            name = measure.replace("_", " ")
            drawing = plots.lines(series, ("layer that both have", name), low, high)
            figures.append({"title": f"Interference before any merge: {name}, layer by layer", "svg": drawing})
    return figures
