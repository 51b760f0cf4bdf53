"""What Optuna may choose: told from the configuration, refused before anything starts, asked of a trial."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest

from mergelab.errors import OptionError
from mergelab.tuning.candidate import Scene
from mergelab.tuning.groups import Groups, groups_of
from mergelab.tuning.objectives import checked_objectives
from mergelab.tuning.space import Space, space_of
from mergelab.tuning.suggesting import candidate_of, usual_parameters

LAYERS = {
    "ghost": ["unet.down_blocks.1.q", "unet.mid_block.q", "unet.up_blocks.0.q", "text_encoder.q"],
    "day": ["unet.down_blocks.1.q", "unet.up_blocks.0.q"],
}
USUAL = {"ghost": 1.0, "day": 0.8}


@dataclass
class First:
    """A trial that takes what it is told, else the first of a choice and the low end of a range."""

    told: Mapping[str, Any] = field(default_factory=dict)
    params: dict[str, Any] = field(default_factory=dict)

    def _took(self, name: str, value: Any) -> Any:
        self.params[name] = self.told.get(name, value)
        return self.params[name]

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        assert self.told.get(name, choices[0]) in choices
        return self._took(name, choices[0])

    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1, log: bool = False) -> int:
        return self._took(name, low)

    def suggest_float(
        self, name: str, low: float, high: float, *, step: float | None = None, log: bool = False
    ) -> float:
        return self._took(name, low)


def space(given: dict[str, Any], fixed: dict[str, Any] | None = None, by: Any = "none") -> Space:
    """Of two adapters."""
    return space_of(given, {} if fixed is None else fixed, USUAL, grouped(by), LAYERS)


def grouped(by: Any) -> Groups:
    """As the configuration asks."""
    return groups_of((layer for own in LAYERS.values() for layer in own), by)


@pytest.mark.parametrize(
    ("weights", "by", "names"),
    [
        ([0.5, 1.3], "none", ["ghost", "day"]),
        ([0.5, 1.3], "blocks", ["ghost down", "ghost mid", "ghost up", "day down", "day up"]),
        ([0.5, 1.3], "components", ["ghost unet", "ghost text_encoder", "day"]),
        ({"low": 0.5, "high": 1.5, "step": 0.25}, "none", ["ghost", "day"]),
        ([0.5, 1.0, 1.5], "none", ["ghost", "day"]),
        ({"ghost": [0.5, 1.3]}, "none", ["ghost"]),
        ({"day": {"unet.up_blocks.*": [0.5, 1.3]}, "ghost": [0, 1]}, "none", ["day unet.up_blocks.*", "ghost"]),
    ],
)
def test_weights_are_searched_by_adapter_group_or_pattern(weights: Any, by: Any, names: list[str]) -> None:
    """A pair is a range; an adapter has the groups that it has layers of."""
    assert [one.name for one in space({"weights": weights}, by=by).weights] == names


def test_weights_of_groups_and_patterns_are_pattern_weights() -> None:
    """What is in no group has the mean, what matches no pattern the usual weight."""
    trial = First({"ghost down": 0.5, "ghost mid": 1.0, "ghost up": 1.5})
    found = candidate_of(space({"weights": {"ghost": [0.5, 1.5]}}, by="blocks"), trial, "trial 1")
    assert found.weights == {
        "ghost": {"*": 1.0, "unet.down_blocks": 0.5, "unet.mid_block": 1.0, "unet.up_blocks": 1.5},
        "day": 0.8,
    }
    trial = First({"day unet.up_blocks.*": 1.1})
    found = candidate_of(space({"weights": {"day": {"unet.up_blocks.*": [0.5, 1.5]}}}), trial, "trial 1")
    assert found.weights["day"] == {"*": 0.8, "unet.up_blocks.*": 1.1}


def test_an_option_is_suggested_to_the_methods_that_have_it() -> None:
    """So are a rank and what is fixed."""
    known = space(
        {"method": ["svd", "ties", "cat"], "density": {"low": 0.2, "high": 0.9}, "rank": {"low": 4, "high": 32}},
        {"majority_sign": "frequency", "rank": "max", "seed": 3},
    )
    asked = {name: candidate_of(known, First({"method": name}), "trial 1").merge for name in known.methods}
    assert asked == {
        "svd": {"method": "svd", "seed": 3, "rank": 4},
        "ties": {"method": "ties", "majority_sign": "frequency", "seed": 3, "density": 0.2, "rank": 4},
        "cat": {"method": "cat", "seed": 3},
    }


def test_an_option_that_exists_in_one_space_is_suggested_there() -> None:
    """The basis is another parameter where it is no choice."""
    known = space({"method": ["ties"], "basis": ["changes", "factors"], "space": ["delta", "core"]})
    inside, outside = First({"space": "core", "basis": "factors"}), First({"space": "delta"})
    assert candidate_of(known, inside, "").merge == {"method": "ties", "space": "core", "basis": "factors"}
    assert candidate_of(known, outside, "").merge == {"method": "ties", "space": "delta", "basis": "changes"}
    assert list(outside.params) == ["space"]


def test_an_adapter_may_be_called_as_an_option_is() -> None:
    """Its weight then says that it is one."""
    known = space_of({"weights": [0.5, 1.0], "rank": [4, 8]}, {}, {"rank": 1.0, "day": 1.0}, grouped("none"), {})
    assert [one.name for one in known.weights] == ["weight of rank", "day"]
    assert usual_parameters(known) == {"weight of rank": 1.0, "day": 1.0}


def test_a_search_begins_near_the_plain_sum() -> None:
    """On the grid of a step, within a range, with the method that is a sum."""
    given = {"weights": {"ghost": [0.4, 0.9], "day": {"low": 0.5, "high": 1.4, "step": 0.4}}, "method": ["dare", "svd"]}
    known = space({**given, "rank": {"low": 4, "high": 30, "step": 4}})
    assert usual_parameters(known) == {"ghost": 0.9, "day": 0.9, "method": "svd", "rank": 28}


@pytest.mark.parametrize(
    ("given", "fixed", "sentence"),
    [
        ({}, {}, "space: nothing is searched; expected what may be chosen"),
        ({"densty": [0.5]}, {"method": "ties"}, "space: method 'ties' has no option 'densty'; did you mean 'density'"),
        ({"density": [0.5]}, {"method": "svd"}, "space: method 'svd' has no option 'density'; known: rank, seed"),
        ({"method": ["svd", "cat"], "density": [0.5]}, {}, "none of the methods svd, cat has no option"),
        ({"rank": [4, 8]}, {"method": "cat"}, "space: method 'cat' has no option 'rank'"),
        ({"method": ["svdd"]}, {}, "there is no method 'svdd'; did you mean 'svd'?"),
        ({"method": {"low": 1, "high": 2}}, {}, "method: {'low': 1, 'high': 2}: expected names out of linear, cat"),
        ({"method": [3]}, {}, r"method: \[3\]: expected names out of linear, cat"),
        ({"rank": {"low": 8, "high": 4}}, {}, "space: rank: low=8 and high=4: the range is empty"),
        ({"rank": {"low": 0, "high": 4}}, {}, "space: rank=0: expected an integer of at least 1"),
        ({"rank": ["most"]}, {}, "space: rank='most': expected an integer of at least 1"),
        ({"rank": 8}, {}, "space: rank=8: expected a list of values, or a range .*; one value alone belongs"),
        ({"rank": []}, {}, "space: rank: the list of values is empty"),
        ({"rank": {"low": 4}}, {}, "space: rank: a range needs 'high'"),
        ({"rank": {"low": 4, "high": 8, "stp": 2}}, {}, "space: rank: a range has no 'stp'; did you mean 'step'?"),
        ({"rank": {"low": 4, "high": 8, "step": 5}}, {}, "space: rank: step=5: expected more than 0"),
        ({"rank": {"low": 4, "high": "x"}}, {}, "space: rank: high='x': expected a number"),
        ({"rank": {"low": 4, "high": 8, "log": 1}}, {}, "space: rank: log=1: expected true or false"),
        ({"rank": {"low": 4, "high": 8, "log": True, "step": 2}}, {}, "a range by the logarithm has no step"),
        ({"weights": {"low": 0, "high": 1, "log": True}}, {}, "weights of ghost: low=0: log needs one above 0"),
        ({"rank": [[4]]}, {}, r"space: rank: \[4\]: expected a number, a text or true or false"),
        ({"seed": [0.5]}, {}, "space: seed=0.5: expected a whole number"),
        ({"density": {"low": 0, "high": 1}}, {"method": "ties"}, "space: density is the share of entries kept"),
        ({"space": ["delta", "cor"]}, {}, "space: space='cor': expected one of"),
        ({"weights": [0.5, "x", 1]}, {}, "space: weights of ghost: 'x': expected a number"),
        ({"weights": {"gost": [0, 1]}}, {}, "there is no adapter 'gost'; did you mean 'ghost'?"),
        ({"weights": {"day": {"unet.mid*": [0, 1]}}}, {}, "day: the weight for 'unet.mid.*' matches no layer"),
        ({"weights": 0.5}, {}, "space: weights of ghost=0.5: expected a list of values, or a range .*, or its"),
        ({"weights": [0, 1]}, {"weights": [1, 1]}, None),
        ({"rank": [4]}, {"weights": [1, 1]}, "merge: weights: they stand with the adapters"),
        ({"weights": [0, 1]}, {"density": 0.5}, "merge: method 'svd' has no option 'density'"),
        ({"weights": [0, 1]}, {"rank": "x"}, "merge: rank='x'"),
    ],
)  # fmt: skip
def test_what_cannot_be_searched_is_refused_in_a_sentence(given: Any, fixed: Any, sentence: str | None) -> None:
    """Before anything starts."""
    if sentence is None:
        assert space(given, fixed).weights
        return
    with pytest.raises(OptionError, match=sentence):
        space(given, fixed)


def test_objectives_are_told_by_scenes() -> None:
    """Or refused."""
    scenes = [Scene("both", frozenset(USUAL), 0)]
    assert checked_objectives(["score", "bytes", "recovery:day"], list(USUAL), scenes)
    for given, sentence in {
        "scor": "objectives: 'scor': did you mean 'score'?",
        "preservation": "objectives: plain: no prompt tells it; add prompts that call none",
        "recovery:dya": "did you mean 'recovery:day'?",
    }.items():
        with pytest.raises(OptionError, match=sentence):
            checked_objectives([given], list(USUAL), scenes)
    with pytest.raises(OptionError, match="bytes stands there twice"):
        checked_objectives(["bytes", "bytes"], list(USUAL), scenes)


def test_what_keeps_its_weight_is_searched_by_name_alone() -> None:
    """As an adapter for few steps, beside a range for all."""
    usual, none = USUAL | {"turbo": 1.0}, groups_of([], "none")
    for_all = space_of({"weights": [0.5, 1.5]}, {}, usual, none, {}, ["turbo"])
    named = space_of({"weights": {"turbo": [0.9, 1.1]}}, {}, usual, none, {}, ["turbo"])
    assert [one.name for one in for_all.weights] == ["ghost", "day"]
    assert [one.name for one in named.weights] == ["turbo"]
