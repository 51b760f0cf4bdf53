"""What variants are called where there is little room: the method, and those of its options that differ."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from mergelab.evaluation.names import VariantName

Options = Mapping[str, str]
CHOSEN = ", chosen"
"""After the label of a merge whose options each set of adapters chose for itself."""


def parts_of(label: str, roles: Iterable[str] = ()) -> tuple[str, dict[str, str]]:
    """Method and options of a label. Roles may have spaces in them, and are the keys of weights.

    Example:
        >>> parts_of("ties density=0.3 rank=16")
        ('ties', {'density': '0.3', 'rank': '16'})
        >>> parts_of("cat distractor 1=0.8", ["distractor 1"]), parts_of("mine")
        (('cat', {'distractor 1': '0.8'}), ('mine', {}))
    """
    chosen = label.endswith(CHOSEN)
    known = "|".join(re.escape(role) for role in sorted(roles, key=len, reverse=True))
    method, *rest = re.split(rf" ({known + '|' if known else ''}[^\s=]+)=", label.removesuffix(CHOSEN))
    options = dict(zip(rest[::2], rest[1::2]))
    return method, options | ({"chosen": "by set"} if chosen else {})


def short_names(variants: Sequence[VariantName], roles: Iterable[str] = ()) -> dict[str, str]:
    """Variant, as files have it -> the shortest name that tells it from the others: options that all merges of a method
    have in common are left out.

    Example:
        >>> merges = [VariantName("merge", label) for label in ("svd rank=8", "ties rank=8 k=1", "ties rank=8 k=2")]
        >>> list(short_names(merges).values())
        ['svd', 'ties k=1', 'ties k=2']
        >>> list(short_names([*merges, VariantName("merge", "ties rank=8, chosen")]).values())[-1]
        'ties, chosen'
    """
    roles = list(roles)
    parts = {str(one): parts_of(one.label, roles) for one in variants if one.kind == "merge"}
    found = {}
    for one in variants:
        if one.kind != "merge":
            found[str(one)] = one.display
            continue
        method, own = parts[str(one)]
        alike = [options for other, options in parts.values() if other == method]
        kept = [f"{k}={v}" for k, v in own.items()
                if k != "chosen" and not all(options.get(k) == v for options in alike)]  # fmt: skip
        found[str(one)] = " ".join([method, *kept]) + (CHOSEN if one.label.endswith(CHOSEN) else "")
    return found
