"""Layers in batches: what each gets is what it would get by itself, and the host is asked seldom."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import mergelab as ml
from mergelab.devices import CPU, memory_budget
from mergelab.engine import batches, layers, thresholds
from mergelab.engine.batches import groups
from mergelab.engine.job import Input, Job
from mergelab.linalg import host
from mergelab.linalg.radix import RadixSearch
from mergelab.linalg.stacks import ChangeStack
from mergelab.linalg.workspace import Workspace
from mergelab.methods.registry import strategy_of
from tests.synthetic import adapter, difference

SMALL, LARGE = (90, 70), (270, 300)
SHAPES: dict[str, tuple[int, ...]] = {
    **{f"unet.mid_block.attentions.{i}.proj_in": SMALL for i in range(5)},
    **{f"unet.up_blocks.0.attentions.{i}.proj_in": LARGE for i in range(3)},
    "unet.up_blocks.1.resnets.0.conv1": (30, 10, 3, 3),
}
METHODS: list[tuple[str, dict[str, Any]]] = [
    ("svd", {}),
    ("cat", {}),
    ("ties", {}),
    ("ties", {"variant": "peft"}),
    ("ties", {"scope": "adapter"}),
    ("dare", {}),
    ("dare_ties", {"density": 0.3}),
    ("magnitude_prune", {}),
    ("ties", {"space": "core"}),
    ("ties", {"space": "core", "basis": "factors"}),
    ("ties", {"space": "core", "variant": "peft"}),
    ("dare", {"space": "knots"}),
    ("ties", {"space": "knots"}),
    ("ties", {"space": "factors"}),
]


@pytest.fixture
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Batches, transfers beside the computing and the device's selection, on the CPU."""

    def found(wanted: list[thresholds.Wanted], stacks: list[ChangeStack], workspace: Workspace) -> list[float]:
        return thresholds._found(wanted, stacks).tolist()

    monkeypatch.setattr(layers, "memory_budget", lambda device, memory: 8 << 30)
    monkeypatch.setattr("mergelab.engine.blocks.layer_thresholds", found)
    yield


@pytest.mark.parametrize("rank", [5, "sum", 0.9, ml.RankBudget(5)], ids=str)
@pytest.mark.parametrize(("method", "options"), METHODS, ids=lambda x: str(x))
def test_a_batch_gives_every_layer_what_it_would_get_alone(
    method: str, options: dict[str, Any], rank: Any, as_on_a_gpu: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Result and report, with weights of both signs and of some layers, at mixed ranks."""
    loras = [adapter(1, rank=6, shapes=SHAPES), adapter(2, rank=4, shapes=SHAPES), adapter(3, rank=6, shapes=SHAPES)]
    weights: list[Any] = [1.0, -0.5, {"unet": 0.7, "*attentions.1*": 0.4, "*attentions.2*": 0.0}]
    given = {} if strategy_of(method, options).stores_factors else {"rank": rank}
    together = ml.merge(loras, weights, method, **given, **options)
    with monkeypatch.context() as alone:
        alone.setattr(layers, "memory_budget", memory_budget)
        expected = ml.merge(loras, weights, method, **given, **options)
    assert together.ranks == expected.ranks
    assert difference(together, expected) < 1e-5
    for found, row in zip(together.report.layers, expected.report.layers):
        assert (found.name, found.note) == (row.name, row.note)
        assert found.energy == pytest.approx(row.energy, rel=1e-5)
        assert found.relative_error == pytest.approx(row.relative_error, abs=1e-4)
        assert found.shares == pytest.approx(row.shares, abs=1e-3)


def test_recipes_of_a_sweep_in_batches(as_on_a_gpu: None) -> None:
    """Each is its own merge, whichever layers are together, and whatever is searched together."""
    loras = [adapter(1, rank=6, shapes=SHAPES), adapter(2, rank=4, shapes=SHAPES), adapter(3, rank=6, shapes=SHAPES)]
    weights: list[Any] = [1.0, -0.5, {"unet": 0.7, "*attentions.2*": 0.0}]
    own: list[dict[str, Any]] = [{"method": method, **options} for method, options in METHODS]
    recipes = [*own, *({**recipe, "weights": weights} for recipe in own), {"method": "ties", "density": 0.2}]
    recipes += [{"method": "ties", "rank": 2, "scope": scope, "density": 0.2} for scope in ("layer", "adapter")]
    for merged, recipe in zip(ml.merge_many(loras, recipes), recipes):
        alone = ml.merge(loras, **recipe)
        assert merged.ranks == alone.ranks and difference(merged, alone) < 1e-5, recipe


@pytest.mark.parametrize("held", [1 << 28, 2500, 100])
def test_thresholds_of_a_device(held: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Several of a matrix and none of another; all matrices held at once, some, or the blocks of one."""
    monkeypatch.setattr(thresholds, "HELD", held)
    monkeypatch.setattr(ChangeStack, "blocks", lambda self: [slice(0, 25), slice(25, 40)])
    stacks = [ChangeStack((torch.randn(40, 30), torch.randn(40, 30)), (1.0, 1.0)) for _ in range(2)]
    wanted = [(3, 0.5), (0, 0.25), (0, 0.5), (3, 1.0), (1, 0.1), (3, 0.1)]
    expected = thresholds.layer_thresholds(wanted, stacks, Workspace())
    with monkeypatch.context() as there:
        there.setattr(ChangeStack, "device", torch.device("meta"))
        there.setattr(thresholds, "RadixSearch", lambda counts, sizes, _: RadixSearch(counts, sizes, CPU))
        there.setattr(torch, "empty", lambda *size, device, dtype: torch.zeros(size, dtype=dtype))
        there.setattr(host, "sent", lambda x, device: x)
        assert thresholds.layer_thresholds(wanted, stacks, Workspace()) == expected
    for (i, share), threshold in zip(wanted, expected):
        assert int((stacks[i // 2].matrices[i % 2].abs() >= threshold).sum()) == int(share * 1200)  # type: ignore


class Waits(TorchDispatchMode):
    """Operations that have to know values: where these lie on a GPU, the host waits for it."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(func).removeprefix("aten.").partition(".")[0]
        by_mask = name == "index" and any(x is not None and x.dtype == torch.bool for x in args[1])
        if name in ("_local_scalar_dense", "nonzero", "masked_select", "unique", "equal") or by_mask:
            self.found[name] += 1
        return func(*args, **(kwargs or {}))


# Transfers of one batch: what its values are, roots, coordinates, thresholds, norms, the start, passes, projections.
MOST = 16


@pytest.mark.parametrize(
    ("method", "options"), [m for m in METHODS if m[1].get("scope") is None and m[1].get("space") != "factors"], ids=str
)
def test_the_host_asks_a_handful_of_times(
    method: str, options: dict[str, Any], as_on_a_gpu: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As often for eight layers of a shape as for two; and never by the way."""
    inside, asked = [], Counter[str]()

    def to_host(*tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        asked["transfers"] += 1
        return tensors

    monkeypatch.setattr(host, "to_host", to_host)
    for count in (2, 8):
        shapes = {f"unet.mid_block.attentions.{i}.proj_in": LARGE for i in range(count)}
        loras = [adapter(i, rank=6, shapes=shapes) for i in range(3)]
        asked.clear()
        ml.merge(loras, [1.0, -0.5, 0.7], method, **options)
        inside.append(asked["transfers"])
    assert inside[1] <= inside[0] + 2 <= MOST + 2


def test_nothing_waits_within_blocks(as_on_a_gpu: None) -> None:
    """Forming, counting, drawing, voting: of all that is done to every block nothing has to know a value."""
    from mergelab.engine.blocks import seen_rows

    stacked = ChangeStack((torch.randn(40, 30), torch.randn(40, 30)), (1.0, 1.0))
    with Waits() as waits:
        for method in ("ties", "dare", "dare_ties", "magnitude_prune", "linear"):
            strategy: Any = strategy_of(method, {})
            states = [0.5, 0.5] if "ties" in method or "prune" in method else [None, None]
            chance = batches.LayerChance(0, "layer", (0, 1))
            memory = torch.empty(2, 40, 30)
            for i in range(2):
                seen_rows(strategy, stacked, i, slice(0, 40), states[i], chance, out=memory[i])
            strategy.rule(memory, torch.ones(2))
        thresholds._found([(0, 0.5), (0, 0.7), (1, 0.5)], [stacked])
    assert waits.found == {}


@pytest.mark.parametrize("blocks", [1, 7])
def test_a_radix_search_is_a_sort(blocks: int) -> None:
    """Of values of all sizes, of equal ones, and at both ends."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(6, 700, generator=generator)
    x[1] *= 1e-30
    x[2] = x[2].sign()
    x[3, ::2] = 0.0
    x[4] *= 2.0 ** torch.randint(-120, 120, (700,), generator=generator)
    counts = [350, 1, 350, 400, 699, 0]
    search = RadixSearch(counts, [700] * 6, x.device)
    while search.is_open:
        for part in x.abs().split(700 // blocks, dim=1):
            search.count(range(6), part.contiguous())
        search.narrow()
    ordered = x.abs().sort(dim=1, descending=True).values
    assert search.found.tolist() == [*(float(ordered[i, k - 1]) for i, k in enumerate(counts[:5])), float("inf")]


def test_memory_sets_the_size_of_a_batch() -> None:
    """Layers of one kind together, as many as the budget holds; on a CPU one."""
    shapes = {f"unet.mid_block.attentions.{i}.proj_in": (1280, 1280) for i in range(40)}
    shapes["unet.mid_block.attentions.0.proj_out"] = (640, 1280)
    loras = [adapter(i, rank=4, shapes=shapes) for i in range(2)]
    inputs = tuple(Input(a.name, a, dict.fromkeys(shapes, 1.0)) for a in loras)
    job = Job(strategy_of("ties", {}), 4, inputs, 0, torch.device("cpu"))
    present = dict.fromkeys(shapes, (0, 1))
    sizes = [[len(g.names) for g in groups([job], [present], budget)] for budget in (0, 1, 1 << 28, 8 << 30)]
    assert sizes[0] == sizes[1] == [1] * 41
    assert sizes[3] == [40, 1] and 1 < sizes[2][0] < 40 and sum(sizes[2]) == 41
