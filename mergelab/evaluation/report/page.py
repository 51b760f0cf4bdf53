"""report.html: one self-contained file with the verdict, the numbers and the pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined

from mergelab.comparing import Comparison
from mergelab.evaluation.names import display_name, label_of
from mergelab.evaluation.report.cells import all_heads, finding_row, grouped, rows_of, with_costs
from mergelab.evaluation.report.columns import columns
from mergelab.evaluation.report.figures import layer_lines, scatters
from mergelab.evaluation.report.lookup import main_metric, metrics_with, names_of
from mergelab.evaluation.report.matrix import forests, matrices
from mergelab.evaluation.report.numbers import decimal
from mergelab.evaluation.report.pictures import are_small, pictures
from mergelab.evaluation.report.strengths import strength_sheets
from mergelab.evaluation.result import Result
from mergelab.evaluation.variants import Variant
from mergelab.formats.fetching import public


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
    environment.filters |= {"decimal": decimal, "label": label_of, "display": display_name}
    names, titles = names_of(result), {metric.name: metric.shown for metric in result.metrics}
    chosen, first = columns(result), [one for one in variants if one.set == result.sets[0].name]
    rows = rows_of(result, chosen, variants)
    heads = all_heads(result, chosen, rows)
    return environment.get_template("report.html.j2").render(
        pipeline=result.config.pipeline,
        verdict=result.verdict,
        comparison=comparison.verdict().splitlines() if comparison else [],
        lower_is_better=[metric.shown for metric in result.metrics if not metric.higher_is_better],
        between_images=[metric.shown for metric in metrics_with(result, "images")],
        unit=result.design.unit,
        heads=heads,
        groups=grouped(heads),
        rows=with_costs(result, rows),
        matrices=matrices(result, names),
        forests=forests(result, names),
        sheets=strength_sheets(result, variants),
        sets=pictures(result, variants),
        pixelated=are_small(result, variants),
        scatters=scatters(result, main_metric(result), names),
        layers=layer_lines(first, comparison, names, f", of {result.sets[0].name}" if len(result.sets) > 1 else ""),
        anchors=summary["anchors"],
        titles=titles,
        findings=[finding_row(row, titles) for row in result.findings],
        failures=result.failures,
        notes=summary["notes"],
        config=yaml.safe_dump(
            public(result.config.model_dump(exclude_defaults=True)), sort_keys=False, allow_unicode=True
        ),
        versions=summary["versions"],
        seconds=summary["seconds"],
    )
