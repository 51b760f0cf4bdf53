"""Combinations by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from mergelab.checks import did_you_mean
from mergelab.errors import OptionError
from mergelab.pipelines.combinations.combination import Combination
from mergelab.pipelines.combinations.composite import Composite
from mergelab.pipelines.combinations.klora import KLora
from mergelab.pipelines.combinations.schedule import Schedule
from mergelab.pipelines.combinations.switch import Switch

COMBINATIONS: dict[str, type[Combination]] = {
    "switch": Switch,
    "composite": Composite,
    "klora": KLora,
    "schedule": Schedule,
}


def combination_of(name: str, options: Mapping[str, Any]) -> Combination:
    """The combination of this name, with these options.

    Raises:
        OptionError: an option that it does not have or a value that is out of range; one is missing.

    Example:
        >>> combination_of("switch", {"every": 2})
        Switch(every=2)
    """
    kind: Any = COMBINATIONS[name]
    known = [field.name for field in fields(kind)]
    if unknown := [option for option in options if option not in known]:
        raise OptionError(f"{name} has no option {unknown[0]!r}; {did_you_mean(unknown[0], known)}")
    if name == "schedule" and "factors" not in options:
        raise OptionError("schedule needs factors, one entry for each adapter")
    return kind(**options)
