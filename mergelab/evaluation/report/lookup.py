"""What the sentences, tables and plots ask a result."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence

from mergelab.evaluation.analysis.contrasts import EACH_TWO, Contrast, Primary
from mergelab.evaluation.analysis.findings import Finding
from mergelab.evaluation.analysis.quantities import RECOVERY, concept_reference
from mergelab.evaluation.metrics.metric import ComparesWith, Description
from mergelab.evaluation.names import VariantName, label_of
from mergelab.evaluation.report.labels import short_names
from mergelab.evaluation.report.numbers import is_zero
from mergelab.evaluation.report.raw import raw_primary
from mergelab.evaluation.result import Result
from mergelab.tables import counted

Index = Mapping[tuple[str, str, str, str, str], Finding]
"""Quantity, variant, metric, reference and prompts -> the finding."""


def metrics_with(result: Result, compares_with: ComparesWith) -> list[Description]:
    """The metrics that compare an image with words, with images, or with nothing."""
    return [metric for metric in result.metrics if metric.compares_with == compares_with]


def main_metric(result: Result) -> Description | None:
    """The metric of the primary score; None where no metric sees an adapter."""
    name = result.primary.metric if result.primary else None
    return next((metric for metric in result.metrics if metric.name == name), None)


def indexed(result: Result) -> Index:
    """Every finding by what it is of, and the primary score."""
    found = [*result.findings, *raw_primary(result)]
    return {(f.quantity, f.variant, f.metric, f.reference, f.prompts): f for f in found}


def recoveries(result: Result, index: Index, variant: str, metric: Description) -> dict[str, Finding]:
    """Adapter -> its recovery in a variant where it is called with another, or, of one adapter, alone."""
    prompts = "together" if len(result.roles) > 1 else "alone"
    keys = {role: (RECOVERY.name, variant, metric.name, concept_reference(metric, role), prompts)
            for role in result.roles}  # fmt: skip
    sees_nothing = blind_for(result)
    return {
        role: index[key]
        for role, key in keys.items()
        if key in index and key[2:4] not in sees_nothing and math.isfinite(index[key].interval.estimate)
    }


def blind_for(result: Result) -> set[tuple[str, str]]:
    """Metric and reference, where base model and adapter alone cannot be told apart: no number of them counts."""
    return {(one.metric, one.reference) for one in result.anchors if one.blind}


def shown_variants(result: Result) -> list[VariantName]:
    """All variants but the base model that something was found of: adapters alone, stack, merges."""
    names = (VariantName.parse(text) for text in dict.fromkeys(finding.variant for finding in result.findings))
    return [name for name in names if name and name.kind != "base"]


def names_of(result: Result) -> dict[str, str]:
    """Variant -> what people call it, as short as it can be; also of merges of which another was chosen."""
    return {"base": "base"} | named(result, shown_variants(result))


def named(result: Result, variants: Sequence[VariantName]) -> dict[str, str]:
    """Variant -> what people call it: an option that differs among all merges of the configuration is said."""
    every = dict.fromkeys([*variants, *(VariantName("merge", label) for label in result.merge_labels)])
    return short_names(list(every), [*result.roles, *(name for of in result.sets for name in of.names)])


def scores_of(result: Result) -> list[tuple[Primary, list[Contrast]]]:
    """Each score by which variants are held against each other, the primary one first, with all its contrasts."""
    found: dict[Primary, list[Contrast]] = {result.primary: []} if result.primary else {}
    for one in result.contrasts:
        found.setdefault(one.score, []).append(one)
    return [(score, own) for score, own in found.items() if own]


def ranked(contrasts: Sequence[Contrast]) -> list[str]:
    """The variants of a score's contrasts, best first.

    By the mean of their gains over all others; of more than `EACH_TWO` by that over the one that all are held against.
    """
    gains: dict[str, list[float]] = {}
    held = Counter(name for one in contrasts for name in (one.first, one.second))
    if len(held) > EACH_TWO:
        ((anchor, _),) = held.most_common(1)
        contrasts = [one for one in contrasts if anchor in (one.first, one.second)]
    for one in contrasts:
        if math.isfinite(one.interval.estimate):
            gains.setdefault(one.first, []).append(one.interval.estimate)
            gains.setdefault(one.second, []).append(-one.interval.estimate)
    if len(held) > EACH_TWO:
        gains[anchor] = [0.0]
    return sorted(gains, key=lambda name: -sum(gains[name]) / len(gains[name]))


def shown_p(contrast: Contrast) -> float:
    """The p value that people see: the corrected one where there is one."""
    return contrast.p if contrast.corrected is None else contrast.corrected


def told_apart(contrast: Contrast, digits: int = 3) -> bool:
    """Whether the interval leaves out zero, also as it is written, and the p value that is shown is at most .05."""
    bound = min(abs(contrast.interval.low), abs(contrast.interval.high))
    return contrast.told_apart and not is_zero(bound, digits) and shown_p(contrast) <= 0.05


def in_words(result: Result, score: Primary) -> str:
    """A score as people call it: "joint score by judge"."""
    metric = next((one for one in result.metrics if one.name == score.metric), None)
    by, about = seen_by(metric) if metric else score.metric, label_of(score.reference)
    name = metric.shown if metric else score.metric
    where = {"alone": ", where it alone is called", "none": ", where no adapter is called"}.get(score.prompts, "")
    return {
        "joint": f"joint score by {by}",
        "concept": f"{about} by {by}{where}",
        "likeness": f"{name} to {about}{where}",
        "preservation": f"{name}{f' to {about}' if about else ' of the prompt'}{where}",
        "score": f"{name} {score.reference}".strip(),
    }.get(score.quantity, f"{score.quantity} by {by}")


def seen_by(metric: Description) -> str:
    """A metric that sees concepts, and what it holds them against unless that is words."""
    return f"{metric.shown} against photographs" if metric.compares_with == "images" else metric.shown


def clusters_in_words(result: Result, count: int) -> str:
    """How many of what varies: "12 prompts", "16 sets"."""
    unit = result.design.unit
    return f"{count} {unit}" if count != 1 else f"1 {unit.replace('prompts', 'prompt', 1).replace('sets', 'set')}"


def corrected_over(tests: int) -> str:
    """How p values were corrected.

    Example:
        >>> corrected_over(5), corrected_over(1)
        ('Holm over 5 tests', 'one test')
    """
    return f"Holm over {counted(tests, 'test')}" if tests > 1 else "one test"


def some_of(names: Sequence[str], most: int = 3) -> str:
    """A list in words, cut where it is long.

    Example:
        >>> some_of(["a"]), some_of(["a", "b"]), some_of(list("abcdef"))
        ('a', 'a and b', 'a, b, c and 3 more')
    """
    if len(names) > most + 1:
        return f"{', '.join(names[:most])} and {len(names) - most} more"
    return f"{', '.join(names[:-1])} and {names[-1]}" if len(names) > 1 else "".join(names)
