"""What is measured before a merge."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import mergelab as ml
from tests.synthetic import SHAPES, adapter

NAMES = list(SHAPES)


def test_compare_measures_agreement() -> None:
    """An adapter with itself, with its negative, with another, and with one of other layers."""
    a, b = adapter(16, source="a"), adapter(17, source="b")
    same = ml.compare([a, 2 * a]).totals()[0]
    assert same["cosine"] == pytest.approx(1.0) and same["sign_conflict"] == pytest.approx(0.0)
    assert same["shared_subspace"] == pytest.approx(1.0, rel=1e-5)
    opposite = ml.compare([a, -1 * a])
    assert opposite.totals()[0]["sign_conflict"] == pytest.approx(1.0)
    assert "against each other" in opposite.verdict() and "same way" in ml.compare([a, 2 * a]).verdict()
    other = ml.compare([a, b])
    assert abs(other.totals()[0]["cosine"]) < 0.3
    assert len(other.to_frame()) == len(NAMES) and "cosine" in other.to_frame()
    assert other.totals()[0]["norm_first"] == pytest.approx(a.norm())
    apart = ml.compare([a.select(NAMES[0]), b.select(NAMES[1])])
    assert "different layers" in apart.verdict()
    assert "times as strong" in ml.compare([a, 5 * b]).verdict()
    assert json.dumps(other.to_dict()) and "<pre>" in other._repr_html_()
    with pytest.raises(ml.OptionError, match="at least 2"):
        ml.compare([a])


def test_compare_plots(tmp_path: Path) -> None:
    """Three panels, a line for each pair."""
    figure = ml.compare([adapter(18), adapter(19), adapter(20)]).plot()
    assert len(figure.axes) == 3 and len(figure.axes[0].lines) == 3
    figure.savefig(tmp_path / "compare.png")
    assert (tmp_path / "compare.png").stat().st_size > 10_000


def test_two_ways_to_call_it() -> None:
    """A list, or one after the other."""
    a, b = adapter(1), adapter(2)
    assert str(ml.compare(a, b)) == str(ml.compare([a, b]))
    with pytest.raises(ml.OptionError, match="expected a list of adapters"):
        ml.compare(a)
