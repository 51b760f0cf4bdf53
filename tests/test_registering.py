"""Methods by name, by value, and of a user's own."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

import mergelab as ml
from mergelab.cli import run
from mergelab.methods import registry as methods
from tests.synthetic import adapter, difference


@pytest.fixture
def registry() -> Iterator[None]:
    """Forget what a test registers."""
    before = dict(methods._REGISTERED)
    yield
    methods._REGISTERED.clear()
    methods._REGISTERED.update(before)


@pytest.mark.parametrize("space", ["delta", "core", "knots", "factors"])
def test_a_registered_rule_works_by_name_everywhere(space: str, registry: None) -> None:
    """A dataclass with options or a plain function; unweighted changes and weights reach it."""

    @ml.register("scaled_sum")
    @dataclass(frozen=True)
    class ScaledSum:
        """A sum, times a factor."""

        factor: float = 1.0

        def __call__(self, changes: torch.Tensor, weights: torch.Tensor, generator: Any) -> torch.Tensor:
            assert changes.dim() == 3 and weights.shape == (2,)
            return self.factor * (changes * weights[:, None, None]).sum(dim=0)

    @ml.register("plain_sum")
    def plain_sum(changes: torch.Tensor, weights: torch.Tensor, generator: Any) -> torch.Tensor:
        return (changes * weights[:, None, None]).sum(dim=0)

    loras, weights = [adapter(21), adapter(22)], [0.5, -0.7]
    expected = ml.merge(loras, weights, "linear", space=space, rank=1000)
    assert difference(ml.merge(loras, weights, "plain_sum", space=space, rank=1000), expected) < 2e-5
    half = ml.merge(loras, weights, "scaled_sum", factor=0.5, space=space, rank=1000)
    scale = 0.25 if space == "factors" else 0.5
    assert difference(half, scale * expected) < 2e-5
    with pytest.raises(ml.OptionError, match=r"no option 'density'; known: factor=1.0"):
        ml.merge(loras, weights, "scaled_sum", density=0.5)
    with pytest.raises(ml.OptionError, match="taken"):
        ml.register("ties")


def test_a_rule_from_a_file_on_the_command_line(
    tmp_path: Path, registry: None, capsys: pytest.CaptureFixture[str]
) -> None:
    """`--import FILE.py --method NAME --option VALUE`."""
    (tmp_path / "mine.py").write_text(
        "import mergelab as ml\nfrom dataclasses import dataclass\n"
        "@ml.register('mine')\n@dataclass(frozen=True)\nclass Mine:\n    factor: float = 1.0\n"
        "    def __call__(self, changes, weights, generator):\n        return self.factor * changes[0]\n"
    )
    x = ml.Adapter(adapter(23).layers, architecture="sd15", source="x")
    x.save(tmp_path / "x.safetensors")
    arguments = ["merge", str(tmp_path / "x.safetensors"), "-o", str(tmp_path / "out.safetensors")]
    arguments += ["--import", str(tmp_path / "mine.py"), "--method", "mine", "--factor", "-2"]
    assert run(arguments) == 0, capsys.readouterr().err
    assert difference(ml.load(tmp_path / "out.safetensors"), -2 * x) < 1e-5


def test_strategies_are_values() -> None:
    """A strategy instance can be given in place of a name; options then replace its own."""
    loras = [adapter(24), adapter(25)]
    by_name = ml.merge(loras, method="ties", density=0.3, space="core")
    by_value = ml.merge(loras, method=ml.Ties(density=0.3, space="core"))
    replaced = ml.merge(loras, method=ml.Ties(density=0.9), density=0.3, space="core")
    assert difference(by_name, by_value) == difference(by_name, replaced) == 0.0
    assert ml.Ties(0.3).density == 0.3 and ml.Ties(density=0.3) == ml.Ties(density=0.3)


def test_the_recipe_does_not_depend_on_addresses(registry: None) -> None:
    """A rule is recorded by its name; a strategy by the name of its method."""
    ml.register("plain")(lambda changes, weights, generator: changes[0])
    recipe = json.loads(ml.merge([adapter(40)], method="plain").metadata["mergelab"])
    assert " at 0x" not in json.dumps(recipe)
    assert json.loads(ml.merge([adapter(40)], method=ml.Ties()).metadata["mergelab"])["method"] == "ties"


def test_a_name_that_is_registered_again_is_replaced(registry: None) -> None:
    """As in a cell of a notebook that is run twice, under either name of `register`; a built-in name is taken."""
    loras = [adapter(40), adapter(41)]
    for factor in (1.0, 2.0):
        ml.register_method("times")(lambda changes, weights, factor=factor: factor * changes.sum(dim=0))
        merged = ml.merge(loras, method="times", rank=1000)
        assert difference(merged, factor * (loras[0] + loras[1])) < 2e-5
    for name in ("ties", "dare_linear"):
        with pytest.raises(ml.OptionError, match="is taken"):
            ml.register(name)
