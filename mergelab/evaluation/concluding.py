"""From the scores of a run to its result: what was chosen, findings, contrasts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import pandas as pd

from mergelab.evaluation.analysis.contrasts import Contrast, Primary, contrasts
from mergelab.evaluation.analysis.findings import findings
from mergelab.evaluation.analysis.joining import join_concepts
from mergelab.evaluation.analysis.quantities import JOINT_SCORE, RECOVERY, concept_reference, described, units_of
from mergelab.evaluation.analysis.ranges import MetricRange, metric_ranges
from mergelab.evaluation.analysis.scores import Scores
from mergelab.evaluation.config import Select
from mergelab.evaluation.design import Design, design_from, design_of
from mergelab.evaluation.grid import Grid
from mergelab.evaluation.metrics.metric import Description
from mergelab.evaluation.metrics.registry import Profile, table_order
from mergelab.evaluation.names import VariantName, role_of
from mergelab.evaluation.result import Result
from mergelab.evaluation.selection import Choice, chosen, only, parts_of
from mergelab.evaluation.sets import AdapterSet, counts, roles_of


def concluded(grid: Grid, frame: pd.DataFrame, profiles: Sequence[Profile]) -> Result:
    """What was found: choices, findings, contrasts."""
    config = grid.config
    known = table_order(one.described(frame[frame["metric"] == one.description.name]) for one in profiles)
    reported, sets, choices = frame, grid.sets, list[Choice]()
    if config.select is not None:
        reported, sets, choices = _selected(grid, frame, known, config.select)
    scores, ranges, variants = _prepared(reported, known, sets)
    roles = roles_of(sets)
    primary = primary_of(scores, known, ranges, roles)
    positive = {role: any(_above_zero(one.adapters[role].strength) for one in sets if role in one.adapters)
                for role in roles}  # fmt: skip
    found = contrasts(scores, known, variants, roles, primary)
    return Result(
        grid.store.folder,
        config,
        sets,
        known,
        frame,
        findings(scores, known, variants, positive),
        found,
        primary,
        _as_drawn(design_of(config, sets), scores, primary, found),
        choices,
        ranges,
        grid.failures.rows,
    )


def _prepared(
    frame: pd.DataFrame, metrics: Sequence[Description], sets: Sequence[AdapterSet]
) -> tuple[Scores, list[MetricRange], list[VariantName]]:
    """The scores with those that are joined, what the metrics see, and the variants under their roles."""
    scores, roles = Scores(frame, sets), roles_of(sets)
    ranges = metric_ranges(scores, metrics, roles)
    join_concepts(scores, metrics, scores.variants, roles, ranges)
    return scores, ranges, [name for text in scores.variants if (name := VariantName.parse(text))]


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
    sighted = [metric for metric in metrics if seen[metric.name]]
    order = sorted(sighted, key=lambda m: (-len(seen[m.name]), not m.miniature_only, m.compares_with != "images"))
    for metric in order:
        for role in (None, *seen[metric.name]):
            quantity = JOINT_SCORE if role is None else RECOVERY
            for about in quantity.references(role, metric, scores):
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
    first, sets, rows = only(grid.sets, on), only(grid.sets, report), frame[[unit in report for unit in units]]
    scores, ranges, _ = _prepared(frame[[unit in on for unit in units]], metrics, first)
    primary = primary_of(scores, metrics, ranges, roles_of(first))
    if primary is None:
        grid.notes.append("select: no metric sees an adapter on the prompts to choose on; nothing was chosen")
        return rows, sets, []
    families = {str(v.name): v.recipe.family for v in grid.variants if v.recipe is not None}
    means = {one.name: _means(scores, metrics, primary, families, one) for one in first}
    kept, choices = chosen(families, means, select.each_set)
    names = [kept.get(one, {} if select.each_set else next(iter(kept.values()))) for one in rows["set"]]
    called = [known.get(v, v) for known, v in zip(names, rows["variant"])]
    shown = [not v.startswith("merge:") or v in known for known, v in zip(names, rows["variant"])]
    return rows.assign(variant=called)[shown], sets, choices


def _means(
    scores: Scores, metrics: Sequence[Description], primary: Primary, families: Mapping[str, int], one: AdapterSet
) -> dict[str, float]:
    """The score of each merge of a set, more being better; within a family over the images that all of it have."""
    metric = next(metric for metric in metrics if metric.name == primary.metric)
    sign = (described(JOINT_SCORE, metric) if primary.quantity == JOINT_SCORE.contrast else metric).sign
    keys = {(one.name, prompt.text) for prompt in one.prompts}
    found = dict[str, float]()
    for family in set(families.values()):
        labels = [label for label, own in families.items() if own == family]
        table = scores.beside([(label, primary.metric, primary.reference) for label in labels], keys).dropna()
        found |= {str(label): sign * float(table[label].mean()) for label in table if len(table)}
    return found


def _as_drawn(design: Design, scores: Scores, primary: Primary | None, found: Sequence[Contrast]) -> Design:
    """The design as the primary contrasts have it: images may have failed, and sets may lack an adapter."""
    own = [one for one in found if primary is not None and primary.asks(one)]
    if not own:
        return design
    first = max(own, key=lambda one: one.clusters)
    columns = [(name, first.metric, first.reference) for name in (first.first, first.second)]
    table = scores.aligned(columns, scores.keys(counts(first.prompts, role_of(first.reference))))
    units = units_of(table)
    family = sum(one.corrected is not None for one in own)
    return design_from(units, len(table), family)
