"""The exact low-rank algebra against dense float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mergelab.errors import OptionError
from mergelab.linalg.adding import added
from mergelab.linalg.dense import squared_norms, svd_dense
from mergelab.linalg.lowrank import Factors, Spectrum, inner, stack
from mergelab.linalg.selection import EVERYTHING, Search
from mergelab.linalg.span import Span, svd
from mergelab.ranks import Energy, RankBudget, check_rank, parse_rank, rank_reached, rank_record, target_rank
from tests.synthetic import drop, trim, trim_topk

NINES = "9" * 5000  # more digits than Python reads


def factors(out: int, columns: int, rank: int, seed: int) -> Factors:
    generator = torch.Generator().manual_seed(seed)
    return Factors(torch.randn(out, rank, generator=generator), torch.randn(rank, columns, generator=generator))


def best_error(matrix: torch.Tensor, rank: int) -> float:
    return float((torch.linalg.svdvals(matrix.double())[rank:] ** 2).sum().sqrt())


@settings(max_examples=40, deadline=None, derandomize=True)
@given(out=st.integers(1, 40), columns=st.integers(1, 40), rank=st.integers(1, 50), seed=st.integers(0, 999))
def test_svd_of_factors_is_the_dense_svd(out: int, columns: int, rank: int, seed: int) -> None:
    """Any shape, also ranks above what the matrix can hold."""
    x = factors(out, columns, rank, seed)
    dense = x.B.double() @ x.A.double()
    found = svd(x)
    expected = torch.linalg.svdvals(dense)
    k = min(len(found.S), len(expected))
    assert torch.allclose(found.S[:k], expected[:k], rtol=1e-5, atol=1e-5 * float(expected[0]))
    assert float((found.factors().delta().double() - dense).norm() / dense.norm()) < 3e-6
    assert found.energy == pytest.approx(float(dense.norm()) ** 2, rel=1e-5)


@settings(max_examples=20, deadline=None, derandomize=True)
@given(out=st.integers(3, 40), columns=st.integers(3, 40), seed=st.integers(0, 999))
def test_coordinates_lose_nothing(out: int, columns: int, seed: int) -> None:
    """`delta_i = Q_b core_i Q_a.T` with Q_b and Q_a orthonormal, or zero where there are no more columns."""
    changes = [factors(out, columns, r, seed + r) for r in (1, 3, 7)]
    span = Span.of(changes)
    q_b, q_a = (x.double() @ torch.linalg.pinv(r, rtol=1e-9) for x, r in ((span.B, span.r_b), (span.A.T, span.r_a)))
    for q in (q_b, q_a):
        assert torch.allclose(q.T @ q @ q.T, q.T, atol=1e-4)
    for change, m in zip(changes, span.cores()):
        assert float((q_b @ m @ q_a.T - change.delta()).norm() / change.delta().norm()) < 3e-6


def test_coordinates_of_opposite_changes_cancel() -> None:
    """To float64, also where they are small."""
    x = factors(40, 30, 4, 1)
    first, second, _ = Span.of([x, x.scaled(-1.0), factors(40, 30, 3, 2)]).cores()
    assert float((first + second).abs().max()) < 1e-9 * float(first.abs().max())


def test_inner_and_stack() -> None:
    """The inner product from the factors is the dense one; a stack is a sum."""
    x, y = factors(30, 20, 4, 0), factors(30, 20, 6, 1)
    dense_x, dense_y = (z.B.double() @ z.A.double() for z in (x, y))
    assert inner(x, y) == pytest.approx(float((dense_x * dense_y).sum()), rel=1e-6)
    assert torch.allclose(stack([x, y]).delta().double(), dense_x + dense_y, atol=1e-4)


@pytest.mark.parametrize("kind", ["flat", "decaying", "low rank plus noise", "exactly low rank", "ties"])
def test_randomised_svd_is_at_most_a_thousandth_worse_than_the_best(kind: str) -> None:
    """On the spectra that merges have, and on a flat one."""
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(420, 600, generator=generator)
    x = factors(420, 600, 24, 1).delta()
    if kind == "decaying":
        u, _, vt = torch.linalg.svd(matrix, full_matrices=False)
        matrix = u * torch.arange(1, 421) ** -0.7 @ vt
    elif kind == "low rank plus noise":
        matrix = x + 2 * matrix
    elif kind == "exactly low rank":
        matrix = x
    elif kind == "ties":
        matrix = trim(x, float(x.abs().median())) + trim(factors(420, 600, 24, 2).delta(), 6.0)
    for rank in (8, 24, 60):
        found = svd_dense(matrix, rank)
        error = float((matrix.double() - found.factors().delta().double()).norm())
        floor = 2e-6 * float(matrix.norm())
        assert error <= best_error(matrix, rank) * 1.001 + floor
        assert found.energy == pytest.approx(float(squared_norms(matrix)), rel=1e-9)


def spectra() -> dict[str, torch.Tensor]:
    """Those that are hard for an iteration: no gap, a small one, a slow decay; and an easy one."""
    k = torch.arange(1, 321, dtype=torch.float64)
    return {
        "flat": torch.ones_like(k),
        "gap of 2 % after 32": torch.where(k <= 32, 1.02, 1.0).double(),
        "gap of 10 % after 100": torch.where(k <= 100, 1.1, 1.0).double(),
        "k^-0.1": k**-0.1,
        "k^-0.5": k**-0.5,
        "linear": torch.linspace(2, 1, 320, dtype=torch.float64),
        "exponential": torch.exp(-k / 20),
        "four": torch.where(k <= 4, 1.0, 0.0).double(),
    }


@pytest.mark.parametrize("rank", [8, 32, 100])
@pytest.mark.parametrize("kind", list(spectra()))
def test_the_promise_holds_on_spectra_without_a_gap(kind: str, rank: int) -> None:
    """What is stored, not what the iteration believes, is compared with the best approximation."""
    s = spectra()[kind]
    generator = torch.Generator().manual_seed(2)
    u = torch.linalg.qr(torch.randn(320, 320, generator=generator, dtype=torch.float64)).Q
    v = torch.linalg.qr(torch.randn(400, 320, generator=generator, dtype=torch.float64)).Q
    matrix = (u * s @ v.T).float()
    found = svd_dense(matrix, rank)
    error = float((matrix.double() - found.factors().delta().double()).norm())
    best = float((s[rank:] ** 2).sum().sqrt())
    assert error <= 1.001 * best + 3e-6 * float(matrix.norm())
    assert (found.energy - found.kept) ** 0.5 == pytest.approx(error, rel=2e-3, abs=1e-2) or best == 0


def test_svd_dense_finds_enough_for_a_share_of_the_energy() -> None:
    """The number of values that a share needs is not known before; it is found by doubling."""
    matrix = factors(400, 500, 150, 5).delta()
    found = svd_dense(matrix, Energy(0.95).enough)
    k = rank_reached(Energy(0.95), found.S, float(found.energy))
    exact = torch.linalg.svdvals(matrix.double()) ** 2
    assert abs(k - (int((exact.cumsum(0) / exact.sum() < 0.95).sum()) + 1)) <= 1


def test_zero_matrix() -> None:
    """A fresh LoRA, whose lora_B is zero, decomposes."""
    found = svd(Factors(torch.zeros(5, 2), torch.randn(2, 4)))
    assert found.kept == found.energy == 0.0
    assert isinstance(found, Spectrum) and not found.factors().delta().any()


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    n=st.integers(1, 300),
    block=st.integers(1, 50),
    share=st.floats(0.0, 1.0),
    seed=st.integers(0, 99),
    power=st.integers(-30, 30),
)
def test_kth_largest_magnitude_is_exact(n: int, block: int, share: float, seed: int, power: int) -> None:
    """The radix selection over blocks is a sort."""
    generator = torch.Generator().manual_seed(seed)
    xs = [torch.randn(n, generator=generator) * 2.0**power, torch.randint(-3, 4, (n,), generator=generator).float()]
    k = int(share * n)

    search = Search([k, k], [n, n], [EVERYTHING] * 2)
    while search.is_open:
        for i, x in enumerate(xs):
            for part in x.split(block):
                search.add(i, search.look(i, part.abs()))
        search.narrow()
    for x, threshold in zip(xs, search.thresholds):
        ordered = x.abs().sort(descending=True).values
        if k == 0:
            assert not trim(x, threshold).any()
        elif k == n:
            assert torch.equal(trim(x, threshold), x)
        else:
            assert threshold == float(ordered[k - 1])


def test_trim_by_hand() -> None:
    """Four entries, half of them kept; ties are all kept by `trim`, and cut by `trim_topk` as PEFT cuts them."""
    x = torch.tensor([[1.0, -3.0], [2.0, 0.5]])
    assert trim(x, 2.0).tolist() == [[0.0, -3.0], [2.0, 0.0]]
    assert trim_topk(x, 0.5).tolist() == [[0.0, -3.0], [2.0, 0.0]]
    assert int((trim(torch.ones(4), 1.0) != 0).sum()) == 4
    assert int((trim_topk(torch.ones(4), 0.5) != 0).sum()) == 2


def test_a_drop_in_blocks_is_the_drop_of_the_whole() -> None:
    """The draw does not depend on how a layer is cut into blocks."""
    x = torch.ones(64, 33)
    whole = drop(x, 0.3, key=7)
    parts = [drop(x[rows], 0.3, key=7, rows=rows) for rows in (slice(0, 10), slice(10, 11), slice(11, 64))]
    assert torch.equal(torch.cat(parts), whole)
    assert set(whole.unique().tolist()) == {0.0, 1 / torch.tensor(0.3).item()} or whole.max() > 3.33


def test_a_budget_takes_the_largest_values_wherever_they_are() -> None:
    """mean * layers values in all, the largest; ties go to the first layer."""
    values = [torch.tensor([9.0, 8.0, 7.0]), torch.tensor([1.0]), torch.tensor([8.5, 0.5])]
    assert RankBudget(mean=1).spend(values) == [2, 0, 1]
    assert RankBudget(mean=2).spend(values) == [3, 1, 2]


@pytest.mark.parametrize("shape", [(300, 300), (700, 400), (600, 1200)])
@pytest.mark.parametrize("decay", [0.3, 0.6, 0.9])
def test_small_errors_are_kept_and_told(shape: tuple[int, int], decay: float) -> None:
    """Where the best error is far below a hundredth of the norm, too: at most 0.1 % worse, and told to 5 %."""
    generator = torch.Generator().manual_seed(1)
    side = min(shape)
    u, v = (torch.linalg.qr(torch.randn(n, side, generator=generator, dtype=torch.float64)).Q for n in shape)
    tail = torch.rand(side, generator=generator, dtype=torch.float64).sort(descending=True).values
    matrix = (u * (decay ** torch.arange(side, dtype=torch.float64) + 1e-6 * tail) @ v.T).float()
    s = torch.linalg.svdvals(matrix.double())
    for rank in (16, 40):
        found = svd_dense(matrix, rank)
        error = float((matrix.double() - found.factors().delta().double()).norm())
        assert error <= 1.001 * float(s[rank:].norm())
        assert (found.energy - found.kept) ** 0.5 == pytest.approx(error, rel=0.05)


def test_the_error_of_an_exact_decomposition_is_told() -> None:
    """A tail of 1e-5 of the norm, below what a difference of float32 energies could tell."""
    generator = torch.Generator().manual_seed(2)
    u, v = (torch.linalg.qr(torch.randn(200, 200, generator=generator, dtype=torch.float64)).Q for _ in "uv")
    s = torch.cat([torch.ones(50), torch.full((150,), 1e-5)]).double()
    found = svd_dense((u * s @ v.T).float(), 50)
    assert (found.energy - found.kept) ** 0.5 == pytest.approx(1e-5 * 150**0.5, rel=0.05)


def test_a_budget_has_no_cap_of_its_own() -> None:
    """One strong layer gets what seven weak ones do not need; with `max` it does not."""
    values = [torch.ones(64), *[torch.full((64,), 1e-4)] * 7]
    assert RankBudget(mean=8).spend(values) == [64, *[0] * 7]
    assert target_rank(RankBudget(mean=8), [64], 96) == 96 and target_rank(RankBudget(mean=8, max=9), [64], 96) == 9


def test_a_budget_is_read_as_it_is_recorded() -> None:
    """From any integers; through its mapping, with or without the maximum."""
    for budget in (RankBudget(8), RankBudget(np.int64(2), np.int32(3))):
        assert check_rank(rank_record(budget)) == budget
        assert type(budget.mean) is int and type(budget.max) in (int, type(None))
    assert check_rank({"mean": 8}) == RankBudget(8) == check_rank("mean=8")


@pytest.mark.parametrize(
    ("rank", "sentence"),
    [
        ({}, r"rank=\{\}: a budget needs its mean, as in \{mean: 32\}"),
        ({"max": 8}, "a budget needs its mean"),
        ({"mean": 8, "maximum": 9}, "a budget has no 'maximum'; did you mean 'max'. known: mean, max"),
        ({"mean": 8, 3: 9}, "a budget has no 3; known: mean, max"),
        ({"mean": "8"}, r"RankBudget\(mean\)='8': expected an integer of at least 1"),
        ({"mean": True}, r"RankBudget\(mean\)=True: expected"),
        ({"mean": 8, "max": 4}, "max=4 is below mean=8"),
        pytest.param("mean=" + NINES, "rank='mean=99.*: expected an integer of at least 1", id="a budget of nines"),
        pytest.param(NINES, "rank='99.*: expected a", id="nines"),
        pytest.param(-(10**5000), "rank=a int: expected", id="a large negative number"),
    ],
)
def test_what_is_no_rank_is_one_sentence(rank: object, sentence: str) -> None:
    """Other keys, other types, too many digits."""
    with pytest.raises(OptionError, match=sentence) as error:
        check_rank(rank)
    assert len(str(error.value)) < 300
    if isinstance(rank, str):
        with pytest.raises(OptionError, match=sentence.replace("an integer of at least 1", "a")):
            parse_rank(rank)


@pytest.mark.parametrize("precision", ["highest", "high", "medium"])
def test_a_change_is_added_in_full_precision(precision: str) -> None:
    """Whatever the caller allows for the products of float32, and that is kept."""
    before = torch.get_float32_matmul_precision()
    generator = torch.Generator().manual_seed(0)
    weight, b, a = (torch.randn(shape, generator=generator) for shape in ((64, 48), (64, 16), (16, 48)))
    torch.set_float32_matmul_precision(precision)
    try:
        result = added(weight, [Factors(b[:, :7], a[:7]), Factors(b[:, 7:], a[7:])])
        assert torch.get_float32_matmul_precision() == precision
    finally:
        torch.set_float32_matmul_precision(before)
    torch.testing.assert_close(result.double(), weight.double() + b.double() @ a.double(), atol=1e-5, rtol=0)
