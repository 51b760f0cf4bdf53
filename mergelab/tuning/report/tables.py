"""The numbers of a search as rows of the page."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from mergelab.evaluation.report.lookup import in_words, scores_of, told_apart
from mergelab.evaluation.report.numbers import decimal, difference, p_value
from mergelab.tuning.objectives import BYTES
from mergelab.tuning.report.figures import MEGABYTE, name_of, shown_value
from mergelab.tuning.result import SUM, TUNED_SUM, WINNER, Tuned
from mergelab.tuning.scoring import PARTS, Scored
from mergelab.tuning.trial import Trial

EVERYWHERE, REST = "everywhere", "other layers"
"""The column of an adapter that has one weight; that of the layers in no group."""
_WORDS = {"complete": "", "stopped": "stopped", "failed": "failed"}


def weights_table(tuned: Tuned) -> dict[str, Any]:
    """The winner's weights: a row for each adapter, a column for each group of layers, warm above and cold below 1."""
    adapters = list(tuned.winner.weights)
    cells: dict[str, dict[str, float]] = {adapter: {} for adapter in adapters}
    for name, value in tuned.found.winner.parameters.items():
        for adapter in sorted(adapters, key=len, reverse=True):
            own = name.removeprefix("weight of ")
            if own.startswith(f"{adapter} ") and isinstance(value, (int, float)):
                cells[adapter][own.removeprefix(f"{adapter} ")] = float(value)
                break
    for adapter in adapters:
        weight = tuned.winner.weights[adapter]
        if not isinstance(weight, Mapping):
            cells[adapter] = {EVERYWHERE: float(weight)}
        elif not cells[adapter]:
            cells[adapter] = {pattern: float(value) for pattern, value in weight.items()}
        elif "*" in weight:
            cells[adapter][REST] = float(weight["*"])
    heads = list(dict.fromkeys(head for own in cells.values() for head in own))
    if len(heads) > 1:
        heads = sorted((head for head in heads if head != EVERYWHERE), key=lambda head: head == REST)
    rows = [{"name": adapter, "cells": _heated(cells[adapter], heads)} for adapter in adapters]
    merge = tuned.winner.merge if tuned.winner.merge is not None else tuned.config.merge
    return {"heads": heads, "rows": rows, "merge": [f"{key} {value}" for key, value in merge.items()]}


def _heated(own: Mapping[str, float], heads: Sequence[str]) -> list[dict[str, Any]]:
    if list(own) == [EVERYWHERE] and heads != [EVERYWHERE]:
        return [{"span": len(heads), **_heat(own[EVERYWHERE])}]
    return [
        {"span": 1, **(_heat(own[head]) if head in own else {"text": "", "kind": "", "share": 0})} for head in heads
    ]


def _heat(weight: float) -> dict[str, Any]:
    share = min(abs(weight - 1.0) / 0.5, 1.0)  # of the colour; half more or less is all of it
    return {"text": f"{weight:.3g}", "kind": "warm" if weight > 1 else "cold", "share": round(70 * share)}


def kept_table(tuned: Tuned) -> dict[str, Any]:
    """What the winner and the plain sums keep, while searching and on what was held out."""
    best = tuned.best_sum
    first = next((one for one in tuned.sums if one.candidate.label == SUM), None)
    searched = {WINNER: tuned.found.winner.scored, TUNED_SUM: best.scored if best else None,
                SUM: first.scored if first else None}  # fmt: skip
    label = best.candidate.label if best else ""
    names = {WINNER: f"winner: {tuned.winner.label}", TUNED_SUM: f"the plain sum at its best strength ({label})",
             SUM: "the plain sum as configured"}  # fmt: skip
    adapters = list(tuned.winner.weights)
    rows = [
        {"name": names[key], "part": part, "cells": _kept(scored, adapters)}
        for part, own in (("held out", tuned.scored), ("while searching", searched))
        for key in names
        if (scored := own.get(key)) is not None
    ]
    return {
        "heads": ["score", *(name_of(part) for part in PARTS), *(f"{name} in both" for name in adapters)],
        "rows": rows,
    }


def _kept(scored: Scored, adapters: Sequence[str]) -> list[str]:
    values = [scored.total, *(getattr(scored, part) for part in PARTS)]
    return [decimal(value) for value in [*values, *(scored.recovery.get(name, math.nan) for name in adapters)]]


def contrast_rows(tuned: Tuned) -> list[dict[str, Any]]:
    """The winner against each plain sum on held-out prompts, by every score of the metric that was searched by."""
    result, rows = tuned.held_out, []
    for score, _ in scores_of(result):
        if score.metric != tuned.config.score:
            continue
        cells = []
        for other in (TUNED_SUM, SUM):
            one = result.contrast(tuned.variants.get(WINNER, ""), tuned.variants.get(other, ""), score)
            if one is None:
                cells.append({"text": "the same", "kind": "same", "p": ""})
                continue
            kind = ("better" if one.interval.estimate > 0 else "worse") if told_apart(one) else ""
            cells.append({"text": difference(one.interval), "kind": kind, "p": p_value(one.p)})
        rows.append({"name": in_words(result, score), "cells": cells})
    return rows


def importance_rows(tuned: Tuned) -> list[dict[str, Any]]:
    """For each objective the parameters, the most important first."""
    return [
        {
            "objective": name_of(objective),
            "bars": [
                {"name": name, "share": round(100 * share)} for name, share in sorted(shares.items(), key=_falling)
            ],
        }
        for objective, shares in tuned.found.importance.items()
    ]


def _falling(item: tuple[str, float]) -> float:
    return -item[1]


def trials_table(tuned: Tuned) -> dict[str, Any]:
    """Every trial."""
    found = tuned.found
    others = [o for o in found.objectives if o not in ("score", *PARTS, BYTES)]
    sized = any(trial.bytes is not None for trial in found.trials)
    heads = [
        "score",
        *(name_of(part) for part in PARTS),
        *(name_of(o) for o in others),
        *(["file, MB"] if sized else []),
    ]
    rows = [
        {
            "name": trial.candidate.label,
            "number": trial.number,
            "best": trial.number in found.best,
            "state": _WORDS[trial.state],
            "error": trial.error if trial.state == "failed" else "",
            "cells": [*_numbers(trial, ["score", *PARTS, *others]), *([_size(trial)] if sized else [])],
            "images": trial.scored.images if trial.scored else 0,
            "parameters": parameters_text(trial.parameters),
        }
        for trial in found.trials
    ]
    return {"heads": heads, "rows": rows}


def _numbers(trial: Trial, objectives: Sequence[str]) -> list[dict[str, str]]:
    values = [shown_value(objective, trial) for objective in objectives]
    return [{"text": decimal(v), "value": f"{v:.6f}" if math.isfinite(v) else ""} for v in values]


def _size(trial: Trial) -> dict[str, str]:
    if trial.bytes is None:
        return {"text": "–", "value": ""}
    return {"text": f"{trial.bytes / MEGABYTE:.3g}", "value": str(trial.bytes)}


def parameters_text(parameters: Mapping[str, Any]) -> list[str]:
    """What was chosen, in words.

    Example:
        >>> parameters_text({"ghost": 0.91234, "method": "ties", "rank": 8})
        ['ghost 0.912', 'method ties', 'rank 8']
    """
    return [
        f"{name} {value:.3g}" if isinstance(value, float) else f"{name} {value}" for name, value in parameters.items()
    ]


def front_rows(tuned: Tuned) -> dict[str, Any]:
    """Of several objectives what is on the front."""
    found = tuned.found
    if len(found.objectives) < 2:
        return {"heads": [], "rows": []}
    trials = [found.trials[number] for number in found.best]
    rows = [
        {
            "name": trial.candidate.label,
            "parameters": parameters_text(trial.parameters),
            "cells": [_size(trial)["text"] if o == BYTES else decimal(shown_value(o, trial)) for o in found.objectives],
        }
        for trial in trials
    ]
    return {"heads": [name_of(objective) for objective in found.objectives], "rows": rows}


def sum_rows(tuned: Tuned) -> list[dict[str, Any]]:
    """The plain sum at several strengths, on the scenes of the search."""
    best = tuned.best_sum
    return [
        {"name": f"{trial.parameters.get('strength', 1.0):g}", "best": best is not None and trial.number == best.number,
         "cells": [decimal(shown_value(name, trial)) for name in ("score", *PARTS)]}
        for trial in tuned.sums
    ]  # fmt: skip
