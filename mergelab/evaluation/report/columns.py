"""Which columns tables have, and what stands in them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from mergelab.evaluation.analysis.findings import Finding
from mergelab.evaluation.analysis.quantities import (
    IMAGE_RECOVERY,
    JOINT,
    QUANTITIES,
    RECOVERY,
    Quantity,
    concept_reference,
)
from mergelab.evaluation.metrics.metric import Description
from mergelab.evaluation.names import label_of, single
from mergelab.evaluation.report.lookup import Index, blind_for, in_words, indexed, main_metric
from mergelab.evaluation.result import Result

Form = Literal["share", "change", "value"]


@dataclass(frozen=True)
class Column:
    """One column: a quantity of one adapter or of none, by the first of some metrics that has it.

    Attributes:
        quantity, reference, prompts: as of a `Finding`.
        form: how its numbers are written.
        metrics: that may fill it, in order.
        group: what its prompts call, in words.
        head: by itself; `short`: within its group.
        help: what it is.
    """

    quantity: str
    form: Form
    metrics: tuple[Description, ...]
    reference: str
    prompts: str
    group: str
    head: str
    short: str
    help: str

    def finding(self, index: Index, variant: object) -> Finding | None:
        """What stands in the row of a variant."""
        keys = ((self.quantity, str(variant), metric.name, self.reference, self.prompts) for metric in self.metrics)
        rows = (index[key] for key in keys if key in index)
        return next((row for row in rows if math.isfinite(row.interval.estimate)), None)

    @property
    def span(self) -> float:
        """Of all that can stand in it; bounds as far apart say nothing."""
        if self.form == "share":
            return 1.0
        low, high = self.metrics[0].range if self.metrics else (-math.inf, math.inf)
        return high - low


def columns(result: Result) -> list[Column]:
    """The quantities that tables show and that have a number somewhere, group by group."""
    index = indexed(result)
    variants = dict.fromkeys(finding.variant for finding in result.findings)
    found = [
        one for one in _all(result) if any(one.finding(index, variant) for variant in variants if variant != "base")
    ]
    order = list(dict.fromkeys(["together", *result.roles, "none", "every"]))
    return sorted(found, key=lambda one: order.index(_place(one, result.roles)))


def _place(column: Column, roles: Sequence[str]) -> str:
    alone = [role for role in roles if column.group == _group("alone", role, roles)]
    return alone[0] if alone else column.prompts


def _group(prompts: str, role: str, roles: Sequence[str]) -> str:
    """A class of prompts in words."""
    return {
        "together": f"prompts that call {'both' if len(roles) == 2 else 'several'}",
        "alone": f"only {role}",
        "none": "none called",
        "every": "every prompt",
    }.get(prompts, prompts)


def _all(result: Result) -> Iterable[Column]:
    for quantity in QUANTITIES:
        if quantity.shown:
            for metrics in _shown_by(result, quantity):
                for role in result.roles if quantity.of_adapters else [""]:
                    yield _column(result, quantity, metrics, role)
    one, main = result.primary, main_metric(result)
    if one is not None and main is not None and one.quantity == RECOVERY.contrast:
        role, title = label_of(one.reference), in_words(result, one)
        group = _group(one.prompts, role, result.roles)
        yield Column(
            one.quantity, "value", (main,), one.reference, one.prompts, group, title, title, "the primary score"
        )
    yield from _image_recoveries(result)


def _shown_by(result: Result, quantity: Quantity) -> list[list[Description]]:
    """For each of its columns the metrics that may fill it."""
    asked = [m for m in result.metrics if m.compares_with in quantity.asks and m.name not in result.silent]
    main = main_metric(result) or _first_seeing(result)
    if quantity.shown == "share" or quantity.about in ("concepts", "joint"):
        return [[main]] if main else []  # what is blind says nothing of a share
    if quantity.shown == "change":
        return [[main, *asked] if main else asked]  # the sharpest that is there
    if quantity.about == "labels":
        bare = {row.metric for row in result.findings if row.quantity == quantity.name and not row.reference}
        return [[metric] for metric in asked if metric.name in bare]
    return [[metric] for metric in asked]


def _first_seeing(result: Result) -> Description | None:
    """The first metric that sees an adapter, where there is nothing that a primary score would compare."""
    seen = {
        one.metric for one in result.anchors for role in result.roles for metric in result.metrics
        if not one.blind and (one.metric, one.reference) == (metric.name, concept_reference(metric, role))
    }  # fmt: skip
    return next((metric for metric in result.metrics if metric.name in seen), None)


def _column(result: Result, quantity: Quantity, metrics: Sequence[Description], role: str) -> Column:
    higher = all(metric.higher_is_better for metric in metrics)
    first = metrics[0] if metrics else None
    words = {
        "metric": first.shown if first else "",
        "adapter": role,
        "way": "likeness to" if higher else "distance from",
        "direction": "" if higher else "; lower is better",
    }
    head, help = (text.format_map(words) for text in (quantity.head, quantity.help))
    reference = ""
    if role:
        reference = concept_reference(first, role) if first and quantity.about == "concepts" else single(role)
    elif quantity.about == "joint":
        reference = JOINT
    alone = quantity.prompts == "alone"
    short = (
        {"share": "recovery", "value": first.shown if first else ""}.get(str(quantity.shown), head) if alone else head
    )
    sees_nothing = blind_for(result)
    seeing = tuple(metric for metric in metrics if (metric.name, reference) not in sees_nothing)
    assert quantity.shown is not None
    group = _group(quantity.prompts, role, result.roles)
    return Column(quantity.name, quantity.shown, seeing, reference, quantity.prompts, group, head, short, help)


def _image_recoveries(result: Result) -> Iterable[Column]:
    """By the sharpest metric between images: a likeness before a distance."""
    known = {row.metric for row in result.findings if row.quantity == IMAGE_RECOVERY}
    metrics = [metric for metric in result.metrics if metric.name in known]
    metrics = [*(m for m in reversed(metrics) if m.higher_is_better), *(m for m in metrics if not m.higher_is_better)]
    if not metrics:
        return
    name, sees_nothing = metrics[0].shown, blind_for(result)
    for role in result.roles:
        if (metrics[0].name, single(role)) in sees_nothing:
            continue
        yield Column(
            IMAGE_RECOVERY, "share", (metrics[0],), single(role), "alone", _group("alone", role, result.roles),
            f"{name} recovery of {role}", f"{name} recovery",
            f"of the {name} to the image of {role} alone, how much: 0 % as the base model, 100 % as {role} alone with "
            "another seed",
        )  # fmt: skip
