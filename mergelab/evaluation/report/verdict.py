"""The findings in sentences."""

from __future__ import annotations

from collections.abc import Mapping

from mergelab.evaluation.analysis import Finding
from mergelab.evaluation.failures import summed_up
from mergelab.evaluation.metrics.metric import Description
from mergelab.evaluation.metrics.registry import built_in
from mergelab.evaluation.names import STACK, display_name, label_of
from mergelab.evaluation.quantities import PRESERVATION
from mergelab.evaluation.report.lookup import finding, main_metric, metrics_with, recoveries, variants_of
from mergelab.evaluation.report.numbers import decimal, percent_with_interval
from mergelab.evaluation.result import Result


def sentences(result: Result) -> list[str]:
    """What one would tell a colleague: which merge keeps most of each, what is lost, what cannot be said."""
    metric = main_metric(result)
    calling = result.calling
    prompts = {role: sum(role in called for called in calling.values()) for role in result.roles}
    if metric is None:
        lines = [_nothing_seen(result, any(prompts.values()))]
    else:
        lines = _ranking(result, metric) + _cost_of_leaks(result, metric)
    lines += [f"{line[0].upper()}{line[1:]}." for line in summed_up(result.failures)]
    lines += [f"No score at all: {name}." for name in result.silent]
    if len(calling) == 1:
        lines.append("One prompt gives no intervals: prompts are what varies.")
    free = [prompt for prompt, called in calling.items() if not called]
    if len(free) == 1 < len(calling):
        lines.append("One prompt is free of triggers: the change on it has no interval.")
    once = [name for name, count in prompts.items() if count == 1 < len(calling)]
    if once:
        lines.append(f"One prompt calls {', '.join(once)}: what was kept of it has no interval.")
    if not free:
        lines.append("No prompt is free of triggers: nothing is said about what the merges do to other prompts.")
    uncalled = [name for name, count in prompts.items() if count == 0]
    if 0 < len(uncalled) < len(prompts):
        lines.append(f"No prompt calls {', '.join(uncalled)}: nothing is said about what was kept of it.")
    blind = sorted({f"{known.metric} ({label_of(known.reference)})" for known in result.anchors if known.blind})
    if blind:
        lines.append(
            "Blind, and not to be read (base model and adapter alone are less than two standard errors apart, on these "
            f"prompts): {', '.join(blind)}."
        )
    return lines


def _nothing_seen(result: Result, called: bool) -> str:
    if not metrics_with(result, "words"):
        names = [metric.name for metric in built_in() if metric.compares_with == "words"]
        return f"No recovery: none of the metrics looks for a concept; {' and '.join(names)} do."
    if not any(lora.concept for lora in result.config.loras):
        return "No recovery: give each adapter a concept prompt."
    if not called:
        return "No recovery: no prompt calls any adapter."
    return "No recovery: no metric tells any adapter alone from the base model, on the prompts that call it."


def _ranking(result: Result, metric: Description) -> list[str]:
    table = {name: recoveries(result, str(name), metric) for name in variants_of(result)}
    complete = max(len(rows) for rows in table.values()) if table else 0
    worst = {
        name: min((row.interval for row in rows.values()), key=lambda interval: interval.estimate)
        for name, rows in table.items()
        if name.kind == "merge" and rows and len(rows) == complete
    }
    lines = []
    if worst:
        name = max(worst, key=lambda name: min(worst[name].estimate, 1.0))
        equals = sum(interval.high >= worst[name].low for interval in worst.values()) - 1
        doubt = f" Intervals overlap with {equals} of {len(worst) - 1} other merges." if equals > 0 else ""
        lines.append(f"Best by the adapter that suffers most, on these prompts and seeds: {name.display} keeps "
                     f"{_kept(table[name])} ({metric.name}; chosen on the images it is judged by).{doubt}")  # fmt: skip
    if table.get(STACK):
        lines.append(f"The unmerged stack keeps {_kept(table[STACK])}.")
    lost = [
        f"{name.display} keeps {percent_with_interval(row.interval)} of {adapter}"
        for name, rows in table.items()
        for adapter, row in rows.items()
        if name.kind == "merge" and row.interval.high < 0.5
    ]
    if lost:
        lines.append(f"Lost, with the whole interval below half: {'; '.join(lost)}.")
    return lines


def _kept(rows: Mapping[str, Finding]) -> str:
    return ", ".join(f"{percent_with_interval(row.interval)} of {adapter}" for adapter, row in rows.items())


def _cost_of_leaks(result: Result, metric: Description) -> list[str]:
    rows = [finding(result, PRESERVATION.name, str(name), metric.name, "") for name in variants_of(result)]
    losses = [row for row in rows if row and max(row.interval.low * metric.sign, row.interval.high * metric.sign) < 0]
    if not losses:
        return []
    worst = min(losses, key=lambda row: row.interval.estimate * metric.sign)
    return [
        f"{display_name(worst.variant)} costs most on prompts that call no adapter: "
        f"{decimal(worst.interval.estimate, '+')} ({metric.name})."
    ]
