"""Merges of which nothing is left, or of which an input is next to nothing: the report says so, and no wild number."""

from __future__ import annotations

import re
from typing import Any

import pytest

import mergelab as ml
from mergelab.report import NEGLIGIBLE, LayerReport, Report
from tests.synthetic import SHAPES, adapter

SMALL = {name: shape for name, shape in SHAPES.items() if "mid_block" in name}
X, Y = adapter(1, shapes=SMALL), adapter(2, shapes=SMALL)
NOTHING: dict[str, tuple[list[ml.Adapter], list[float], dict[str, Any], str]] = {
    "cancelled": ([X, X], [1.0, -1.0], {"method": "cat"}, "the inputs cancel"),
    "cancelled, decomposed": ([X, X], [1.0, -1.0], {"method": "svd"}, "the inputs cancel"),
    "cancelled, at every rank": ([X, X], [0.3, -0.3], {"rank": "sum"}, "the inputs cancel"),
    "cancelled in core space": ([X, X], [1.0, -1.0], {"method": "linear", "space": "core"}, "the inputs cancel"),
    "cancelled by a rule": ([X, X], [1.0, -1.0], {"method": "ties"}, "the inputs cancel"),
    "times 0": ([X, Y], [1.0, 1.0], {"method": "ties", "lam": 0}, "multiplied by 0"),
    "nothing kept": ([X, Y], [1.0, 1.0], {"method": "ties", "density": 1e-9}, "no entry was kept"),
    "nothing kept of the factors": (
        *([X, Y], [1.0, 1.0]),
        *({"method": "ties", "density": 1e-9, "space": "factors"}, "no entry was kept"),
    ),
    "nothing there": ([0 * X, 0 * Y], [1.0, 1.0], {}, "the inputs are zero"),
    "too small": ([1e-20 * (1e-20 * X), 1e-20 * (1e-20 * Y)], [1.0, 1.0], {}, "too small for float32"),
    "too small for a rule": ([1e-20 * (1e-20 * (1e-20 * X))], [1.0], {"method": "ties"}, "too small for float32"),
}


@pytest.mark.parametrize("case", NOTHING)
def test_nothing_is_left(case: str) -> None:
    """A note for every layer, and no share of energy that was kept."""
    loras, weights, options, note = NOTHING[case]
    report = ml.merge(loras, weights, **options).report
    assert all(note in row.note and row.energy == 0 for row in report.layers)
    said = str(report)
    assert "nothing but zeros or rounding is in it" in said and "retained energy" not in said
    assert not re.search(r"[1-9][0-9.]*%|-0.0%", said)


@pytest.mark.parametrize("weight", [1e-21, -1e-45, 1e-300])
def test_weights_that_float32_cannot_hold(weight: float) -> None:
    """An error, wherever they stand."""
    for make in (
        lambda: ml.merge([X, Y], [weight, 1.0]),
        lambda: ml.merge([X], [{"*": weight}]),
        lambda: weight * X,
        lambda: ml.Ties(lam=abs(weight)),
    ):
        with pytest.raises(ml.OptionError, match=r"expected 0 or a finite number .* of magnitude 1e-20 to 1e9"):
            make()


def test_the_share_of_next_to_nothing() -> None:
    """Is none: what it would be is rounding, divided by nearly nothing."""
    report = ml.merge([X, Y], [1e-15, 1.0]).report
    x, y = report.inputs
    assert list(report.shares) == [y] and report.negligible == (x,)
    assert f"  {x}: negligible beside the others, or zero" in str(report)
    assert all(row.shares[0] is None and row.shares[1] is not None for row in report.layers)
    report = ml.merge([X, Y], [1e-5, 1.0]).report
    assert list(report.shares) == [x, y] and not report.negligible
    rows = (LayerReport("unet.a", 1, 1.0, 1.0, (1.0, 5.0), (1.0, NEGLIGIBLE)),)
    assert Report(("x", "y"), rows).shares == {"x": 1.0}


@pytest.mark.parametrize("rank", [4, "max", "sum", 0.9, ml.RankBudget(3)], ids=str)
@pytest.mark.parametrize("space", ["delta", "core", "knots"])
def test_what_cancels_leaves_no_noise(space: str, rank: Any) -> None:
    """Nothing larger than the rounding of the inputs, where they cancel wholly, nearly, or in one layer alone."""
    name = next(iter(X.layers))
    opposite = ml.Adapter({n: layer.scaled(-1.0) if n == name else layer for n, layer in X.layers.items()})
    for loras, weights in (([X, X], [1.0, -1.0]), ([X, X, Y], [1.0, -1.0, 1e-9]), ([X, opposite], [1.0, 1.0])):
        merged = ml.merge(loras, weights, "linear", space=space, rank=rank)
        exact = sum((w * a for w, a in zip(weights, loras)), start=0 * X)
        left = {n: layer for n, layer in merged.layers.items() if (exact.select(n).norm()) < 1e-6 * X.norm()}
        assert all(float(layer.delta_weight().norm()) < 1e-6 * X.norm() for layer in left.values())
        assert left
    for nothing in (X - X, X + opposite.select(name)):
        assert nothing.select(name).resize(rank if rank != "max" else 2).norm() < 1e-6 * X.norm()
