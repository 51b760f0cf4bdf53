"""Ranks that the singular values of each layer decide, against their plain dense definition; how they are written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import mergelab as ml
from mergelab import cli
from mergelab.errors import OptionError
from mergelab.linalg.dense import svd_dense
from mergelab.ranks import Dynamic, check_rank, parse_rank, rank_record, rank_text
from tests.refusing import Refused
from tests.synthetic import adapter

RULES = ("sv_ratio", "sv_fro", "sv_cumulative")


def kohya(rule: str, value: float, s: Tensor, cap: int | None = None) -> int:
    """The rank by kohya's rules, as plainly as they can be said, of all singular values of a matrix."""
    values = s.double().tolist()
    if rule == "sv_ratio":
        needed = sum(x > values[0] / value for x in values)
    else:
        terms, share = (values, value) if rule == "sv_cumulative" else ([x * x for x in values], value * value)
        needed = next(k for k in range(1, len(values) + 1) if sum(terms[:k]) >= share * sum(terms) * (1 - 1e-9))
    needed = max(1, min(needed, len(values) - 1))
    return min(needed + 1, cap or len(values), len(values))


def spectrum(s: Tensor, shape: tuple[int, int], seed: int = 0) -> Tensor:
    """A matrix with these singular values."""
    generator = torch.Generator().manual_seed(seed)
    u, v = (torch.linalg.qr(torch.randn(n, len(s), generator=generator, dtype=torch.float64)).Q for n in shape)
    return u * s @ v.T


@given(
    rule=st.sampled_from(RULES),
    gaps=st.lists(st.floats(0.05, 1.0), min_size=2, max_size=8),
    share=st.floats(0.05, 0.95),
    cap=st.none() | st.integers(1, 9),
)
def test_the_rank_is_the_one_that_kohya_defines(rule: str, gaps: list[float], share: float, cap: int | None) -> None:
    """For any spectrum, number and cap; no share or ratio may sit on a value, where rounding decides."""
    s = torch.tensor(gaps, dtype=torch.float64).flip(0).cumsum(0).flip(0) ** 2
    value = 1 / share if rule == "sv_ratio" else share
    if any(kohya(rule, value * (1 + e), s) != kohya(rule, value, s) for e in (1e-6, -1e-6)):
        return
    found = check_rank({rule: value, "max": cap})
    assert isinstance(found, Dynamic)
    assert min(found.reached(s, float(s.square().sum())), len(s)) == kohya(rule, value, s, cap)


@pytest.mark.parametrize("rank", ["sv_ratio=3", "sv_ratio=3,max=4", "sv_fro=0.8", "sv_cumulative=0.6"])
def test_resize_and_merges_cut_every_layer_by_its_own_values(rank: str) -> None:
    """Of the dense change of a resize, an exact sum and a method of entries; and the recipe can be read back."""
    (rule, _, value), cap = rank.partition(",")[0].partition("="), 4 if "max" in rank else None
    loras = [adapter(1, rank=6), adapter(2, rank=5)]
    made: list[tuple[Any, Any]] = [(loras[0], loras[0].resize(rank))]
    for method in ("svd", "ties"):
        made += [(ml.merge(loras, method=method, rank=10**6), ml.merge(loras, method=method, rank=rank))]
        assert check_rank(json.loads(made[-1][1].metadata["mergelab"])["options"]["rank"]) == check_rank(rank)
    for whole, cut in made:
        for name, layer in whole.layers.items():
            s = torch.linalg.svdvals(layer.delta_weight().flatten(1).double())
            assert cut.ranks[name] == min(kohya(rule, float(value), s, cap), layer.rank)
    assert f"at rank {rank}" in made[0][1].source


@pytest.mark.parametrize("rank", ["sv_ratio=8", "sv_fro=0.95", "sv_cumulative=0.9", "sv_fro=0.95,max=20"])
def test_as_many_values_of_a_large_matrix_are_found_as_are_needed(rank: str) -> None:
    """Where a search with 64 directions has to go on, and where it need not."""
    s = torch.cat([torch.linspace(1, 0.1, 90), torch.full((180,), 1e-3)]).double()
    matrix, rule = spectrum(s, (300, 320)).float(), check_rank(rank)
    assert isinstance(rule, Dynamic)
    found = svd_dense(matrix, 300 if rule.needs_all else rule.enough)
    name, value = rank.partition(",")[0].split("=")
    expected = kohya(name, float(value), torch.linalg.svdvals(matrix.double()), rule.max)
    assert rule.reached(found.S, float(found.energy)) == expected


def test_a_change_of_zeros_has_rank_one() -> None:
    """For any rule, as for kohya."""
    zero = ml.Adapter({"unet.conv_in": ml.LoraLayer(torch.ones(3, 4), torch.zeros(5, 3))})
    for rule in RULES:
        assert zero.resize(f"{rule}={2 if rule == 'sv_ratio' else 0.5}").ranks == {"unet.conv_in": 1}


@pytest.mark.parametrize(
    "rank",
    [ml.SvRatio(2), ml.SvRatio(2.5, max=32), ml.SvFro(0.9), ml.SvCumulative(0.123456789), ml.RankBudget(8, max=16)],
    ids=str,
)
def test_a_rule_is_read_as_it_is_written(rank: Any) -> None:
    """As text, as a mapping in JSON; on the command line as in Python."""
    assert check_rank(rank_text(rank)) == parse_rank(rank_text(rank)) == rank
    assert check_rank(json.loads(json.dumps(rank_record(rank)))) == rank


@pytest.mark.parametrize(
    ("rank", "sentence"),
    [
        ("sv_ratio=1", "sv_ratio=1.0: expected a number above 1"),
        ("sv_ratio=nan", "sv_ratio=nan: expected a number above 1"),
        ("sv_fro=1.5", "sv_fro=1.5: expected a number strictly between 0 and 1"),
        ("sv_cumulative=0", "sv_cumulative=0.0: expected a number strictly between 0 and 1"),
        ("sv_ratio=x", "rank='sv_ratio=x': expected a number, as in 'sv_ratio=2' or 'sv_ratio=2,max=64'"),
        ("sv_ratio=2,min=3", "as in 'sv_ratio=2' or 'sv_ratio=2,max=64'"),
        ("sv_ratio=2,max=0", "as in 'sv_ratio=2' or 'sv_ratio=2,max=64'"),
        ("sv_rat=2", "rank='sv_rat=2': expected an integer of at least 1, 'max'"),
        ({"sv_ratio": 2, "min": 3}, "sv_ratio has no 'min'; known: sv_ratio, max"),
        ({"sv_ratio": "2"}, "sv_ratio='2': expected a number above 1"),
        ({"sv_ratio": 2, "max": True}, "sv_ratio, max=True: expected an integer of at least 1"),
    ],
)
def test_what_is_no_rule_is_one_sentence(rank: Any, sentence: str) -> None:
    """With what was expected."""
    with pytest.raises(OptionError) as error:
        check_rank(rank)
    assert sentence in str(error.value)
    with pytest.raises(OptionError):
        ml.load("miniature/sdxl/ghost").resize(rank)


def test_on_the_command_line(tmp_path: Path, good: Path, capsys: pytest.CaptureFixture[str], refused: Refused) -> None:
    """Where a rank may stand, so may a rule; with its cap behind a comma."""
    for command in ("merge", "resize"):
        out = tmp_path / f"{command}.safetensors"
        assert cli.run([command, str(good), "--rank", "sv_ratio=1e9,max=1", "-o", str(out)]) == 0
        assert set(ml.load(out).ranks.values()) == {1}
    assert (
        cli.run(["resize", str(good), "--rank", "sv_fro=0.9", "-o", str(tmp_path / "x.safetensors"), "--dry-run"]) == 0
    )
    assert "rank sv_fro=0.9" in capsys.readouterr().out
    refused("resize", good, "--rank", "sv_fro=2", "-o", tmp_path / "y.safetensors", needles=["sv_fro=2.0", "between"])
