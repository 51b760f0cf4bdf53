"""Methods in their spaces against dense float64, written independently of mergelab; weights and layers left out."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import mergelab as ml
from tests.synthetic import SHAPES, adapter, dense, difference, relative, ties, trimmed


@pytest.mark.parametrize("majority", ["total", "frequency"])
@pytest.mark.parametrize("variant", ["scaled", "peft"])
@pytest.mark.parametrize("density", [0.1, 0.5, 1.0])
def test_ties_against_the_paper_in_float64(majority: str, variant: str, density: float) -> None:
    """TIES on dense changes is what a loop over the definition gives."""
    loras, weights = [adapter(22), adapter(23), adapter(24)], [0.8, -0.5, 1.2]
    options = {"density": density, "majority_sign": majority, "variant": variant, "lam": 0.7}
    merged = ml.merge(loras, weights, "ties", rank=1000, **options)
    for name in SHAPES:
        expected = 0.7 * ties([dense(a, name) for a in loras], weights, density, majority, variant == "peft")
        assert relative(merged.layers[name].delta_weight(), expected) < 1e-5


@pytest.mark.parametrize("majority", ["total", "frequency"])
@pytest.mark.parametrize("space", ["delta", "core", "knots"])
def test_the_merge_of_the_negatives_is_the_negative(majority: str, space: str) -> None:
    """No sign is preferred, also where two adapters disagree one to one."""
    loras, options = [adapter(42), adapter(43)], {"majority_sign": majority, "space": space, "density": 1.0}
    merged = ml.merge(loras, [1.0, 0.8], "ties", rank="max", **options)
    assert difference(ml.merge(loras, [-1.0, -0.8], "ties", rank="max", **options), -merged) < 1e-4


@pytest.mark.parametrize("majority", ["total", "frequency"])
@pytest.mark.parametrize("space", ["delta", "core", "knots"])
@pytest.mark.parametrize("method", ["ties", "dare_ties"])
def test_equal_and_opposite_changes_cancel(method: str, space: str, majority: str) -> None:
    """What the rounding of votes that cancel says is no vote: by weights, by a negative adapter, among others."""
    x, y = adapter(42), adapter(43)
    options: dict[str, Any] = {"majority_sign": majority, "space": space, "density": 1.0}
    for loras, weights in (([x, x], [1.0, -1.0]), ([x, -x], [0.7, 0.7]), ([x, x, -x, -x], [1.0, 0.5, 0.5, 1.0])):
        gone = ml.merge(loras, weights, method, **options)
        assert gone.norm() < 1e-4 * x.norm()
        assert all("the inputs cancel" in row.note for row in gone.report.layers)
    # An adapter beside a pair that cancels is averaged with one of them, not with its rounding.
    beside = ml.merge([x, y, -x], [1.0, 1.0, 1.0], method, rank=1000, **options)
    if space == "delta":
        for name in SHAPES:
            changes = [dense(x, name), dense(y, name), -dense(x, name)]
            assert relative(beside.layers[name].delta_weight(), ties(changes, [1, 1, 1], 1.0, majority)) < 1e-5


AVERAGES: dict[str, dict[str, Any]] = {
    "ties": {},
    "ties scope=adapter": {"scope": "adapter"},
    "ties frequency": {"majority_sign": "frequency"},
    "ties peft": {"variant": "peft"},
    "dare_ties": {},
}


@pytest.mark.parametrize("name", AVERAGES)
def test_averages_of_whole_changes_in_float64(name: str) -> None:
    """At density 1, with negative weights, other scalings and ranks, an average is that of a loop over the entries."""
    loras, weights = [adapter(1), adapter(2, scaling=0.5), adapter(3, rank=2)], [0.7, -1.3, 0.4]
    options = AVERAGES[name]
    merged = ml.merge(loras, weights, name.split()[0], density=1.0, rank=1000, **options)
    for layer in SHAPES:
        changes = [dense(a, layer) for a in loras]
        majority = options.get("majority_sign", "total")
        expected = ties(changes, weights, 1.0, majority, options.get("variant") == "peft")
        assert relative(merged.layers[layer].delta_weight(), expected) < 2e-6


def test_what_is_tiny_is_not_cancelled() -> None:
    """A small lam, small weights, a density that keeps one entry, and one that keeps none, each with its own note."""
    loras = [adapter(44), adapter(45)]
    for method, weights, options in (
        ("ties", None, {"lam": 1e-7}),
        ("svd", [1e-7, 1e-7], {}),
        ("magnitude_prune", None, {"density": 0.01}),
        ("ties", None, {"density": 0.01}),
        ("linear", [1.0, -1e-3], {"space": "core"}),
    ):
        rows = ml.merge(loras, weights, method, rank=4, **options).report.layers
        assert not any("cancel" in row.note or "nothing" in row.note for row in rows)
        assert all(row.energy > 0 for row in rows)
    for method in ("ties", "magnitude_prune", "dare"):
        rows = ml.merge(loras, method=method, density=1e-6).report.layers
        assert all(row.note == "nothing is left: no entry was kept at this density" for row in rows)
    for space in ("delta", "core", "knots"):
        for method in ("linear", "cat", "svd", "dare", "magnitude_prune"):
            options = {"density": 1.0} if method in ("dare", "magnitude_prune") else {}
            rows = ml.merge([loras[0], loras[0]], [1.0, -1.0], method, space=space, **options).report.layers
            assert all("the inputs cancel" in row.note and row.energy == 0 for row in rows)


def test_a_budget_says_where_it_cannot_know() -> None:
    """A dense merge of a large layer is decomposed in part; a layer that took all of that may deserve more."""
    shapes = {f"unet.mid_block.attentions.{i}.proj_in": (400, 300) for i in range(4)}
    strong, weak = (adapter(seed, rank=2, shapes=shapes) for seed in (46, 47))
    names = list(shapes)
    loras = [a.select(names[0]) + 1e-4 * a for a in (strong, weak)]
    merged = ml.merge(loras, method="ties", rank=ml.RankBudget(mean=3))
    rows = {row.name: row for row in merged.report.layers}
    assert rows[names[0]].rank == 12 and "only its 12 largest singular values were computed" in rows[names[0]].note
    capped = ml.merge(loras, method="ties", rank=ml.RankBudget(mean=3, max=5))
    assert max(capped.ranks.values()) == 5 and "only its" not in str(capped.report)
    low_rank = ml.merge(loras, method="svd", rank="mean=3")
    assert low_rank.ranks[names[0]] == 4 and "only its" not in str(low_rank.report)


def test_ties_and_prune_over_the_whole_adapter_in_float64() -> None:
    """`scope="adapter"` trims all layers of an adapter as one vector, with weights per layer in it."""
    loras = [adapter(25), adapter(26)]
    per_layer = [{"*": 1.0, "unet.mid_block": 2.0}, {"*": -0.7}]
    for density in (0.2, 0.7):
        weighted: list[dict[str, np.ndarray]] = []
        for a, w in zip(loras, per_layer):
            changes = {n: dense(a, n) * (2.0 if "mid" in n and len(w) > 1 else w["*"]) for n in SHAPES}
            flat = trimmed(np.concatenate([changes[n].ravel() for n in SHAPES]), density)
            parts = np.split(flat, np.cumsum([changes[n].size for n in SHAPES])[:-1])
            weighted.append({n: p.reshape(changes[n].shape) for n, p in zip(SHAPES, parts)})
        found_ties = ml.merge(loras, per_layer, "ties", density=density, scope="adapter", rank=1000)
        found_sum = ml.merge(loras, per_layer, "magnitude_prune", density=density, scope="adapter", rank=1000)
        for n in SHAPES:
            xs = [w[n] for w in weighted]
            assert relative(found_sum.layers[n].delta_weight(), sum(xs)) < 1e-5
            assert relative(found_ties.layers[n].delta_weight(), ties(xs, [1.0, 1.0], 1.0)) < 1e-5


@pytest.mark.parametrize("basis", ["changes", "factors"])
def test_core_space_in_float64(basis: str) -> None:
    """TIES in core space is TIES on `U.T delta V`, with U and V from a dense decomposition."""
    loras, weights = [adapter(27), adapter(28, rank=3)], [0.8, -0.6]
    merged = ml.merge(loras, weights, "ties", density=0.5, space="core", basis=basis, rank="sum")
    for name in SHAPES:
        changes = [w * dense(a, name).reshape(SHAPES[name][0], -1) for a, w in zip(loras, weights)]
        if basis == "changes":
            left, right = np.hstack(changes), np.vstack(changes)
        else:
            layers = [a.layers[name] for a in loras]
            left = np.hstack([w * x.scaling * x.lora_B.flatten(1).double().numpy() for x, w in zip(layers, weights)])
            right = np.vstack([x.lora_A.flatten(1).double().numpy() for x in layers])
        u = np.linalg.svd(left, full_matrices=False)[0][:, :7]
        v = np.linalg.svd(right, full_matrices=False)[2][:7].T
        expected = u @ ties([u.T @ x @ v for x in changes], [1, 1], 0.5) @ v.T
        assert relative(merged.layers[name].delta_weight().flatten(1), expected) < 1e-4
        assert merged.layers[name].rank == 7
        row = next(r for r in merged.report.layers if r.name == name)
        assert row.relative_error < 1e-6


def test_knots_space_in_float64() -> None:
    """TIES in KnOTS space is TIES on `Sigma V_i.T` of the joint decomposition."""
    loras, weights = [adapter(29), adapter(30, rank=3)], [0.8, -0.6]
    merged = ml.merge(loras, weights, "ties", density=0.5, space="knots", rank="sum")
    for name in SHAPES:
        changes = [w * dense(a, name).reshape(SHAPES[name][0], -1) for a, w in zip(loras, weights)]
        u, s, vt = np.linalg.svd(np.hstack(changes), full_matrices=False)
        u, scaled = u[:, :7], (s[:, None] * vt)[:7]
        expected = u @ ties(np.split(scaled, 2, axis=1), [1, 1], 0.5)
        assert relative(merged.layers[name].delta_weight().flatten(1), expected) < 1e-4


def test_dare_keeps_its_share_and_its_mean() -> None:
    """DARE keeps a share `density` of the entries, divided by it, and adapters draw independently."""
    shapes = {"unet.mid_block.attentions.0.proj_in": (300, 200)}
    name = next(iter(shapes))
    x = adapter(31, shapes=shapes)
    whole = dense(x, name)
    dropped = ml.merge([x], method="dare", density=0.3, rank=1000, seed=1).layers[name].delta_weight().numpy()
    kept = np.abs(dropped) > 1e-3 * np.abs(whole)
    assert kept.mean() == pytest.approx(0.3, abs=0.01)
    assert relative(dropped[kept], whole[kept] / 0.3) < 1e-3
    y = ml.merge([x, 1.5 * x], [1.0, 1.0], method="dare", density=0.5, rank=1000).layers[name].delta_weight().numpy()
    levels = np.round(y / whole * 0.5, 2)
    assert {0.0, 1.0, 1.5, 2.5} <= set(np.unique(levels[np.abs(whole) > 0.05]))


def test_a_weight_per_component_and_pattern() -> None:
    """Later patterns win, and each layer is multiplied once."""
    x = adapter(32)
    merged = ml.merge([x], [{"unet": 0.5, "unet.up_blocks.*": 2.0}], rank="max")
    for name in SHAPES:
        expected = dense(x, name) * (2.0 if "up_blocks" in name else 0.5)
        assert relative(merged.layers[name].delta_weight(), expected) < 1e-6


def test_all_weights_zero_in_some_layers_is_a_row_of_the_report() -> None:
    """A layer that every adapter leaves out is left out of the result, and the report says so."""
    merged = ml.merge([adapter(33)], [{"unet": 1.0, "unet.mid_block": 0.0}])
    gone = [r for r in merged.report.layers if r.rank == 0]
    assert [r.name for r in gone] == ["unet.mid_block.attentions.0.proj_out"]
    assert gone[0].name not in merged.layers and "weight is 0" in gone[0].note
