"""Contact sheets of merges that differ in the weights of their adapters alone: one adapter down, another across."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mergelab.evaluation.names import BASE, VariantName
from mergelab.evaluation.report.labels import parts_of
from mergelab.evaluation.report.pictures import image_of
from mergelab.evaluation.result import Result
from mergelab.evaluation.sets import AdapterSet
from mergelab.evaluation.variants import Variant

Point = tuple[float, ...]


def strength_sheets(result: Result, variants: Sequence[Variant]) -> list[dict[str, Any]]:
    """A sheet for each set and each method whose entry has weights as an axis."""
    sheets = []
    for one in result.sets:
        own = [variant for variant in variants if variant.set == one.name]
        families: dict[str, list[Variant]] = {}
        for variant in own:
            if variant.recipe is not None and all(isinstance(w, float) for w in variant.recipe.strengths.values()):
                families.setdefault(repr(variant.recipe.keywords), []).append(variant)
        sheets += [sheet for merges in families.values() if (sheet := _sheet(result, one, own, merges))]
    return sheets


def _sheet(result: Result, of: AdapterSet, own: Sequence[Variant], merges: Sequence[Variant]) -> dict[str, Any] | None:
    """Of one method; None where no weight differs."""
    strengths = [_strengths(variant) for variant in merges]
    roles = [role for role in of.adapters if len({known[role] for known in strengths}) > 1][:2]
    if not roles or not of.prompts:
        return None
    prompt = max(of.prompts, key=lambda known: (min(len(known.calls), 2), -known.index))
    seed = result.config.seeds[0]
    # Where more than two differ, the others stay as they are in the first.
    fixed = {role: weight for role, weight in strengths[0].items() if role not in roles}
    at = {tuple(known[role] for role in roles): variant for variant, known in zip(merges, strengths)
          if all(known[role] == weight for role, weight in fixed.items())}  # fmt: skip
    at |= {point: variant for point, variant in _edges(of, own, roles, fixed).items() if point not in at}
    # One alone runs across.
    down, across = (sorted({point[place] for point in at}) for place in (0, -1))
    points = [[(one, other) for other in across] for one in down] if len(roles) > 1 else [[(one,) for one in across]]
    rows = [
        {
            "weight": f"{line[0][0]:g}" if len(roles) > 1 else "",
            "images": [image_of(result, at[point], prompt.text, seed) if point in at else None for point in line],
        }
        for line in points
    ]
    method, options = parts_of(merges[0].name.label, [*of.adapters, *of.names])
    said = " ".join(f"{key} {value}" for key, value in options.items() if key not in (*of.adapters, "weights"))
    return {
        "set": of.name,
        "method": f"{method} {said}".strip(),
        "prompt": prompt.text,
        "seed": seed,
        "down": roles[0] if len(roles) > 1 else "",
        "across": roles[-1],
        "heads": [f"{other:g}" for other in across],
        "rows": rows,
    }


def _strengths(variant: Variant) -> Mapping[str, float]:
    assert variant.recipe is not None
    return {role: weight for role, weight in variant.recipe.strengths.items() if isinstance(weight, float)}


def _edges(
    of: AdapterSet, own: Sequence[Variant], roles: Sequence[str], fixed: Mapping[str, float]
) -> dict[Point, Variant]:
    """The base model where every weight is 0, and each adapter alone, at its own weight: where the fixed ones fit."""
    none: dict[str, float] = dict.fromkeys(of.adapters, 0.0)
    at = {str(BASE): none}
    for role, lora in of.adapters.items():
        if isinstance(lora.strength, float):
            at[str(VariantName("single", lora.name))] = none | {role: lora.strength}
    return {
        tuple(at[str(variant.name)][role] for role in roles): variant
        for variant in own
        if str(variant.name) in at and all(at[str(variant.name)][role] == weight for role, weight in fixed.items())
    }
