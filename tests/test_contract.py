"""The contract of every method: one row each, tried against every law in every space.

A law holds, or it is said to be broken and why; then it has to be.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import mergelab as ml
from mergelab.methods.method import Level
from mergelab.methods.registry import METHODS
from mergelab.spaces import SPACES
from tests.laws import LAWS, Row

_ORDER = {"order, factors": "draws are made in the order given, as PEFT makes them"}
CONTRACT = (
    Row("linear"),
    Row("cat"),
    Row("svd"),
    Row("ties", {"density": 0.4}, {"density": 1.0}),
    Row("ties", {"density": 0.4, "variant": "peft"}, {"density": 1.0}),
    Row("ties", {"density": 0.6, "majority_sign": "frequency", "scope": "adapter"}, {"density": 1.0}),
    Row("dare", {"density": 0.6}, {"density": 1.0}, _ORDER),
    Row("dare_ties", {"density": 0.6}, {"density": 1.0}, _ORDER),
    Row("magnitude_prune", {"density": 0.4}, {"density": 1.0}),
    Row("magnitude_prune", {"density": 0.4, "scope": "adapter"}, {"density": 1.0}),
)


def applies(law: str, row: Row, space: str) -> bool:
    """Whether a law speaks of a method there: blocks are of entry-wise rules, outside of the arithmetic of PEFT."""
    strategy = row.strategy(space)
    return law != "blocks" or (strategy.level is Level.ENTRIES and not strategy.acts_in.acts_on_factors)


def cases(rows: tuple[Row, ...]) -> list[Any]:
    """Every law of every row in every space where there is such a method."""
    return [
        pytest.param(law, row, space, id=f"{law}-{row.name}-{space}")
        for law in LAWS
        for row in rows
        for space in SPACES
        if row.exists(space) and applies(law, row, space)
    ]


def check(law: str, row: Row, space: str, folder: Path) -> None:
    """A law holds, or is broken as it is said."""
    if law not in row.broken(space):
        LAWS[law](row, space, folder)
        return
    try:
        LAWS[law](row, space, folder)
    except AssertionError:
        return
    pytest.fail(f"{row.name} is said to break {law!r} in {space!r} ({row.broken(space)[law]}), and does not")


@pytest.mark.parametrize(("law", "row", "space"), cases(CONTRACT))
def test_contract(law: str, row: Row, space: str, tmp_path: Path) -> None:
    """See `laws.py` for what each law says."""
    check(law, row, space, tmp_path)


def test_every_method_has_a_row() -> None:
    """By any of its names."""
    assert {METHODS[row.method] for row in CONTRACT} == set(METHODS.values())


def test_every_break_is_of_a_law() -> None:
    """A misspelt one would excuse nothing and tell nobody."""
    said = [key.partition(", ") for row in CONTRACT for key in {**row.breaks, **METHODS[row.method].breaks}]
    said += [(key, "", "") for space in SPACES.values() for key in space.breaks]
    assert {law for law, _, _ in said} <= set(LAWS)
    assert {space for _, _, space in said} <= {"", *SPACES}


def test_a_break_that_holds_fails(tmp_path: Path) -> None:
    """So does a law that is broken and not said to be."""
    with pytest.raises(pytest.fail.Exception, match=r"said to break 'single' in 'delta' .because., and does not"):
        check("single", Row("linear", breaks={"single": "because"}), "delta", tmp_path)
    with pytest.raises(AssertionError):
        check("strength", Row("linear"), "delta", tmp_path) or LAWS["strength"](Row("ties"), "delta", tmp_path)


def test_a_misspelt_rule_is_no_method() -> None:
    """It cannot sum in silence: neither made nor registered."""

    class Slip(ml.EntryWise):
        """With a slip."""

        def rul(self, changes: Any, weights: Any) -> Any:
            """Not a rule."""

    with pytest.raises(TypeError, match="abstract"):
        Slip()  # type: ignore[abstract]
    with pytest.raises(ml.OptionError, match=r"method 'slip': Slip has no rule\(\)"):
        ml.register("slip")(Slip)
