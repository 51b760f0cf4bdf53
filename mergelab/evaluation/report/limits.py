"""What cannot be said, in sentences: limits of the design, blind metrics, failures."""

from __future__ import annotations

from mergelab.evaluation.failures import summed_up
from mergelab.evaluation.names import label_of
from mergelab.evaluation.report.lookup import some_of
from mergelab.evaluation.report.numbers import capital, cut
from mergelab.evaluation.result import Result
from mergelab.tables import counted

MOST = 3
"""Kinds of failures that are told here; the report has all of them."""


def limits(result: Result) -> list[str]:
    """What the design can tell, and what it was not asked."""
    lines = [capital(result.design.sentence())]
    uncalled = [role for role in result.roles if not any(role in called for called in result.calling.values())]
    if uncalled:
        lines.append(f"No prompt calls {some_of(uncalled)}: nothing is said about what was kept of it.")
    if all(result.calling.values()) and result.variants:
        lines.append("No prompt is free of triggers: nothing is said about what the merges do to other prompts.")
    return lines


def blind(result: Result) -> list[str]:
    """Metrics that do not see an adapter, which no number is shown of."""
    titles = {metric.name: metric.shown for metric in result.metrics}
    about: dict[str, list[str]] = {}
    for known in result.anchors:
        if known.blind:
            about.setdefault(titles.get(known.metric, known.metric), []).append(label_of(known.reference))
    alike: dict[str, list[str]] = {}
    for name, roles in about.items():
        alike.setdefault(some_of(list(dict.fromkeys(roles))), []).append(name)
    said = [f"{some_of(names)} for {roles}" for roles, names in alike.items()]
    if not said:
        return []
    return [f"Blind, in no ranking (base model and adapter alone cannot be told apart): {'; '.join(said)}."]


def failed(result: Result) -> list[str]:
    """Each kind of failure once, in two lines at most: metrics without any score by themselves."""
    rows = [row for row in result.failures if row["metric"] not in result.silent]
    kinds = [cut(f"{capital(line)}.") for line in summed_up(rows)]
    lines = kinds[:MOST]
    if len(kinds) > MOST:
        lines.append(f"{counted(len(kinds) - MOST, 'more kind')} of failure: see the report.")
    if any(row["prompt"] is not None for row in rows):
        lines.append("Where cells failed, means are over different images; a pair in the matrix is over those of both.")
    return lines + [cut(f"No score at all: {name}.") for name in result.silent.values()]
