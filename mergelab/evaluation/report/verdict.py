"""The findings in sentences."""

from __future__ import annotations

import math
from collections.abc import Sequence

from mergelab.evaluation.analysis.contrasts import Contrast, Primary
from mergelab.evaluation.analysis.findings import Finding
from mergelab.evaluation.analysis.quantities import PRESERVATION
from mergelab.evaluation.metrics.metric import Description
from mergelab.evaluation.metrics.registry import built_in
from mergelab.evaluation.names import STACK
from mergelab.evaluation.report.choices import how_chosen
from mergelab.evaluation.report.limits import blind, failed, limits
from mergelab.evaluation.report.lookup import (
    Index,
    clusters_in_words,
    corrected_over,
    in_words,
    indexed,
    main_metric,
    metrics_with,
    names_of,
    ranked,
    recoveries,
    scores_of,
    seen_by,
    shown_p,
    some_of,
    told_apart,
)
from mergelab.evaluation.report.numbers import (
    capital,
    decimal,
    difference,
    digits_for,
    is_zero,
    p_value,
    percent_with_interval,
)
from mergelab.evaluation.result import Result


def sentences(result: Result) -> list[str]:
    """What one would tell a colleague: which merge is best and by how much, what is lost, what cannot be said."""
    metric, called = main_metric(result), any(result.calling.values())
    if metric is None or result.primary is None:
        lines = [_nothing_seen(result, called)]
    else:
        index, names = indexed(result), names_of(result)
        merges = _merges(result)
        lines = _best(result, result.primary, merges, names)
        lines += how_chosen(result, merges[0] if merges else "", names)
        lines += _kept(result, index, metric, merges[:1], names)
        lines += _lost(result, index, metric, merges[:1], names)
        lines += _cost_of_leaks(result, index, metric, names)
    lines += limits(result) if called else []
    lines += blind(result)
    return lines + failed(result)


def _nothing_seen(result: Result, called: bool) -> str:
    if not result.variants:
        if result.config.merges or any(len(one.adapters) > 1 for one in result.sets):
            return "Nothing to compare: neither a stack nor a merge has a score."
        return "Nothing to compare: one adapter makes no stack, and there are no merges."
    if not metrics_with(result, "words"):
        names = [metric.name for metric in built_in() if metric.compares_with == "words"]
        return f"No recovery: none of the metrics looks for a concept; {' and '.join(names)} do."
    if not any(lora.concept for lora in result.config.loras):
        return "No recovery: give each adapter a concept prompt."
    if not called:
        return "No recovery: no prompt calls any adapter."
    return "No recovery: no metric tells any adapter alone from the base model, on the prompts that call it."


# Which is best.


def _contrasts(result: Result) -> list[Contrast]:
    """By the primary score."""
    return next((own for score, own in scores_of(result) if score == result.primary), [])


def _merges(result: Result) -> list[str]:
    """The merges, best first by the primary score."""
    found = [name for name in ranked(_contrasts(result)) if name != str(STACK)]
    return found or [str(name) for name in result.variants if name.kind == "merge"]


def _best(result: Result, primary: Primary, merges: Sequence[str], names: dict[str, str]) -> list[str]:
    """The best merge against the stack, and against the other merges."""
    if not merges:
        return []
    best, score = merges[0], in_words(result, primary)
    stack = result.contrast(best, str(STACK))
    others = {name: one for name in merges[1:] if (one := result.contrast(best, name)) is not None}
    known = next((one for one in (stack, *others.values()) if one is not None), None)
    if known is None:
        return []
    few = not math.isfinite(known.interval.low)
    units = clusters_in_words(result, known.clusters)
    lines, possible = [], result.design.least_p <= 0.05
    if stack is not None:
        tests = sum(one.corrected is not None for one in _contrasts(result))
        lines.append(
            _against(
                names[best], "the stack", stack, few, f"{score}, {corrected_over(tests)}, {units}", units, possible
            )
        )
    if others:
        lines.append(_among(best, others, few, names, "" if stack is not None else f" ({score}, {units})"))
    if few:
        give = "gives no interval" if known.clusters == 1 else "give no intervals"
        lines.append(f"{capital(units)} {give}: below five, what a difference is worth cannot be said.")
    return lines


def _against(first: str, second: str, contrast: Contrast, few: bool, by: str, units: str, possible: bool) -> str:
    """One variant against another; `possible`: a test of this design can reach .05."""
    known, gap = contrast.interval, contrast.interval.estimate
    if few and not is_zero(gap):
        what = f"{decimal(abs(gap), digits=digits_for(known))} {'above' if gap > 0 else 'below'}"
        return f"{first} is {what} {second} ({by})."
    if few:
        return f"{first} and {second} {'differ by less than 0.001' if gap else 'are even'} ({by})."
    if gap == 0 and contrast.wins == 0.5 and not contrast.resolvable > 0:  # whatever has not been seen yet
        return f"{first} and {second} are even in every image ({by})."
    p = p_value(shown_p(contrast))
    if told_apart(contrast):
        shown = known if gap > 0 else contrast.turned().interval
        above, below = (first, second) if gap > 0 else (second, f"{first}, the best merge,")
        return f"{capital(above) if gap < 0 else above} over {below} by {difference(shown)}, {p} ({by})."
    if contrast.told_apart and shown_p(contrast) > 0.05:
        why = "not significant after correction" if contrast.p <= 0.05 else "which is no proof"
        side = "above" if gap > 0 else "below"
        shown = known if gap > 0 else contrast.turned().interval
        return f"{first} is {side} {second} by {difference(shown)}, {why}: {p} ({by})."
    by = by.removesuffix(f", {units}")
    if all(map(is_zero, vars(known).values())):
        return f"{first} and {second} differ by less than 0.001, with {units}: {p} ({by})."
    digits, wide = digits_for(known), known.high - known.low
    could = contrast.resolvable > wide / 2 > 0 and not is_zero(contrast.resolvable, digits)
    if possible and could:  # else what has not been seen yet makes the interval
        by += f"; a difference of {decimal(contrast.resolvable, digits=digits)} could have been"
    return f"{first} and {second} cannot be told apart with {units}: {difference(known)}, {p} ({by})."


def _among(best: str, others: dict[str, Contrast], few: bool, names: dict[str, str], by: str) -> str:
    """The best merge against the other merges, whose tests are not corrected."""
    following = next(iter(others))
    gap = others[following].interval
    p = p_value(others[following].p)
    if few and is_zero(gap.estimate):
        return f"Among {len(others) + 1} merges {names[best]} and {names[following]} are even{by}."
    if few:
        ahead = f"{decimal(gap.estimate, digits=digits_for(gap))} above the next, {names[following]}"
        return f"Among {len(others) + 1} merges {names[best]} is best, {ahead}{by}."
    equal = [names[name] for name, one in others.items() if not (told_apart(one) and one.interval.estimate > 0)]
    if len(others) == 1 and all(map(is_zero, vars(gap).values())):
        return f"{names[best]} and {names[following]} differ by less than 0.001, {p}, exploratory{by}."
    if equal and len(others) == 1:
        if others[following].told_apart and others[following].p > 0.05:
            what = f"is above {equal[0]} by {difference(gap)}, {p} (exploratory), which is no proof"
            return f"{names[best]} {what}{by}."
        return f"{names[best]} and {equal[0]} cannot be told apart: {difference(gap)}, {p}, exploratory{by}."
    if equal:
        number = len(others) - len(equal)
        worse = f"; {number} {'is' if number == 1 else 'are'} worse" if number else ""
        if by and not number:  # nothing stands before
            return f"Which of {len(others) + 1} merges is best cannot be told, exploratory{by}."
        if by:
            return f"{names[best]} is best, but {some_of(equal)} cannot be told from it{worse}, exploratory{by}."
        of = "Of the other merges, " if number else ""
        return f"{of}{some_of(equal)} cannot be told from {names[best]}{worse} (exploratory)."
    every = f"every other merge; the next, {names[following]}," if len(others) > 1 else names[following]
    return f"{names[best]} over {every} by {difference(gap)}, {p}, exploratory{by}."


# What is kept, lost and harmed.


def _kept(result: Result, index: Index, metric: Description, best: Sequence[str], names: dict[str, str]) -> list[str]:
    """By the best merge and by the stack."""
    kept: dict[str, str] = {}
    for name in (*best, str(STACK)):
        rows = recoveries(result, index, name, metric)
        if rows:
            kept[name] = ", ".join(f"{percent_with_interval(row.interval)} of {role}" for role, row in rows.items())
    if len(kept) == 2 and len(set(kept.values())) == 1:
        return [f"{names[best[0]]} keeps {kept[best[0]]}, and so does the unmerged stack."]
    said = [
        f"{'the unmerged stack' if name == str(STACK) else names[name]} keeps {what}" for name, what in kept.items()
    ]
    first = result.config.metrics[0] == metric.name
    whole = "; ".join(said) + ("" if first else f" (by {seen_by(metric)})")
    return [f"{whole if best and best[0] in kept else capital(whole)}."] if said else []


def _lost(result: Result, index: Index, metric: Description, best: Sequence[str], names: dict[str, str]) -> list[str]:
    """What the interval says is more than half gone; also of the best merge."""
    merges = [str(name) for name in result.variants if name.kind == "merge"]
    rows = {name: recoveries(result, index, name, metric) for name in merges}
    lost = {
        role: [names[name] for name in merges if role in rows[name] and rows[name][role].interval.high < 0.5]
        for role in result.roles
    }
    said = [
        f"{role} in {'all merges' if len(by) == len(merges) > 1 else some_of(by)}" for role, by in lost.items() if by
    ]
    lines = [f"Lost, with the whole interval below half: {'; '.join(said)}."] if said else []
    gone = [role for role, by in lost.items() if best and names[best[0]] in by]
    if gone and len(merges) > 1:
        lines.append(f"{names[best[0]]} is the best merge, and has lost {some_of(gone)} all the same.")
    return lines


def _cost_of_leaks(result: Result, index: Index, metric: Description, names: dict[str, str]) -> list[str]:
    keys = [(PRESERVATION.name, str(name), metric.name, "", "none") for name in result.variants]
    rows: list[Finding] = [index[key] for key in keys if key in index]
    losses = [row for row in rows if max(row.interval.low * metric.sign, row.interval.high * metric.sign) < 0]
    if not losses:
        return []
    worst = min(losses, key=lambda row: row.interval.estimate * metric.sign)
    name = "The stack" if worst.variant == str(STACK) else names[worst.variant]
    return [
        f"{name} costs most on prompts that call no adapter: {decimal(worst.interval.estimate, '+')} ({metric.shown})."
    ]
