"""What was searched and what won, in sentences."""

from __future__ import annotations

import math

from mergelab.evaluation.report.lookup import clusters_in_words, in_words, scores_of, told_apart
from mergelab.evaluation.report.numbers import capital, decimal, difference, is_zero, p_value
from mergelab.evaluation.statistics import Interval
from mergelab.tables import counted
from mergelab.tuning.config import TuneConfig
from mergelab.tuning.objectives import BYTES
from mergelab.tuning.report.figures import name_of
from mergelab.tuning.report.tables import EVERYWHERE, weights_table
from mergelab.tuning.result import SUM, TUNED_SUM, WINNER, Tuned
from mergelab.tuning.scoring import PARTS

_LESS = 0.005
"""What is not worth a sentence."""


def sentences(tuned: Tuned) -> list[str]:
    """What one would tell a colleague: what won, by how much, what it cost, what it promised."""
    lines = [_won(tuned)]
    lines += [line for other in (TUNED_SUM, SUM) if (line := _against(tuned, other))]
    lines += _cost(tuned)
    return [*lines, *_promised(tuned), *tuned.notes]


def searched(config: TuneConfig, tried: int, stopped: int, failed: int) -> str:
    """What was searched, in a sentence."""
    ends = ", ".join(f"{count} {what}" for count, what in ((stopped, "stopped early"), (failed, "failed")) if count)
    if config.search == "blocks":
        of = {"blocks": "group of blocks", "components": "component", "none": ""}[config.groups]
        what = f"a weight for each adapter{f' and {of}' if of else ''}"
        more = f"; the best {config.keep} on more images" if config.more else ""
        return f"Searched: {what}, in {tried} settings, drawn on the same scenes from the same noise{more}."
    names = ", ".join(config.space)
    aims = " and ".join("size of the file" if o == BYTES else name_of(o) for o in config.objectives)
    return f"Searched with Optuna: {names}, for {aims}, in {tried} trials{f' ({ends})' if ends else ''}."


def _won(tuned: Tuned) -> str:
    winner = tuned.found.winner
    table = weights_table(tuned)
    weights = [
        f"{row['name']} {row['cells'][0]['text']}" for row in table["rows"] if table["heads"] == [EVERYWHERE]
    ]  # fmt: skip
    how = f": {', '.join(weights)}" if weights else ""
    merge = winner.candidate.merge
    if merge is not None:
        how += f"; {', '.join(f'{key} {value}' for key, value in merge.items())}"
    of = len(tuned.found.trials)
    if len(tuned.found.objectives) > 1:
        front = counted(len(tuned.found.best), "trial")
        return f"{front} of {of} cannot be beaten in every objective; {winner.candidate.label} has the best score{how}."
    return f"{capital(winner.candidate.label)} is the best of {of} by {tuned.config.score}{how}."


def _against(tuned: Tuned, other: str) -> str:
    """The winner against a plain sum, by the joint score, on what was held out."""
    result, best = tuned.held_out, tuned.best_sum
    variant = tuned.variants.get(other, "")
    if other == SUM and best is not None and best.candidate.label == SUM:
        return ""  # said already
    name = "the plain sum as configured"
    if other == TUNED_SUM:
        name = f"the plain sum at its best strength ({best.candidate.label if best else ''})"
    if variant == tuned.variants.get(WINNER):
        return f"{capital(name)} is the winner itself: nothing that was tried is better."
    score = next((one for one, _ in scores_of(result) if one.metric == tuned.config.score), None)
    one = result.contrast(tuned.variants.get(WINNER, ""), variant, score) if score is not None else None
    if one is None or score is None:
        return ""
    where = f"{in_words(result, score)}, {clusters_in_words(result, one.clusters)} that the search has not seen"
    if is_zero(one.interval.estimate) and all(map(is_zero, _bounds(one.interval))):
        return f"On held-out prompts it and {name} differ by less than 0.001 ({where})."
    known = difference(one.interval)
    if not math.isfinite(one.interval.low):
        return f"On held-out prompts it differs from {name} by {known} ({where}): too few to say more."
    if not told_apart(one):
        return f"On held-out prompts it cannot be told from {name}: {known}, {p_value(one.p)} ({where})."
    side = "above" if one.interval.estimate > 0 else "below"
    shown = difference(one.interval if side == "above" else one.turned().interval)
    return f"On held-out prompts it is {side} {name} by {shown}, {p_value(one.p)} ({where})."


def _bounds(interval: Interval) -> list[float]:
    return [bound for bound in (interval.low, interval.high) if math.isfinite(bound)]


def _cost(tuned: Tuned) -> list[str]:
    """What it loses against the plain sum where adapters are called alone, or not at all."""
    winner, other = tuned.scored.get(WINNER), tuned.scored.get(TUNED_SUM)
    if winner is None or other is None:
        return []
    pairs = [(part, getattr(winner, part), getattr(other, part)) for part in PARTS if part != "joint"]
    lost = [f"{name_of(part)} {decimal(a)} against {decimal(b)}" for part, a, b in pairs if b - a > _LESS]
    return [f"It keeps less of {' and of '.join(lost)}."] if lost else []


def _promised(tuned: Tuned) -> list[str]:
    """The selection bias: by how much the winner fell, beside what was not chosen."""
    if not math.isfinite(tuned.selection_bias):
        return []
    searched, kept = decimal(tuned.search_score), decimal(tuned.held_out_score)
    line = f"While searching it scored {searched}, on what was held out {kept}: {decimal(tuned.selection_bias, '+')}."
    first = next((one for one in tuned.sums if one.candidate.label == SUM), None)
    plain = tuned.scored.get(SUM)
    if first is not None and first.scored is not None and plain is not None:
        fell = first.scored.total - plain.total
        line += (
            f" The plain sum as configured, which nobody chose, went from {decimal(first.scored.total)} to "
            f"{decimal(plain.total)} ({decimal(fell, '+')}): so much is the prompts. What is left, "
            f"{decimal(tuned.selection_bias - fell, '+')}, is the selection bias"
        )
        left = tuned.selection_bias - fell
        line += (
            ": the best of many looks better than it is."
            if left > _LESS
            else ": the winner promised no more than it keeps."
        )
    return [line]
