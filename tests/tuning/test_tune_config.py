"""The configuration of a search: what is wrong is one sentence, before anything is drawn."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import mergelab as ml
from mergelab.tuning.reading import prompts_of, read_tuning, seeds_of
from tests.tuning.small_search import SMALL

WRONG: list[tuple[dict[str, Any], str]] = [
    ({"setings": 2}, "unknown key 'setings'; did you mean 'settings'"),
    ({"held_out": {"seed": 1}}, "unknown key 'held_out.seed'; did you mean 'seeds'"),
    ({"balance": {"joined": 1}}, "unknown key 'balance.joined'; did you mean 'joint'"),
    ({"loras": ["miniature/sdxl/fish"]}, "loras: expected at least 2"),
    ({"loras": ["miniature/sdxl/fish", {"path": "miniature/sdxl/day", "weight": 0}]}, "day: weight: .* leave the"),
    ({"loras": ["miniature/sdxl/fish", {"path": "miniature/sdxl/day", "weight": {"unet": 1.0}}]}, "starts from one"),
    ({"prompts": ["a qrv", "a red square"]}, "prompts: none calls two adapters, and balance.joint is 1; add such"),
    ({"prompts": SMALL["prompts"][:-1]}, "none calls no adapter, and balance.plain is 0.5; .* set balance.plain to 0"),
    ({"balance": {"joint": 0, "own": 0, "plain": 0}}, "balance: expected at least one part above 0"),
    ({"held_out": {"prompts": ["a qrv in vtx style"]}}, "held_out.prompts: none calls one adapter alone"),
    ({"held_out": {"prompts": SMALL["prompts"], "seeds": 1}}, "with seed 0 is among what is searched on"),
    ({"settings": 2, "keep": 3}, "keep: 3 of 2 settings; expected at most as many"),
    ({"trials": 20}, "trials: only 'search: optuna' reads it, and this search is 'blocks'"),
    ({"search": "optuna", "space": {"weights": [0.5, 1]}}, "settings: only 'search: blocks' reads it"),
    ({"settings": 0}, "settings: .*greater than or equal to 1"),
    ({"search": "grid"}, "search: .*'blocks' or 'optuna'"),
    ({"groups": "layers"}, "groups: .*'blocks', 'components' or 'none'"),
    ({"merge": {"method": "tise"}}, "merges: there is no method 'tise'; did you mean 'ties'"),
    ({"merge": {"method": "svd", "rank": [4, 8]}}, "merge: a list is an axis of an evaluation; give rank one value"),
    ({"merge": {"method": "svd", "weights": [1, 1]}}, "merge: weights are what is searched"),
    ({"score": "juge"}, "there is no 'juge'"),
    ({"score": "lpips"}, "score: lpips compares whole pictures and sees no concept"),
    ({"score": "clip_image"}, "score: clip_image sees an adapter by photographs, and fish has none: give"),
    ({"pipeline": ""}, "the key 'pipeline' is missing"),
    ({"seeds": [1, 1]}, "seeds: 1 is given twice"),
]  # fmt: skip


@pytest.mark.parametrize(("keys", "sentence"), WRONG, ids=[sentence[:30] for _, sentence in WRONG])
def test_what_is_wrong(keys: dict[str, Any], sentence: str, tmp_path: Path) -> None:
    """Nothing is written."""
    with pytest.raises(ml.OptionError, match=sentence):
        ml.tune(SMALL | keys, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_an_adapter_without_a_concept_cannot_be_scored_by_words(tmp_path: Path) -> None:
    """Unless no prompt calls it."""
    own = ml.load("miniature/sdxl/fish").save(tmp_path / "own.safetensors")
    loras = [{"path": str(own), "trigger": "qrv"}, "miniature/sdxl/stripes"]
    prompts = [{"text": text, "calls": calls} for text, calls in [
        ("a qrv in vtx style", ["own", "stripes"]), ("a qrv", ["own"]), ("a red circle in vtx style", ["stripes"]),
        ("a red square", []),
    ]]  # fmt: skip
    with pytest.raises(ml.OptionError, match="judge sees an adapter by its concept, and own has none under loras"):
        read_tuning(SMALL | {"loras": loras, "prompts": prompts})


def test_a_folder_that_is_no_run(tmp_path: Path) -> None:
    """It is left as it is."""
    (tmp_path / "letter.txt").write_text("mine")
    with pytest.raises(ml.OutputError, match=r"is no run folder and holds letter\.txt"):
        ml.tune(SMALL, tmp_path)


def test_defaults() -> None:
    """Half of the prompts and other seeds are held out; the judge on the miniature models, CLIP on others."""
    config = read_tuning(SMALL, ["seeds=3"])
    assert config.score == "judge" and seeds_of(config) == ([0, 1, 2], [3, 4, 5])
    searched, kept = prompts_of(config)
    assert [one.text for one in searched if len(one.calls) == 2] == ["a qrv in vtx style"]
    assert [one.text for one in kept if len(one.calls) == 2] == ["a large qrv in vtx style"]
    assert read_tuning(config).model_dump() == config.model_dump()
