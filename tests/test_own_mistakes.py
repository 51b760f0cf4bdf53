"""What can be wrong with a method of one's own: refused when it is registered, or named where it fails."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, make_dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from typer.main import get_command

import mergelab as ml
from mergelab import cli
from mergelab.cli.app import app
from mergelab.linalg.draws import EntryDraws
from mergelab.methods import registry
from mergelab.methods.own import RESERVED, SHARED
from mergelab.methods.sparsify import Sparsifier
from tests.refusing import Refused
from tests.synthetic import SHAPES, adapter, difference

LAYER = next(name for name in SHAPES if "mid_block" in name)
X, Y = (adapter(seed, shapes={LAYER: SHAPES[LAYER]}) for seed in (1, 2))


@pytest.fixture(autouse=True)
def registered() -> Iterator[None]:
    """Forget what a test registers."""
    before = dict(registry._REGISTERED)
    yield
    registry._REGISTERED.clear()
    registry._REGISTERED.update(before)


class Empty:
    """No function."""


class Silent:
    """Of instances that take nothing."""

    def __call__(self) -> None: ...


class Optioned:
    """With an option, and no dataclass."""

    def __init__(self, strength: float) -> None:
        self.strength = strength

    def __call__(self, changes: Tensor, weights: Tensor) -> Tensor:
        return self.strength * changes[0]


@dataclass(frozen=True)
class Narrow(ml.EntryWise):
    """Whose rule gets no weights."""

    def rule(self, changes: Tensor) -> Tensor:  # type: ignore[override]
        """The first."""
        return changes[0]


@dataclass(frozen=True)
class Trimmed(ml.Linear):
    """Whose sparsifier is a word."""

    sparsifier = "trim"  # type: ignore[assignment]


@dataclass(frozen=True)
class Named(ml.Linear):
    """Whose sparsifier is a word, in the end."""

    @property
    def sparsifier(self) -> Any:
        """A word."""
        return "trim"


@dataclass(frozen=True)
class Fussy:
    """That does not like its own default."""

    strength: float = -1.0

    def __post_init__(self) -> None:
        if self.strength < 0:
            raise ValueError("strength is negative")

    def __call__(self, changes: Tensor, weights: Tensor) -> Tensor:
        return changes[0]


@pytest.mark.parametrize(
    ("rule", "sentence"),
    [
        (lambda: 1, r"expected a function \(changes, weights\)"),
        (lambda changes: 1, r"expected a function \(changes, weights\)"),
        (lambda changes, weights, generator, more: 1, r"expected a function \(changes, weights\)"),
        (3, "expected a function or a class, found int"),
        (Empty, "instances of Empty are no functions: give it __call__"),
        (Silent, r"Silent.__call__: expected a function \(changes, weights\)"),
        (Optioned, "Optioned has options and is no dataclass"),
        (Narrow, r"Narrow.rule: expected the arguments \(self, changes, weights\)"),
        (Trimmed, "Trimmed.sparsifier: expected a Sparsifier or None, found 'trim'"),
        (Named, "Named cannot be made with its defaults: Named.sparsifier: expected a Sparsifier or None"),
        (Fussy, "Fussy cannot be made with its defaults: strength is negative"),
    ],
)
def test_what_is_no_method(rule: Any, sentence: str) -> None:
    """One sentence at `register`, not in the middle of a merge."""
    with pytest.raises(ml.OptionError, match=f"method 'wrong': {sentence}"):
        ml.register("wrong")(rule)
    assert "wrong" not in registry.method_names()


def test_a_method_without_a_name() -> None:
    """The parentheses that are missing are shown."""
    with pytest.raises(ml.OptionError, match=r"as in @mergelab.register\('mine'\)"):

        @ml.register  # type: ignore[arg-type]
        def bare(changes: Tensor, weights: Tensor) -> Tensor:
            return changes[0]


@pytest.mark.parametrize("option", sorted(RESERVED - {"import", "for"}))
def test_options_that_merge_has_itself(option: str) -> None:
    """Of a plain dataclass and of one that derives from a level."""
    namespace = {"__call__": lambda self, changes, weights: changes[0]}
    for base in ((), (ml.Linear,)):
        if base and option in ("space", "basis"):
            continue  # a method of one space says so
        rule = make_dataclass("Rule", [(option, int, 1)], bases=base, namespace=namespace, frozen=True)
        with pytest.raises(ml.OptionError, match=f"Rule cannot have an option '{option}', which merge has itself"):
            ml.register("wrong")(rule)


def test_everything_that_merge_has_itself_is_reserved() -> None:
    """Arguments of `merge` in Python, and options of `mergelab merge` that are no method's."""
    in_python = set(inspect.signature(ml.merge).parameters) - {"options"}
    parameters = get_command(app).commands["merge"].params  # type: ignore[attr-defined]
    flags = {flag.removeprefix("--").replace("-", "_") for p in parameters for flag in p.opts if flag.startswith("--")}
    of_methods = {name for method in registry.METHODS for name in registry.options_of(method)}
    assert ((in_python | flags) - of_methods) | {"help"} == RESERVED - SHARED


def test_errors_of_a_rule(tmp_path: Path, refused: Refused) -> None:
    """The method, the layer and what Python said; no report is asked for what is the user's own."""

    @ml.register("slip")
    def slip(changes: Tensor, weights: Tensor) -> Tensor:
        return undefined * changes[0]  # type: ignore[name-defined]  # noqa: F821

    @ml.register("nan")
    def nan(changes: Tensor, weights: Tensor) -> Tensor:
        return changes[0] * torch.nan

    @dataclass(frozen=True)
    class Falling(ml.LayerWise):
        def combine(self, parts: Sequence[Any]) -> Any:
            raise torch.linalg.LinAlgError("no convergence")  # type: ignore[attr-defined]

    for method, sentence in (
        ("slip", f"method 'slip' failed in layer {LAYER}: NameError: name 'undefined' is not defined"),
        ("nan", f"layer {LAYER}: method 'nan' returned values that are NaN"),
        (Falling(), f"method 'Falling' failed in layer {LAYER}: _LinAlgError: no convergence"),
    ):
        with pytest.raises(ml.LayerError) as caught:
            ml.merge([X, Y], method=method)  # type: ignore[arg-type]
        assert sentence in str(caught.value) and " at 0x" not in str(caught.value)
    X.save(tmp_path / "x.safetensors")
    refused(
        "merge", tmp_path / "x.safetensors", "-o", tmp_path / "out.safetensors", "--method", "slip", needles=["slip"]
    )


def test_a_rule_that_writes_into_what_it_gets() -> None:
    """Changes and weights are its own, whatever the block."""

    @dataclass(frozen=True)
    class Greedy(ml.EntryWise):
        def rule(self, changes: Tensor, weights: Tensor) -> Tensor:
            return changes.mul_(weights.mul_(0.5).view(-1, *[1] * (changes.dim() - 1))).sum(dim=0)

    big = [adapter(seed, shapes={LAYER: (3000, 1000)}) for seed in (1, 2)]
    found = ml.merge(big, method=Greedy(), rank=8)
    assert difference(found, 0.5 * ml.merge(big, rank=8)) < 1e-4


@dataclass(frozen=True)
class Returning(Sparsifier):
    """Whose result is what `make` makes of the rows."""

    density: float = 1.0
    make: Any = None

    def apply(self, x: Tensor, prepared: Any, draws: EntryDraws, rows: slice) -> Tensor:
        """As it says."""
        return self.make(x)

    def as_peft(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """As it says."""
        return self.make(x)


@dataclass(frozen=True)
class Sparse(ml.Linear):
    """The sum of what a function leaves."""

    make: Any = None

    @property
    def sparsifier(self) -> Sparsifier:
        """By that function."""
        return Returning(make=self.make)


@pytest.mark.parametrize("space", ["delta", "core", "factors"])
def test_what_a_sparsifier_returns(space: str) -> None:
    """Counts, in place or not; nothing, or another shape, is an error that names it."""
    expected = ml.merge([X, Y], method="linear", space=space, rank=1000)
    factor = 0.25 if space == "factors" else 0.5
    for make in (lambda x: 0.5 * x, lambda x: x.mul_(0.5)):
        found = ml.merge([X, Y], method=Sparse(make=make, space=space), rank=1000)
        assert difference(found, factor * expected) < 1e-5
    for make, what in ((lambda x: None, "a NoneType"), (lambda x: x[:1], "one of shape"), (lambda x: 1 / 0, "")):
        with pytest.raises(ml.LayerError, match=f"method 'Sparse'.*returned {what}" if what else "ZeroDivisionError"):
            ml.merge([X, Y], method=Sparse(make=make, space=space))


def test_a_name_that_nobody_registered(tmp_path: Path, refused: Refused) -> None:
    """The sentence says where methods of one's own come from."""
    X.save(tmp_path / "x.safetensors")
    arguments = ("merge", tmp_path / "x.safetensors", "-o", tmp_path / "out.safetensors")
    refused(*arguments, "--method", "nobodys_rule", needles=["there is no method 'nobodys_rule'", "--import FILE.py"])
    refused(*arguments, "--import", tmp_path / "nope.py", needles=["--import", "nope.py: there is no such file"])
    assert cli.run([str(part) for part in arguments]) == 0
