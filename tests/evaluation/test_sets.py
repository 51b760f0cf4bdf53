"""Sets of adapters, their prompts, and the merges that axes span."""

from __future__ import annotations

from typing import Any

import pytest

import mergelab as ml
from mergelab.evaluation import plan, read
from mergelab.evaluation.config import Config
from mergelab.evaluation.recipes import recipes
from mergelab.evaluation.sets import adapter_sets

GHOST, FISH, DAY, SEA = (f"miniature/sdxl/{name}" for name in ("ghost", "fish", "day", "sea"))
PAIRS: dict[str, Any] = {
    "pipeline": "miniature/sdxl",
    "pairs": {"subjects": [GHOST, FISH], "styles": [DAY, SEA]},
    "prompts": ["a {subject.trigger} on gray {style.concept}", "{concept} on white", "a red square"],
    "merges": [{"method": "cat"}],
}


def drawn(config: Config) -> dict[str, dict[str, set[str]]]:
    """Set -> prompt -> what it calls."""
    return {one.name: {prompt.text: set(prompt.calls) for prompt in one.prompts} for one in adapter_sets(config)}


def test_pairs_with_templates() -> None:
    """Every combination is a set; a template is written for each; a bare field gives a prompt for each adapter."""
    config = read(PAIRS)
    assert config.sets == [{"subject": s, "style": t} for s in ("ghost", "fish") for t in ("day", "sea")]
    assert config == read(config) and config.pairs is None
    found = drawn(config)
    assert list(found) == ["ghost+day", "ghost+sea", "fish+day", "fish+sea"]
    assert found["fish+day"] == {
        "a qrv on gray in szn style": {"subject", "style"},
        "a qrv on white": {"subject"},
        "in szn style on white": {"style"},
        "a red square": set(),
    }


def test_sets_by_hand() -> None:
    """With roles, without, with a name, with the roles that adapters bring; one set keeps their names."""
    loras = [{"path": GHOST, "role": "subject"}, {"path": DAY, "role": "style"}, SEA]
    base = {**PAIRS, "pairs": None, "loras": loras, "prompts": ["a sks in szn style"]}
    sets = adapter_sets(
        read(base | {"sets": [{"name": "mine", "a": "ghost", "b": "day"}, ["ghost", "day"], ["day", SEA]]})
    )
    assert [(one.name, list(one.adapters)) for one in sets] == [
        ("mine", ["a", "b"]), ("ghost+day", ["subject", "style"]), ("day+sea", ["adapter 1", "adapter 2"]),
    ]  # fmt: skip
    (only,) = adapter_sets(read(base | {"sets": [{"subject": "ghost", "style": "day"}], "prompts": PAIRS["prompts"]}))
    assert list(only.adapters) == ["ghost", "day"] and only.prompts[0].calls == {"ghost", "day"}
    assert only.prompts[0].text == "a sks on gray in szn style"
    (usual,) = adapter_sets(read(base | {"loras": loras[:2], "prompts": ["a {ghost.trigger} {style.concept}"]}))
    assert usual.prompts[0].text == "a sks in szn style"


def test_distractors_are_drawn_once_and_for_all() -> None:
    """Each target with so many others, never itself, no set twice; the same for the same seed, and written down."""
    asked = {"targets": [GHOST, FISH], "others": [GHOST, FISH, DAY, SEA], "count": 2, "sets": 3, "seed": 1}
    config = read({**PAIRS, "pairs": None, "distractors": asked, "prompts": ["a photo of {target.trigger}"]})
    assert config.sets == read({**PAIRS, "pairs": None, "distractors": asked, "prompts": ["a"]}).sets
    sets = adapter_sets(config)
    assert len(sets) == 6 and all(list(one.adapters) == ["target", "distractor 1", "distractor 2"] for one in sets)
    assert len({(one.adapters["target"].name, frozenset(one.names)) for one in sets}) == 6
    assert all(prompt.calls == {"target"} for one in sets for prompt in one.prompts)
    with pytest.raises(ml.OptionError, match="fewer than 4 different sets of others"):
        read({**PAIRS, "pairs": None, "distractors": asked | {"sets": 4}, "prompts": ["a"]})
    with pytest.raises(ml.OptionError, match="has 3 others, and count asks for 4"):
        read({**PAIRS, "pairs": None, "distractors": asked | {"count": 4}, "prompts": ["a"]})


def test_what_a_prompt_calls_can_be_said() -> None:
    """By role or name; an adapter that always acts is called by all, unless it has no concept."""
    loras = [{"path": GHOST}, {"path": DAY, "always": True}, {"path": "turbo.safetensors", "always": True}]
    prompts = ["a sks", {"text": "a haunted house", "calls": ["ghost"]}, "a red square"]
    config = read({"pipeline": "miniature/sdxl", "loras": loras, "prompts": prompts})
    assert drawn(config)["ghost+day+turbo"] == {
        "a sks": {"ghost", "day"}, "a haunted house": {"ghost"}, "a red square": {"day"},
    }  # fmt: skip
    several = [{"path": "a.safetensors", "concept": ["a photo of sks", "a drawing of sks"]}, DAY]
    (one,) = adapter_sets(read({"pipeline": "miniature/sdxl", "loras": several, "prompts": ["a sks in szn style"]}))
    assert one.triggers == {"a": ["sks"], "day": ["szn"]}
    assert one.adapters["a"].concepts == ("a photo of sks", "a drawing of sks")


def test_turbo_acts_always_and_nothing_calls_it() -> None:
    """The miniature models' own, which needs no `always: true`; what is planned is drawn with it alone as well."""
    config = {
        "pipeline": "miniature/sdxl",
        "loras": [GHOST, DAY, "miniature/sdxl/turbo"],
        "merges": [{"method": "cat"}],
        "prompts": ["a sks in szn style", "a sks on a white background", "a red square"],
        "generation": {"steps": 4, "guidance": 1.0},
        "seeds": 1,
    }
    *called, turbo = read(config).loras
    assert (turbo.name, turbo.always, turbo.concepts, turbo.trigger) == ("turbo", True, (), "")
    assert not any(lora.always for lora in called)
    assert drawn(read(config))["ghost+day+turbo"] == {
        "a sks in szn style": {"ghost", "day"}, "a sks on a white background": {"ghost"}, "a red square": set(),
    }  # fmt: skip
    planned = plan(config, measure=False)
    assert dict(planned.images) == {"base": 3, "alone": 9, "stack": 3, "merges": 3}
    assert dict(planned.prompts) == {"call several": 1, "call none": 1, "call one adapter": 1}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"prompts": ["a {subjet.trigger}"]}, "names adapters that no set has; known: subject, style"),
        ({"prompts": [{"text": "a", "calls": ["x"]}]}, "names adapters that no set has"),
        ({"prompts": ["a", "a"]}, "prompts: 'a' is given twice"),
        ({"sets": [["ghost", "day"]]}, "sets and pairs: give one of them"),
        ({"pairs": None, "sets": [["ghost", "ghost"]], "loras": [GHOST]}, "'ghost' is twice in one set"),
        ({"pairs": None, "sets": [[GHOST, DAY], [GHOST, DAY]]}, r"two are called 'ghost\+day'"),
        ({"pairs": None}, "loras: expected at least one"),
        ({"pairs": {"subjects": []}}, "pairs.subjects: expected at least one"),
        ({"distractors": {"targts": []}, "pairs": None}, "unknown key 'distractors.targts'; did you mean 'targets'"),
        ({"pairs": {"subjects": [GHOST], "styles": ["x.safetensors"]}, "prompts": ["{style.trigger}"]},
         "asks for the trigger of x"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_sets(changed: dict[str, Any], message: str) -> None:
    """One sentence, before anything is loaded."""
    with pytest.raises(ml.OptionError, match=message):
        read(PAIRS | changed)


def labels(merges: list[dict[str, Any]], **changed: Any) -> dict[str, Any]:
    """Label -> weights, for a subject and a style."""
    config = read({**PAIRS, "pairs": {"subjects": [GHOST], "styles": [DAY]}, "merges": merges} | changed)
    return {recipe.label: recipe.weights for recipe in recipes(config, adapter_sets(config)[0])}


def test_axes_of_weights() -> None:
    """Of an entry by role or name, as vectors, or of an adapter: the label says the point."""
    assert labels([{"method": "cat", "weights": {"ghost": [0.5, 1], "style": 0.7}}]) == {
        "cat ghost=0.5 day=0.7": (0.5, 0.7), "cat ghost=1 day=0.7": (1.0, 0.7),
    }  # fmt: skip
    assert labels([{"method": "cat", "weights": [[1, 0.5], [0.5, 1]]}, {"method": "svd", "rank": 8}]) == {
        "cat weights=1,0.5": (1.0, 0.5), "cat weights=0.5,1": (0.5, 1.0), "svd rank=8": None,
    }  # fmt: skip
    assert labels([{"method": "cat", "weights": [1, 0.5]}]) == {"cat weights=1,0.5": (1.0, 0.5)}
    loras = [{"path": GHOST, "weight": [1.0, 0.5], "role": "subject"}, {"path": DAY, "role": "style"}]
    found = labels([{"method": "cat"}, {"method": "svd", "weights": {"ghost": 2}}], pairs=None, loras=loras)
    assert found == {"cat ghost=1": (1.0, 1.0), "cat ghost=0.5": (0.5, 1.0), "svd ghost=2": (2.0, 1.0)}
    config = read({**PAIRS, "pairs": None, "loras": loras})
    assert config.loras[0].strength == 1.0
    for weights, message in (
        ([1], "expected 2 numbers"),
        ({"x": 1}, "there is no 'x'"),
        ({"ghost": "a"}, "expected a number"),
    ):
        with pytest.raises(ml.OptionError, match=message):
            labels([{"method": "cat", "weights": weights}])


def test_a_schedule_has_a_factor_for_each_adapter() -> None:
    """It is said before anything is drawn."""
    assert list(labels([{"method": "schedule", "factors": [1, [0, 1]]}])) == ["schedule factors=[1, [0, 1]]"]
    with pytest.raises(ml.OptionError, match="3 factors for 2 adapters"):
        labels([{"method": "schedule", "factors": [1, 1, 1]}])
