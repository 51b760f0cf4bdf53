"""Methods of one's own at each level: the contract holds for them, and what they get wrong is a sentence."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

import mergelab as ml
from mergelab.linalg.draws import EntryDraws
from mergelab.linalg.lowrank import Core, Factors, stack
from mergelab.methods import registry
from mergelab.methods.method import Part
from mergelab.methods.sparsify import Sparsifier, Thresholds
from tests.laws import LAWS, Row
from tests.synthetic import SHAPES, adapter, difference
from tests.test_contract import applies, check

BREAKS = {"twice": "a sum of two equals is twice as much"}
SPACES = ("delta", "core", "knots", "factors")


@dataclass(frozen=True)
class Spectral(ml.MatrixWise):
    """The sum, by way of a decomposition: a rule that has to see whole matrices."""

    breaks: ClassVar[Mapping[str, str]] = BREAKS

    def rule(self, changes: Tensor, weights: Tensor) -> Tensor:
        """Each by its singular values and vectors."""
        parts = [torch.linalg.svd(x.double(), full_matrices=False) for x in changes]
        return sum((w * (u * s) @ v).float() for w, (u, s, v) in zip(weights.tolist(), parts))  # type: ignore[return-value]


@dataclass(frozen=True)
class OfLayers(ml.LayerWise):
    """The sum, returned in one of the three forms."""

    form: str = "factors"
    breaks: ClassVar[Mapping[str, str]] = BREAKS

    def combine(self, parts: Sequence[Part]) -> Any:
        """In double precision, in part."""
        whole = stack([part.weighted for part in parts])
        if self.form == "dense":
            return whole.B.double() @ whole.A.double()
        if self.form == "core":
            (q, r), (p, t) = torch.linalg.qr(whole.B), torch.linalg.qr(whole.A.T)
            return Core(q, r.double() @ t.double().T, p)
        return Factors(whole.B.double(), whole.A)


@pytest.fixture(autouse=True)
def registered() -> Iterator[None]:
    """Forget what a test registers."""
    before = dict(registry._REGISTERED)
    ml.register("spectral")(Spectral)
    ml.register("of_layers")(OfLayers)
    yield
    registry._REGISTERED.clear()
    registry._REGISTERED.update(before)


ROWS = [Row("spectral"), *(Row("of_layers", {"form": form}) for form in ("factors", "dense", "core"))]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_every_level_obeys_the_laws(row: Row, tmp_path: Path) -> None:
    """All of them, where there is such a method."""
    there = [space for space in SPACES if row.exists(space)]
    assert there == (["delta"] if row.method == "of_layers" else list(SPACES))
    for law in LAWS:
        for space in there if law != "order" else there[:1]:
            if applies(law, row, space):
                (tmp_path / law / space).mkdir(parents=True)
                check(law, row, space, tmp_path / law / space)


def test_a_rule_of_ones_own_is_never_a_sum_in_silence() -> None:
    """Derived from a sum, scaled, or both."""

    @dataclass(frozen=True)
    class Half(ml.Linear):
        def rule(self, changes: Tensor, weights: Tensor) -> Tensor:
            return 0.5 * (changes * weights.view(-1, *[1] * (changes.dim() - 1))).sum(dim=0)

    @dataclass(frozen=True)
    class Double(ml.Linear):
        output_scale = 2.0  # type: ignore[assignment]

    @dataclass(frozen=True)
    class Mean(ml.Svd):
        def combine(self, parts: Sequence[Part]) -> Factors:
            return super().combine(parts).scaled(1 / len(parts))

    @dataclass(frozen=True)
    class Triple(ml.Svd):
        output_scale = 3.0  # type: ignore[assignment]

    loras = [adapter(1), adapter(2)]
    expected = ml.merge(loras, rank="sum")
    for method, factor in ((Half(), 0.5), (Double(), 2.0), (Mean(), 0.5), (Triple(), 3.0)):
        for space in method.spaces[:3]:
            found = ml.merge(loras, method=method, space=space, rank="sum")
            assert difference(found, factor * expected) < 1e-5, (method, space)


def test_factors_that_are_stored_have_their_own_rank() -> None:
    """Another is refused, not ignored."""

    @dataclass(frozen=True)
    class Kept(OfLayers):
        stores_factors: ClassVar[bool] = True
        default_rank: ClassVar[str] = "sum"

    assert set(ml.merge([adapter(1), adapter(2)], method=Kept()).ranks.values()) == {8}
    with pytest.raises(ml.OptionError, match=r"Kept stores its factors .* found rank=1"):
        ml.merge([adapter(1), adapter(2)], method=Kept(), rank=1)


@dataclass(frozen=True)
class Lazy(Sparsifier):
    """Knows one state too few."""

    density: float = 0.5

    def prepare(self, thresholds: Thresholds) -> Sequence[float]:
        """Of all but the last."""
        return thresholds(self.density)[:-1]

    def apply(self, x: Tensor, prepared: Any, draws: EntryDraws, rows: slice) -> Tensor:
        """Nothing."""
        return x

    def as_peft(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """Nothing."""
        return x


def test_no_adapter_is_left_out_by_a_sparsifier() -> None:
    """One state for each, or an error; and methods of layers have none."""

    @dataclass(frozen=True)
    class Careless(ml.Linear):
        sparsifier = Lazy()  # type: ignore[assignment]

    with pytest.raises(ml.OptionError, match="returned 1 states, expected one for each of 2 adapters"):
        ml.merge([adapter(1), adapter(2)], method=Careless())

    @dataclass(frozen=True)
    class Dropping(OfLayers):
        sparsifier = Lazy()  # type: ignore[assignment]

    with pytest.raises(ml.OptionError, match="Dropping sees whole layers as factors"):
        Dropping()


WRONG: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "a row": lambda changes, weights: changes[0][:1],
    "a number": lambda changes, weights: changes.sum(),
    "a column": lambda changes, weights: changes[0][:, :1],
    "nothing": lambda changes, weights: None,
    "a tuple": lambda changes, weights: (changes[0], changes[1]),
}


@pytest.mark.parametrize("name", WRONG)
@pytest.mark.parametrize("space", SPACES)
def test_what_a_rule_returns_is_checked(name: str, space: str) -> None:
    """The layer, the method, what it returned and what was expected."""
    shapes = {n: s for n, s in SHAPES.items() if "mid_block" in n}
    ml.register("wrong")(WRONG[name])
    with pytest.raises(ml.LayerError, match=r"layer unet\.mid_block.*: method 'wrong' returned .* expected the merged"):
        ml.merge([adapter(1, shapes=shapes), adapter(2, rank=5, shapes=shapes)], method="wrong", space=space)


def test_what_a_method_of_layers_returns_is_checked() -> None:
    """Half precision is as good as any; another shape is not."""

    @dataclass(frozen=True)
    class Odd(ml.LayerWise):
        make: Any = None

        def combine(self, parts: Sequence[Part]) -> Any:
            return self.make(parts[0].weighted)

    x = adapter(1)
    for make in (lambda c: c.delta().bfloat16(), lambda c: Factors(c.B.bfloat16(), c.A.half())):
        assert difference(ml.merge([x], method=Odd(make), rank=2), x.resize(2)) < 0.05
    for make in (lambda c: c.delta().T, lambda c: None, lambda c: Factors(c.B[1:], c.A), lambda c: [c.delta()]):
        with pytest.raises(ml.LayerError, match="expected the merged change of shape"):
            ml.merge([x], method=Odd(make))


def test_functions_of_all_kinds() -> None:
    """With options that have defaults, partial, callable objects; and what none of these is."""

    def scaled(changes: Tensor, weights: Tensor, alpha: float = 0.5) -> Tensor:
        return alpha * (changes * weights[:, None, None]).sum(dim=0)

    class Rule:
        def __call__(self, changes: Tensor, weights: Tensor) -> Tensor:
            return scaled(changes, weights)

    loras = [adapter(1), adapter(2)]
    expected = ml.merge(loras, rank=1000)
    ml.register("scaled")(scaled)
    ml.register("part")(functools.partial(scaled, alpha=1.0))
    ml.register("called")(Rule())
    for name, factor in (("scaled", 0.5), ("part", 1.0), ("called", 0.5)):
        assert difference(ml.merge(loras, method=name, rank=1000), factor * expected) < 2e-5
    with pytest.raises(ml.OptionError, match="expected a function or a class, found int"):
        ml.register("three")(3)  # type: ignore[type-var]
    with pytest.raises(ml.OptionError, match="NoLevel has no level"):
        ml.register("level")(type("NoLevel", (ml.Strategy,), {}))

    class Bare(Spectral):
        strength: float = 1.0

    with pytest.raises(ml.OptionError, match="Bare has options and is no dataclass"):
        ml.register("bare")(Bare)


def test_options_that_cannot_be() -> None:
    """A missing one, one out of its choices, one that the class itself refuses."""

    @ml.register("needs")
    @dataclass(frozen=True)
    class Needs:
        k: int

        def __post_init__(self) -> None:
            if self.k < 0:
                raise ValueError("k is negative")

        def __call__(self, changes: Tensor, weights: Tensor) -> Tensor:
            return self.k * changes[0]

    for options, sentence in (({}, "cannot be made with"), ({"k": -1}, "k is negative"), ({"j": 1}, "no option 'j'")):
        with pytest.raises(ml.OptionError, match=sentence):
            ml.merge([adapter(1)], method="needs", **options)


@dataclass(frozen=True)
class CoreOnly(ml.EntryWise):
    """Exists in one space."""

    spaces: ClassVar[tuple[str, ...]] = ("core",)
    space: str = field(default="core", kw_only=True)

    def rule(self, changes: Tensor, weights: Tensor) -> Tensor:
        """The first."""
        return changes[0] * weights[0]


def test_a_method_of_one_space_has_biases_too() -> None:
    """They are merged there."""
    bias = "unet.mid_block.attentions.0.proj_out.lora_B.bias"
    x = ml.Adapter(adapter(1).layers, {bias: torch.arange(16.0)}, source="x")
    merged = ml.merge([x], [0.5], CoreOnly())
    assert torch.allclose(merged.extras[bias], 0.5 * torch.arange(16.0), atol=1e-6)


def test_the_default_dtype_of_torch_changes_nothing() -> None:
    """Arithmetic is float32 where it is said to be."""
    loras = [adapter(1), adapter(2)]
    expected = {space: ml.merge(loras, method="ties", space=space) for space in SPACES}
    torch.set_default_dtype(torch.float64)
    try:
        for space in SPACES:
            assert difference(ml.merge(loras, method="ties", space=space), expected[space]) < 1e-5
    finally:
        torch.set_default_dtype(torch.float32)


def test_draws_do_not_depend_on_the_weights() -> None:
    """Of one adapter, whatever the others weigh; nor on the order, also among equal adapters."""
    x, y = adapter(1), adapter(2)
    name = next(iter(SHAPES))

    def dropped(weights: list[float]) -> Tensor:
        merged = ml.merge([x, 1e-6 * y], weights, "dare", density=0.5, rank=1000)
        return merged.layers[name].delta_weight().abs() < 1e-3

    assert torch.equal(dropped([1.0, 1.0]), dropped([1.0, -1.0]))
    one = ml.merge([x, x, y], [0.7, -1.3, 1.0], "dare", rank=1000)
    assert difference(ml.merge([y, x, x], [1.0, -1.3, 0.7], "dare", rank=1000), one) < 1e-5


def test_ties_of_peft_are_ties_too() -> None:
    """Outside of its own arithmetic: a change and its negative, factored otherwise, elect +, not their rounding."""
    x = adapter(1)
    g = torch.linalg.qr(torch.randn(4, 4, generator=torch.Generator().manual_seed(0))).Q
    layers = {
        n: ml.LoraLayer(
            (g.T @ a.lora_A.flatten(1)).reshape(a.lora_A.shape), -(a.lora_B.flatten(1) @ g).reshape(a.lora_B.shape)
        )
        for n, a in x.layers.items()
    }
    plain = ml.merge([x, -x], method="ties", variant="peft", density=1.0, rank=1000)
    other = ml.merge([x, ml.Adapter(layers)], method="ties", variant="peft", density=1.0, rank=1000)
    assert difference(other, plain) < 0.05
