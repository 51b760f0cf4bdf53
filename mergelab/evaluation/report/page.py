"""report.html: one self-contained file with the verdict, the numbers and the pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined

from mergelab.comparing import Comparison
from mergelab.evaluation.config import Config
from mergelab.evaluation.names import label_of
from mergelab.evaluation.report.figures import layer_lines, scatters
from mergelab.evaluation.report.lookup import main_metric, metrics_with
from mergelab.evaluation.report.numbers import decimal
from mergelab.evaluation.report.pictures import are_small, rows_of_images
from mergelab.evaluation.report.tables import columns, finding_row, heads, row_of
from mergelab.evaluation.result import Result
from mergelab.evaluation.variants import Variant
from mergelab.formats.fetching import shown


def render(
    result: Result, variants: Sequence[Variant], comparison: Comparison | None, summary: Mapping[str, Any]
) -> str:
    """The page.

    Args:
        result: what was found.
        variants: the columns of the pictures, with their costs.
        comparison: of the adapters before any merge.
        summary: what summary.json holds.
    """
    environment = Environment(
        loader=PackageLoader("mergelab.evaluation.report", "."), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True,
    )  # fmt: skip
    environment.filters |= {"decimal": decimal, "label": label_of}
    metric = main_metric(result)
    chosen = [column for column in columns(result) if column.metrics or column.quantity.shown != "share"]
    return environment.get_template("report.html.j2").render(
        pipeline=result.config.pipeline,
        verdict=result.verdict,
        comparison=comparison.verdict().splitlines() if comparison else [],
        metric=metric.name if metric else "",
        lower_is_better=[known.name for known in result.metrics if not known.higher_is_better],
        between_images=[known.name for known in metrics_with(result, "images")],
        columns=heads(result, chosen),
        rows=[row_of(result, chosen, variant) for variant in variants if variant.name.kind != "base"],
        prompts=[
            rows_of_images(result, [v for v in variants if v.set == result.sets[0].name], prompt.text)
            for prompt in result.sets[0].prompts
        ],
        variants=[variant.name.display for variant in variants],
        pixelated=are_small(result, variants),
        scatters=scatters(result, metric),
        layers=layer_lines(variants, comparison),
        anchors=summary["anchors"],
        findings=[finding_row(row) for row in result.findings],
        failures=result.failures,
        notes=summary["notes"],
        config=yaml.safe_dump(_public(result.config), sort_keys=False, allow_unicode=True),
        versions=summary["versions"],
        seconds=summary["seconds"],
    )


def _public(config: Config) -> dict[str, Any]:
    """As a page may show it that is passed on: addresses of adapters without what opens them."""
    content = config.model_dump(exclude_defaults=True)
    return content | {"loras": [lora | {"path": shown(lora["path"])} for lora in content["loras"]]}
