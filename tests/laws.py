"""The laws of a merge, each a function that asserts it of one method in one space."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import pytest
import torch

import mergelab as ml
from mergelab.engine.blocks import coordinates_of, merge_stack, seen_rows, sparsifier_states
from mergelab.engine.job import Input, Job, LayerChance
from mergelab.layer import LoraLayer
from mergelab.linalg import stacks
from mergelab.linalg.stacks import ChangeStack
from mergelab.linalg.workspace import Workspace
from mergelab.methods.method import Level, MatrixWise, Part
from mergelab.methods.registry import strategy_of
from tests.synthetic import SHAPES, adapter, dense, difference, lora, relative

RANKS: tuple[Any, ...] = (3, "max", "sum", 0.9, ml.RankBudget(mean=3), ml.SvRatio(3, max=4))


@dataclass(frozen=True)
class Row:
    """One method in the contract.

    Args:
        method: its name.
        options: with which it is tried; those that it has to have.
        lossless: options at which it drops nothing; default: the same.
        breaks: laws that it breaks at these options -> why, besides those that the method and the space say of
            themselves; "law, space" for a law that it breaks in one space alone.
    """

    method: str
    options: dict[str, Any] = field(default_factory=dict)
    lossless: dict[str, Any] = field(default_factory=dict)
    breaks: dict[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """For the name of a test."""
        return "-".join([self.method, *map(str, self.options.values())])

    def exists(self, space: str) -> bool:
        """Whether there is such a method in a space."""
        try:
            self.strategy(space)
        except ml.OptionError:
            return False
        return True

    def strategy(self, space: str, **options: Any) -> ml.Strategy:
        """The method in a space."""
        return strategy_of(self.method, {**self.options, "space": space, **options})

    def broken(self, space: str) -> dict[str, str]:
        """Laws that do not hold there -> why."""
        strategy = self.strategy(space)
        said = {**strategy.acts_in.breaks, **strategy.breaks, **self.breaks}
        split = {key: key.partition(", ") for key in said}
        return {law: said[key] for key, (law, _, where) in split.items() if where in ("", space)}

    def merge(self, space: str, loras: list[ml.Adapter], weights: Any = None, **options: Any) -> ml.Adapter:
        """A merge at the options of the row, or at others; a method with a rank of its own is given none."""
        given = {**self.options, "space": space, **options}
        if self.strategy(space).stores_factors:
            given.pop("rank", None)
        return ml.merge(loras, weights, self.method, **given)

    def whole(self, space: str, loras: list[ml.Adapter], weights: Any = None, **options: Any) -> ml.Adapter:
        """A merge that drops nothing."""
        return self.merge(space, loras, weights, **self.lossless, **options)


Law = Callable[[Row, str, Path], None]
LAWS: dict[str, Law] = {}


def law(function: Law) -> Law:
    """Adds a law by its name."""
    LAWS[function.__name__] = function
    return function


@law
def strength(row: Row, space: str, folder: Path) -> None:
    """Law 1: at settings that drop nothing a merge is `sum w_i delta_i`, negative weights included."""
    loras, weights = [adapter(1), adapter(2, scaling=0.5), adapter(3, rank=2)], [0.7, -1.3, 0.4]
    merged = row.whole(space, loras, weights, rank="sum")
    for name in SHAPES:
        expected = sum(w * dense(a, name) for w, a in zip(weights, loras))
        assert relative(merged.layers[name].delta_weight(), expected) < 2e-6


@law
def single(row: Row, space: str, folder: Path) -> None:
    """Law 2: `merge([x], [w])` is `w x` where nothing is dropped; a truncation is then the best of `w x`."""
    x = adapter(4, rank=5)
    for rank, w in itertools.product(RANKS, (1.0, 0.5, -2.0)):
        merged = row.whole(space, [x], [w], rank=rank)
        stored_whole = rank in ("max", "sum") or row.strategy(space).stores_factors
        assert difference(merged, w * x if stored_whole else (w * x).resize(rank)) < (3e-6 if stored_whole else 1e-4)


@law
def halves(row: Row, space: str, folder: Path) -> None:
    """Law 2: `merge([x, x], [.5, .5])` is x."""
    x = adapter(5)
    assert difference(row.whole(space, [x, x], [0.5, 0.5], rank=4), x) < 4e-6


@law
def twice(row: Row, space: str, folder: Path) -> None:
    """Law 2: `merge([x, x], [1, 1])` is x."""
    x = adapter(5)
    assert difference(row.whole(space, [x, x], [1.0, 1.0], rank=4), x) < 4e-6


@law
def absent(row: Row, space: str, folder: Path) -> None:
    """Law 2: an adapter at weight 0 casts no vote, stands in no denominator, and gives no rank."""
    x, y, z = adapter(6), adapter(7), adapter(8, rank=7)
    with_zero = row.merge(space, [x, z, y], [0.8, 0.0, 0.6])
    without = row.merge(space, [x, y], [0.8, 0.6])
    assert with_zero.ranks == without.ranks
    assert difference(with_zero, without) < 1e-6


@law
def order(row: Row, space: str, folder: Path) -> None:
    """Law 3: every order of the adapters gives the same merge, the random methods included."""
    loras, weights = [adapter(9), adapter(10, rank=3), adapter(11, rank=6)], [1.0, -0.4, 0.6]
    for rank in RANKS:
        first = row.merge(space, loras, weights, rank=rank)
        for turn in itertools.permutations(range(3)) if rank == "max" else [(2, 1, 0)]:
            other = row.merge(space, [loras[i] for i in turn], [weights[i] for i in turn], rank=rank)
            assert difference(other, first) < 2e-5


@law
def files(row: Row, space: str, folder: Path) -> None:
    """Law 5: a merge that went through a file is the same merge."""
    merged = row.merge(space, [adapter(18), adapter(19)], rank=ml.RankBudget(3))
    for format in ("diffusers", "kohya", "peft"):
        path = merged.save(folder / (format if format == "peft" else f"{format}.safetensors"), format=format)
        assert difference(ml.load(path), merged) < 1e-6


@law
def bytes_(row: Row, space: str, folder: Path) -> None:
    """Law 6: the same inputs, options and seed give the same file; neither layer order nor threads change a draw."""
    x, y = adapter(16), adapter(17)
    turned = [ml.Adapter(dict(reversed(a.layers.items())), source=a.source) for a in (x, y)]
    first = row.merge(space, [x, y], [0.5, 0.7], seed=3)
    path = first.save(folder / "a.safetensors")
    other = row.merge(space, turned, [0.5, 0.7], seed=3)
    assert difference(other, first) < 1e-6
    threads = torch.get_num_threads()
    torch.set_num_threads(2 if threads == 1 else 1)
    try:
        again = row.merge(space, [x, y], [0.5, 0.7], seed=3).save(folder / "b.safetensors")
    finally:
        torch.set_num_threads(threads)
    assert again.read_bytes() == path.read_bytes()


@law
def seed(row: Row, space: str, folder: Path) -> None:
    """Another seed gives the same merge."""
    loras, weights = [adapter(16), adapter(17)], [0.5, 0.7]
    first, second = (row.merge(space, loras, weights, seed=number) for number in (3, 4))
    assert difference(first, second) < 1e-3


@law
def everything(row: Row, space: str, folder: Path) -> None:
    """Laws 7 and 8: mixed ranks, alphas, dtypes and layer sets merge; every layer of every input is in the result."""
    names = list(SHAPES)
    generator = torch.Generator().manual_seed(0)
    x = adapter(20, rank=[2, 3, 4, 5], scaling=0.25)
    half = {n: LoraLayer(a.lora_A.bfloat16(), a.lora_B.half().bfloat16(), a.scaling) for n, a in x.layers.items()}
    x = ml.Adapter({n: half[n] for n in names[:3]}, source="x")
    y = adapter(21, rank=[6, 1, 2, 3], scaling=2.0, source="y")
    z = ml.Adapter({"text_encoder.text_model.encoder.layers.0.mlp.fc1": lora((9, 7), 2, generator)}, source="z")
    merged = row.merge(space, [x, y, z], [0.5, -0.75, 1.5])
    assert set(merged.layers) == set(x.layers) | set(y.layers) | set(z.layers)
    assert {r.name for r in merged.report.layers} == set(merged.layers)
    alone = row.whole(space, [y], [-0.75])
    kept = row.whole(space, [x, y, z], [0.5, -0.75, 1.5])
    assert relative(kept.layers[names[3]].delta_weight(), alone.layers[names[3]].delta_weight()) < 3e-6


@law
def factoring(row: Row, space: str, folder: Path) -> None:
    """Law 9: another factorisation, another alpha, a padded rank give the same merge, random methods included."""
    chance = random.Random(0)
    x, y = adapter(12), adapter(13)
    expected = row.merge(space, [x, y], [0.7, 0.6], rank=4)
    for number in range(5):
        generator = torch.Generator().manual_seed(number)
        pad, alpha = chance.randrange(4), chance.uniform(0.25, 4.0)
        refactored = {name: _refactored(layer, pad, alpha, generator) for name, layer in x.layers.items()}
        found = row.merge(space, [ml.Adapter(refactored, source="other"), y], [0.7, 0.6], rank=4)
        assert difference(found, expected) < 2e-3


def _refactored(layer: Any, pad: int, alpha: float, generator: torch.Generator) -> LoraLayer:
    g = torch.linalg.qr(torch.randn(4, 4, generator=generator, dtype=torch.float64)).Q * alpha
    lora_b = (layer.lora_B.flatten(1).double() @ g).float()
    lora_a = (torch.linalg.inv(g) @ layer.lora_A.flatten(1).double()).float()
    lora_b = torch.nn.functional.pad(lora_b, (0, pad))
    lora_a = torch.cat([lora_a, torch.randn(pad, lora_a.shape[1], generator=generator)])
    kernel = layer.lora_B.shape[2:]
    return LoraLayer(
        lora_a.reshape(4 + pad, *layer.lora_A.shape[1:]), lora_b.reshape(-1, 4 + pad, *kernel) / alpha, alpha
    )


@law
def negatives(row: Row, space: str, folder: Path) -> None:
    """The merge of the negatives is the negative: no sign is preferred."""
    loras = [adapter(42), adapter(43)]
    merged = row.whole(space, loras, [1.0, 0.8], rank="max")
    assert difference(row.whole(space, loras, [-1.0, -0.8], rank="max"), -merged) < 1e-4


@law
def best_rank(row: Row, space: str, folder: Path) -> None:
    """At every rank what is stored is the optimal approximation, and the report states its error."""
    loras, weights = [adapter(14), adapter(15, rank=3)], [0.9, 0.8]
    whole = row.merge(space, loras, weights, rank=1000)
    for rank in RANKS:
        merged = row.merge(space, loras, weights, rank=rank)
        rows = {r.name: r for r in merged.report.layers}
        assert set(rows) == set(SHAPES)
        for name in SHAPES:
            full = whole.layers[name].delta_weight().flatten(1).double()
            s = torch.linalg.svdvals(full)
            k = rows[name].rank
            best = float((s[k:] ** 2).sum().sqrt() / s.norm())
            assert rows[name].relative_error == pytest.approx(best, abs=2e-6, rel=0.05)
            if k:
                error = float((full - merged.layers[name].delta_weight().flatten(1)).norm() / full.norm())
                assert error <= best * 1.001 + 1e-5
                assert merged.layers[name].rank == k
            if row.strategy(space).stores_factors:
                assert k == 7
            elif rank == 3:
                assert k == 3
            elif rank == "max":
                assert k == 4
            elif isinstance(rank, float):
                assert float((s[:k] ** 2).sum() / s.norm() ** 2) >= rank - 1e-6
                assert k == 1 or float((s[: k - 1] ** 2).sum() / s.norm() ** 2) < rank + 1e-6
            elif isinstance(rank, ml.SvRatio):
                near = [int((s > s[0] / ratio).sum()) for ratio in (3 - 1e-4, 3 + 1e-4)]
                assert k in {min(max(1, count) + 1, 4) for count in near}
        if isinstance(rank, ml.RankBudget) and not row.strategy(space).stores_factors:
            assert sum(r.rank for r in rows.values()) == 3 * len(SHAPES)


@law
def blocks(row: Row, space: str, folder: Path) -> None:
    """A rule of entries gives the same whole, in blocks, and in batches of layers; so does its sparsifier."""
    method = cast(MatrixWise, row.strategy(space))
    assert method.level is Level.ENTRIES
    shapes = {f"unet.mid_block.attentions.{i}.proj_in": (90, 70) for i in range(2)}
    loras = [adapter(60 + i, rank=12, shapes=shapes) for i in range(3)]
    job = Job(method, 4, tuple(Input(a.name, a, dict.fromkeys(shapes, 0.7)) for a in loras), 0, torch.device("cpu"))
    wholes, results, weights = [], [], torch.ones(3)
    for name in shapes:
        chance = LayerChance(0, name, range(3))
        parts = [Part(given.adapter.matrices(name), 0.7, i, i) for i, given in enumerate(job.inputs)]
        (factored,) = coordinates_of(method, parts).stacks
        everything, weights = slice(0, factored.shape[0]), torch.tensor(factored.weights)
        # Formed first: products of other blocks are rounded otherwise, and entries at a threshold would differ.
        formed = ChangeStack(tuple(factored.rows(i, everything) for i in range(3)), factored.weights)
        (states,) = sparsifier_states(method, [formed], Workspace())
        memory = torch.empty(3, *formed.shape)
        wholes.append(
            torch.stack([seen_rows(method, formed, i, everything, states[i], chance, memory[i]) for i in range(3)])
        )
        results.append(method.rule(wholes[-1].clone(), weights))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(stacks, "BLOCK", 1 << 10)
            patch.setattr(stacks, "FEWEST_ROWS", 1)
            assert len(formed.blocks()) > 5
            assert torch.equal(merge_stack(method, formed, chance), results[-1])
            assert relative(merge_stack(method, factored, chance), results[-1]) < 0.05
    batched = method.rule(torch.stack(wholes, dim=1), weights)
    assert torch.allclose(batched, torch.stack(results), rtol=1e-6, atol=1e-8)
