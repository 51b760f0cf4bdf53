"""From the scores of a run to its result: what was chosen, findings, contrasts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import replace

import pandas as pd

from mergelab.evaluation.analysis.contrasts import Primary, contrasts
from mergelab.evaluation.analysis.findings import findings
from mergelab.evaluation.analysis.joining import join_concepts
from mergelab.evaluation.analysis.quantities import JOINT_SCORE, RECOVERY, concept_reference, described
from mergelab.evaluation.analysis.ranges import MetricRange, metric_ranges
from mergelab.evaluation.analysis.scores import Scores
from mergelab.evaluation.config import Select
from mergelab.evaluation.design import design_of
from mergelab.evaluation.grid import Grid
from mergelab.evaluation.metrics.metric import Description, Metric
from mergelab.evaluation.metrics.registry import table_order
from mergelab.evaluation.names import VariantName
from mergelab.evaluation.result import Result
from mergelab.evaluation.selection import Choice, chosen, parts_of
from mergelab.evaluation.sets import AdapterSet


def concluded(grid: Grid, frame: pd.DataFrame, metrics: Sequence[Metric]) -> Result:
    """What was found: choices, findings, contrasts."""
    config = grid.config
    known = table_order(metric.described(frame[frame["metric"] == metric.description.name]) for metric in metrics)
    reported, sets, choices = frame, grid.sets, list[Choice]()
    if config.select is not None:
        reported, sets, choices = _selected(grid, frame, known, config.select)
    scores, ranges, variants = _prepared(reported, known, sets)
    primary = primary_of(scores, known, ranges, _roles(sets))
    positive = {role: any(_above_zero(one.adapters[role].strength) for one in sets if role in one.adapters)
                for role in _roles(sets)}  # fmt: skip
    return Result(
        grid.store.folder,
        config,
        sets,
        known,
        frame,
        findings(scores, known, variants, positive),
        contrasts(scores, known, variants, _roles(sets), primary),
        primary,
        design_of(config, sets),
        choices,
        ranges,
        grid.failures.rows,
    )


def _prepared(
    frame: pd.DataFrame, metrics: Sequence[Description], sets: Sequence[AdapterSet]
) -> tuple[Scores, list[MetricRange], list[VariantName]]:
    """The scores with those that are joined, what the metrics see, and the variants under their roles."""
    scores, roles = Scores(frame, sets), _roles(sets)
    ranges = metric_ranges(scores, metrics, roles)
    join_concepts(scores, metrics, scores.variants, roles, ranges)
    return scores, ranges, [name for text in scores.variants if (name := VariantName.parse(text))]


def _roles(sets: Sequence[AdapterSet]) -> list[str]:
    return list(dict.fromkeys(role for one in sets for role in one.adapters))


def _above_zero(weight: float | dict[str, float]) -> bool:
    return any(value > 0 for value in (weight.values() if isinstance(weight, dict) else [weight]))


def primary_of(
    scores: Scores, metrics: Sequence[Description], ranges: Sequence[MetricRange], roles: Sequence[str]
) -> Primary | None:
    """The joint score of the main metric; or what it sees of the one adapter that it sees.

    The main metric is the one that sees most adapters; of equals the judge, then photographs, then words.
    """
    visible = {(one.metric, one.reference) for one in ranges if not one.blind}
    seen = {
        metric.name: [role for role in roles if (metric.name, concept_reference(metric, role)) in visible]
        for metric in metrics
    }
    order = sorted(metrics, key=lambda m: (-len(seen[m.name]), not m.miniature_only, m.compares_with != "images"))
    for metric in order:
        for role in (None, *seen[metric.name]):
            quantity = JOINT_SCORE if role is None else RECOVERY
            for about in quantity.references(role, metric, scores) if seen[metric.name] else ():
                for prompts in ("together", "alone"):
                    one = replace(quantity, prompts=prompts)
                    if any(len(scores.aligned([(v, metric.name, about)], one.keys(scores, role)))
                           for v in scores.variants if v == "stack" or v.startswith("merge:")):  # fmt: skip
                        return Primary(quantity.contrast, metric.name, about, prompts)
    return None


def _selected(
    grid: Grid, frame: pd.DataFrame, metrics: Sequence[Description], select: Select
) -> tuple[pd.DataFrame, list[AdapterSet], list[Choice]]:
    """The scores of what is reported, the sets with the prompts that are, and what was chosen on the others."""
    on, report = parts_of(select, grid.sets, grid.config)
    units = list(zip(frame["set"], frame["prompt"]))
    first = _only(grid.sets, on)
    scores, ranges, _ = _prepared(frame[[unit in on for unit in units]], metrics, first)
    primary = primary_of(scores, metrics, ranges, _roles(first))
    families = {str(v.name): v.recipe.family for v in grid.variants if v.recipe is not None}
    means: dict[str, Mapping[str, float]] = {}
    if primary is not None:
        metric = next(one for one in metrics if one.name == primary.metric)
        sign = (described(JOINT_SCORE, metric) if primary.quantity == JOINT_SCORE.contrast else metric).sign
        for one in first:
            keys = {(one.name, prompt.text) for prompt in one.prompts}
            columns = {name: scores.aligned([(name, primary.metric, primary.reference)], keys) for name in families}
            means[one.name] = {
                name: sign * float(part.to_numpy().mean()) for name, part in columns.items() if len(part)
            }
    kept, choices = chosen(families, means, select.each_set)
    rows = frame[[unit in report for unit in units]]
    names = [kept.get(one, {} if select.each_set else next(iter(kept.values()), {})) for one in rows["set"]]
    called = [known.get(v, v) for known, v in zip(names, rows["variant"])]
    shown = [not v.startswith("merge:") or v in known for known, v in zip(names, rows["variant"])]
    return rows.assign(variant=called)[shown], _only(grid.sets, report), choices


def _only(sets: Sequence[AdapterSet], keys: Set[tuple[str, str]]) -> list[AdapterSet]:
    """The sets with those of their prompts that count."""
    parts = [replace(one, prompts=tuple(p for p in one.prompts if (one.name, p.text) in keys)) for one in sets]
    return [one for one in parts if one.prompts]
