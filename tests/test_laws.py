"""The laws of the design as properties of every strategy, space and kind of rank. Exceptions stand in one table."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

import mergelab as ml
from mergelab.layer import LoraLayer
from tests.synthetic import SHAPES, adapter, dense, difference, lora, relative, ties, trimmed

SPACES = ("delta", "core", "knots", "factors")
RANKS: tuple[Any, ...] = (3, "max", "sum", 0.9, ml.RankBudget(mean=3))


@dataclass(frozen=True)
class Row:
    """One method: its usual options, those at which it drops nothing, what it is."""

    method: str
    options: dict[str, Any]
    lossless: dict[str, Any]
    is_sum: bool  # merge([x, x], [.5, .5]) is x
    averages: bool = False  # merge([x, x], [1, 1]) is x
    random: bool = False


CONTRACT = (
    Row("linear", {}, {}, is_sum=True),
    Row("cat", {}, {}, is_sum=True),
    Row("svd", {}, {}, is_sum=True),
    Row("ties", {"density": 0.4}, {"density": 1.0}, is_sum=False, averages=True),
    Row("ties", {"density": 0.4, "variant": "peft"}, {"density": 1.0, "variant": "peft"}, is_sum=False, averages=True),
    Row(
        "ties",
        {"density": 0.6, "majority_sign": "frequency", "scope": "adapter"},
        {"density": 1.0, "scope": "adapter"},
        is_sum=False,
        averages=True,
    ),
    Row("dare", {"density": 0.6}, {"density": 1.0}, is_sum=True, random=True),
    Row("dare_ties", {"density": 0.6}, {"density": 1.0}, is_sum=False, averages=True, random=True),
    Row("magnitude_prune", {"density": 0.4}, {"density": 1.0}, is_sum=True),
    Row("magnitude_prune", {"density": 0.4, "scope": "adapter"}, {"density": 1.0}, is_sum=True),
)

# (law, method, space) that does not hold, and why; "*" stands for any method.
EXCEPTIONS = {
    ("exists", "cat", "factors"): "the exact sum is not a sum of factors",
    ("exists", "svd", "factors"): "the exact sum is not a sum of factors",
    ("exists", "scope=adapter", "factors"): "PEFT trims each factor by itself",
    ("half and half", "*", "factors"): "PEFT's linear doubles: (2 sqrt(.5) B)(2 sqrt(.5) A) = 2 B A",
    ("strength", "*", "factors"): "sums of factors have cross terms",
    ("order", "random", "factors"): "draws are made in the order given, as PEFT makes them",
    ("factoring", "*", "factors"): "the rule acts on the factors",
    (
        "factoring",
        "equal singular values",
        "core, knots",
    ): "the basis is arbitrary, and rules see it",
}


def _exists(row: Row, space: str) -> bool:
    return not (
        ("exists", row.method, space) in EXCEPTIONS
        or (row.options.get("scope") == "adapter" and ("exists", "scope=adapter", space) in EXCEPTIONS)
    )


CASES = [
    pytest.param(row, space, id="-".join([row.method, *map(str, row.options.values()), space]))
    for row, space in itertools.product(CONTRACT, SPACES)
    if _exists(row, space)
]
CASES_IN_DELTA_LIKE_SPACES = [case for case in CASES if case.values[1] != "factors"]


def _merge(row: Row, space: str, loras: list[ml.Adapter], weights: Any = None, **options: Any) -> ml.Adapter:
    given_options = {**row.options, "space": space, **options}
    if row.method == "cat":
        given_options.pop("rank", None)
    return ml.merge(loras, weights, row.method, **given_options)


@pytest.mark.parametrize(("row", "space"), CASES_IN_DELTA_LIKE_SPACES)
def test_law_1_strength_means_strength(row: Row, space: str) -> None:
    """At settings that drop nothing the sums are `sum w_i delta_i`, negative weights included."""
    loras, weights = [adapter(1), adapter(2, scaling=0.5), adapter(3, rank=2)], [0.7, -1.3, 0.4]
    merged = _merge(row, space, loras, weights, **row.lossless, rank="sum")
    for name in SHAPES:
        changes = [dense(a, name) for a in loras]
        if row.is_sum:
            expected = sum(w * x for w, x in zip(weights, changes))
        elif space != "delta":
            continue  # an average of entries depends on the basis; its law is the next
        else:
            expected = ties(
                changes,
                weights,
                1.0,
                row.lossless.get("majority_sign", row.options.get("majority_sign", "total")),
                row.options.get("variant") == "peft",
            )
            merged = _merge(row, space, loras, weights, **row.lossless, rank=1000)
        assert relative(merged.layers[name].delta_weight(), expected) < 2e-6


@pytest.mark.parametrize("rank", RANKS, ids=str)
@pytest.mark.parametrize(("row", "space"), CASES)
def test_law_2_one_adapter_is_itself(row: Row, space: str, rank: Any) -> None:
    """`merge([x], [w])` is `w x` where nothing is dropped; a truncation is then the best of `w x`."""
    x = adapter(4, rank=5)
    for w in (1.0, 0.5, -2.0):
        merged = _merge(row, space, [x], [w], **row.lossless, rank=rank)
        if rank in ("max", "sum"):
            assert difference(merged, w * x) < 3e-6
        else:
            assert difference(merged, (w * x).resize(rank)) < 1e-4 or row.method == "cat"


@pytest.mark.parametrize(("row", "space"), CASES)
def test_law_2_an_adapter_twice(row: Row, space: str) -> None:
    """Sums: `merge([x, x], [.5, .5])` is x; averages: `merge([x, x], [1, 1])` is x."""
    if space == "factors" and row.is_sum and ("half and half", "*", space) in EXCEPTIONS:
        return
    x = adapter(5)
    weights = [1.0, 1.0] if row.averages else [0.5, 0.5]
    assert difference(_merge(row, space, [x, x], weights, **row.lossless, rank=4), x) < 4e-6


@pytest.mark.parametrize(("row", "space"), CASES)
def test_law_2_weight_zero_is_absent(row: Row, space: str) -> None:
    """An adapter at weight 0 casts no vote, stands in no denominator, and gives no rank."""
    x, y, z = adapter(6), adapter(7), adapter(8, rank=7)
    with_zero = _merge(row, space, [x, z, y], [0.8, 0.0, 0.6])
    without = _merge(row, space, [x, y], [0.8, 0.6])
    assert with_zero.ranks == without.ranks
    assert difference(with_zero, without) < 1e-6


@pytest.mark.parametrize("rank", RANKS, ids=str)
@pytest.mark.parametrize(("row", "space"), CASES)
def test_law_3_order_does_not_matter(row: Row, space: str, rank: Any) -> None:
    """Every order of the adapters gives the same merge, the random methods included."""
    if row.random and ("order", "random", space) in EXCEPTIONS:
        return
    loras, weights = [adapter(9), adapter(10, rank=3), adapter(11, rank=6)], [1.0, -0.4, 0.6]
    first = _merge(row, space, loras, weights, rank=rank)
    for order in itertools.permutations(range(3)):
        other = _merge(row, space, [loras[i] for i in order], [weights[i] for i in order], rank=rank)
        assert difference(other, first) < 2e-5


@pytest.mark.parametrize(("row", "space"), CASES_IN_DELTA_LIKE_SPACES)
@settings(max_examples=5, deadline=None, derandomize=True, phases=[Phase.generate])
@given(seed=st.integers(0, 10_000), pad=st.integers(0, 3), alpha=st.floats(0.25, 4.0))
def test_law_9_only_the_changes_matter(row: Row, space: str, seed: int, pad: int, alpha: float) -> None:
    """Another factorisation, another alpha, a padded rank: the same merge, the random methods included."""
    generator = torch.Generator().manual_seed(seed)
    x, y = adapter(12), adapter(13)
    refactored = {}
    for name, layer in x.layers.items():
        g = torch.linalg.qr(torch.randn(4, 4, generator=generator, dtype=torch.float64)).Q * alpha
        lora_b = (layer.lora_B.flatten(1).double() @ g).float()
        lora_a = (torch.linalg.inv(g) @ layer.lora_A.flatten(1).double()).float()
        lora_b = torch.nn.functional.pad(lora_b, (0, pad))
        lora_a = torch.cat([lora_a, torch.randn(pad, lora_a.shape[1], generator=generator)])
        kernel = layer.lora_B.shape[2:]
        refactored[name] = LoraLayer(
            lora_a.reshape(4 + pad, *layer.lora_A.shape[1:]), lora_b.reshape(-1, 4 + pad, *kernel) / alpha, alpha
        )
    other = ml.Adapter(refactored, source="other")
    found = _merge(row, space, [other, y], [0.7, 0.6], rank=4)
    expected = _merge(row, space, [x, y], [0.7, 0.6], rank=4)
    assert difference(found, expected) < 2e-3


@pytest.mark.parametrize("rank", RANKS, ids=str)
@pytest.mark.parametrize(("row", "space"), CASES)
def test_every_rank_is_the_best_of_the_untruncated_merge(row: Row, space: str, rank: Any) -> None:
    """The stored factors are the optimal approximation of that rank, and the report states its error."""
    loras, weights = [adapter(14), adapter(15, rank=3)], [0.9, 0.8]
    whole = _merge(row, space, loras, weights, rank=1000)
    merged = _merge(row, space, loras, weights, rank=rank)
    rows = {r.name: r for r in merged.report.layers}
    assert set(rows) == set(SHAPES)
    for name in SHAPES:
        full = whole.layers[name].delta_weight().flatten(1).double()
        s = torch.linalg.svdvals(full)
        k = rows[name].rank
        best = float((s[k:] ** 2).sum().sqrt() / s.norm())
        assert rows[name].relative_error == pytest.approx(best, abs=2e-3)
        if k:
            error = float((full - merged.layers[name].delta_weight().flatten(1)).norm() / full.norm())
            assert error <= best * 1.001 + 1e-5
            assert merged.layers[name].rank == k
        if row.method == "cat":
            assert k == 7
        elif rank == 3:
            assert k == 3
        elif rank == "max":
            assert k == 4
        elif isinstance(rank, float):
            assert float((s[:k] ** 2).sum() / s.norm() ** 2) >= rank - 1e-6
            assert k == 1 or float((s[: k - 1] ** 2).sum() / s.norm() ** 2) < rank + 1e-6
    if isinstance(rank, ml.RankBudget) and row.method != "cat":
        assert sum(r.rank for r in rows.values()) == 3 * len(SHAPES)


@pytest.mark.parametrize(("row", "space"), CASES)
def test_law_6_the_same_bytes(row: Row, space: str, tmp_path: Path) -> None:
    """The same inputs, options and seed give the same file; neither layer order nor threads change a draw."""
    x, y = adapter(16), adapter(17)
    turned = [ml.Adapter(dict(reversed(a.layers.items())), source=a.source) for a in (x, y)]
    _merge(row, space, [x, y], [0.5, 0.7], seed=3).save(tmp_path / "a.safetensors")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        _merge(row, space, turned, [0.5, 0.7], seed=3).save(tmp_path / "b.safetensors")
    finally:
        torch.set_num_threads(threads)
    a, b = (ml.load(tmp_path / f"{n}.safetensors") for n in "ab")
    if row.options.get("scope") == "adapter" or threads == 1:
        assert difference(a, b) < 1e-6
    _merge(row, space, [x, y], [0.5, 0.7], seed=3).save(tmp_path / "c.safetensors")
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "c.safetensors").read_bytes()
    assert difference(a, b) < 1e-6
    if row.random:
        assert difference(_merge(row, space, [x, y], [0.5, 0.7], seed=4), a) > 1e-3


@pytest.mark.parametrize("format", ["diffusers", "kohya", "peft"])
@pytest.mark.parametrize(("row", "space"), CASES[::3])
def test_law_5_saved_and_loaded_again(row: Row, space: str, format: str, tmp_path: Path) -> None:
    """A merge that went through a file is the same merge."""
    merged = _merge(row, space, [adapter(18), adapter(19)], rank=ml.RankBudget(3))
    path = merged.save(tmp_path / ("merged" if format == "peft" else "merged.safetensors"), format=format)
    assert difference(ml.load(path), merged) < 1e-6


@pytest.mark.parametrize(("row", "space"), CASES)
def test_laws_7_and_8_everything_merges_and_nothing_is_lost(row: Row, space: str) -> None:
    """Mixed ranks, alphas, dtypes and layer sets merge; every layer of every input is in the result."""
    names = list(SHAPES)
    generator = torch.Generator().manual_seed(0)
    x = adapter(20, rank=[2, 3, 4, 5], scaling=0.25)
    half = {n: LoraLayer(a.lora_A.bfloat16(), a.lora_B.half().bfloat16(), a.scaling) for n, a in x.layers.items()}
    x = ml.Adapter({n: half[n] for n in names[:3]}, source="x")
    y = adapter(21, rank=[6, 1, 2, 3], scaling=2.0, source="y")
    z = ml.Adapter({"text_encoder.text_model.encoder.layers.0.mlp.fc1": lora((9, 7), 2, generator)}, source="z")
    merged = _merge(row, space, [x, y, z], [0.5, -0.75, 1.5])
    assert set(merged.layers) == set(x.layers) | set(y.layers) | set(z.layers)
    assert {r.name for r in merged.report.layers} == set(merged.layers)
    alone = _merge(row, space, [y], [-0.75], **row.lossless)
    kept = _merge(row, space, [x, y, z], [0.5, -0.75, 1.5], **row.lossless)
    assert relative(kept.layers[names[3]].delta_weight(), alone.layers[names[3]].delta_weight()) < 3e-6


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
    """No sign is preferred, also where two adapters disagree one to one; equal and opposite changes cancel."""
    loras, options = [adapter(42), adapter(43)], {"majority_sign": majority, "space": space, "density": 1.0}
    merged = ml.merge(loras, [1.0, 0.8], "ties", rank="max", **options)
    assert difference(ml.merge(loras, [-1.0, -0.8], "ties", rank="max", **options), -merged) < 1e-4
    if space == "delta":
        gone = ml.merge([loras[0], loras[0]], [1.0, -1.0], "ties", **options)
        assert gone.norm() < 1e-5 * loras[0].norm()


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
