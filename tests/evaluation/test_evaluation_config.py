"""Configurations: what they mean, and one clear sentence for what is wrong with them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

import mergelab as ml
from mergelab import miniature
from mergelab.evaluation import read
from mergelab.evaluation.config import Config
from mergelab.evaluation.reading import read_config
from mergelab.evaluation.recipes import recipes
from mergelab.evaluation.sets import adapter_sets
from mergelab.evaluation.store import file_name

USUAL: dict[str, Any] = {
    "pipeline": "miniature/sdxl",
    "loras": [{"path": "subject.safetensors", "concept": "a sks"}, {"path": "style.safetensors", "weight": 0.7}],
    "merges": [
        {"method": "svd", "rank": [8, 16]},
        {"method": "ties", "density": [0.3, 0.5], "space": ["delta", "core"]},
    ],
    "prompts": ["a sks in szn style", "a red square"],
    "seeds": 3,
}  # fmt: skip


def merges_of(config: Config) -> dict[str, dict[str, Any]]:
    """Label -> keywords, for the one set of adapters."""
    return {recipe.label: recipe.keywords for recipe in recipes(config, *adapter_sets(config))}


def test_axes_span_a_grid() -> None:
    """A list is an axis; the label says which point it is."""
    labels = list(merges_of(read(USUAL)))
    assert labels == [
        "svd rank=8",
        "svd rank=16",
        "ties density=0.3 space=delta",
        "ties density=0.3 space=core",
        "ties density=0.5 space=delta",
        "ties density=0.5 space=core",
    ]


def test_an_entry_may_have_a_label() -> None:
    """Which is what the merge is called; a file's name is never too long for a system."""
    entry = {"method": "cat", "label": "mine", "weights": {"style": {"*": 1.0, "unet.up_blocks": 0.5}}}
    assert merges_of(read(USUAL | {"merges": [entry]})) == {"mine": {"method": "cat"}}
    names = [file_name(f"cat style={place * 60}") for place in ("*:1,unet.up_blocks:0.5", "*:1,unet.up_blocks:0.6")]
    assert len(set(names)) == 2 and all(len(name) <= 120 for name in names)
    assert file_name("ties density=0.3") == "ties-density-0.3"


def test_defaults_and_short_forms() -> None:
    """A number of seeds counts from zero; names come from the files; a budget of ranks can be written."""
    config = read(USUAL)
    assert config.seeds == [0, 1, 2] and read(USUAL | {"seeds": [5, 7]}).seeds == [5, 7]
    assert [lora.name for lora in config.loras] == ["subject", "style"]
    assert config.metrics == ["clip_text", "clip_image", "lpips"]
    budget = merges_of(read(USUAL | {"merges": [{"method": "svd", "rank": "mean=4"}]}))
    assert budget["svd rank=mean=4"]["rank"] == ml.RankBudget(mean=4)


def test_entries_of_ai_toolkit_work() -> None:
    """Its lora_paths hold a path and a weight."""
    loras = [{"path": "/models/a.safetensors", "weight": 0.8}, {"path": "/models/b.safetensors"}]
    assert [lora.weight for lora in read(USUAL | {"loras": loras}).loras] == [0.8, 1.0]


def test_a_path_alone_is_an_adapter() -> None:
    """At weight 1, called as its file."""
    (lora,) = read(USUAL | {"loras": ["miniature/sdxl/ghost"]}).loras
    assert (lora.name, lora.weight) == ("ghost", 1.0)


def test_adapters_of_the_miniature_bring_their_concept() -> None:
    """Their path, name, concept and trigger word are known."""
    ghost = read(USUAL | {"loras": [{"path": "miniature/sdxl/ghost"}]}).loras[0]
    known = miniature.adapters("sdxl")[0]
    assert (ghost.name, ghost.path) == ("ghost", str(known.path))
    assert (ghost.concept, ghost.trigger) == ("a sks", "sks")


def test_a_budget_is_read_again(tmp_path: Path) -> None:
    """From Python, from a `Config`, from the file of a run folder: the same configuration, the same merges."""
    ranks = [ml.RankBudget(8), ml.RankBudget(np.int64(4), max=16), "mean=2", 8, ml.SvRatio(2, max=4), "sv_fro=0.9"]
    made = ml.evaluation.Config(**USUAL | {"merges": [{"method": "svd", "rank": ranks, "seed": np.int64(1)}]})
    config = read(made)
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(config.model_dump()), encoding="utf-8")
    assert config == read(config) == read(file) == read(USUAL | {"merges": made.merges})
    merges = merges_of(config)
    labels = ("mean=8", "mean=4,max=16", "mean=2", "8", "sv_ratio=2,max=4", "sv_fro=0.9")
    assert list(merges) == [f"svd rank={rank} seed=1" for rank in labels]
    assert merges == merges_of(made)
    assert [merge["rank"] for merge in merges.values()] == [*ranks[:2], ml.RankBudget(2), 8, ranks[4], ml.SvFro(0.9)]


def test_a_pipeline_is_asked_for_where_none_is_there() -> None:
    """A `Config` needs none: one that is handed in may stand for it, unless the key is known to name another."""
    without = {key: value for key, value in USUAL.items() if key != "pipeline"}
    config = ml.evaluation.Config(**without)
    for source in (without, config):
        with pytest.raises(ml.OptionError, match="config: the key 'pipeline' is missing"):
            read(source)
        assert read_config(source, pipeline="miniature/sdxl") == read(USUAL)
    folder = str(miniature.WEIGHTS / "sdxl")
    assert read_config(USUAL | {"pipeline": folder}, pipeline="miniature/sdxl").pipeline == folder
    assert read_config(USUAL | {"pipeline": "a/b"}, pipeline="/models/b").pipeline == "a/b"
    for other in ("miniature/flux", "a/b"):
        with pytest.raises(ml.OptionError, match=f"names '{other}', and the pipeline handed in is 'miniature/sdxl'"):
            read_config(USUAL | {"pipeline": other}, pipeline="miniature/sdxl")


@pytest.mark.parametrize("beside_the_file", [True, False])
def test_what_lies_at_a_path_comes_before_what_ships(
    beside_the_file: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As for `load`: beside the file, or in the working directory."""
    (tmp_path / "miniature" / "sdxl" / "ghost").mkdir(parents=True)
    file = tmp_path / ("" if beside_the_file else "elsewhere") / "config.yaml"
    file.parent.mkdir(exist_ok=True)
    file.write_text("pipeline: miniature/sdxl\nloras: [miniature/sdxl/ghost, miniature/sdxl/day]\nprompts: [a]\n")
    monkeypatch.chdir(tmp_path / "miniature" if beside_the_file else tmp_path)
    config = read(file)
    assert config.pipeline == str(tmp_path / "miniature" / "sdxl") and config.miniature is None
    ghost, day = config.loras
    assert (ghost.name, ghost.path, ghost.concept) == ("ghost", str(tmp_path / "miniature" / "sdxl" / "ghost"), "")
    assert (day.name, day.concept, Path(day.path).is_relative_to(miniature.WEIGHTS)) == ("day", "in szn style", True)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"sedes": 2}, "unknown key 'sedes'; did you mean 'seeds'"),
        ({"loras": [{"path": "a", "wieght": 1}]}, "unknown key 'loras.0.wieght'; did you mean 'weight'"),
        ({"generation": {"stepps": 3}}, "unknown key 'generation.stepps'; did you mean 'steps'"),
        ({"promts": ["a"], "prompts": None}, "unknown key 'promts'; did you mean 'prompts'"),
        ({"zebra": 1}, "unknown key 'zebra'; known: pipeline, loras"),
        ({"seeds": "many"}, "seeds: expected how many (at least 1), or a list, got 'many'"),
        ({"seeds": -1}, "seeds: expected how many (at least 1), or a list, got -1"),
        ({"seeds": [-1]}, "seeds.0: input should be greater than or equal to 0, got -1"),
        ({"prompts": []}, "prompts: expected at least one"),
        ({"loras": [{"path": "a", "weight": "1"}]}, "loras.0.weight: input should be a valid number, got '1'"),
        ({"dtype": "int8"}, "dtype: input should be 'float32', 'float16' or 'bfloat16', got 'int8'"),
        ({"loras": [{"path": "x/a.safetensors"}, {"path": "y/a.safetensors"}]}, "two are called 'a'"),
        ({"loras": [{"path": "miniature/sdxl/gost"}]}, "no miniature adapter 'miniature/sdxl/gost'; known: ghost"),
        ({"merges": [{"method": "tise"}]}, "'tise'"),
        (
            {"merges": [{"method": "ties", "densty": 0.3}]},
            "method 'ties' has no option 'densty'; did you mean 'density'? known: density",
        ),
        ({"merges": [{"method": "cat", "rank": 8}]}, "cat keeps the sum of the ranks; for rank=8 use method='svd'"),
        ({"merges": [{"method": "svd", "rank": [8, "large"]}]}, "rank='large': expected an integer of at least 1"),
        (
            {"merges": [{"method": "svd", "rank": {"man": 8}}]},
            "rank={'man': 8}: a budget has no 'man'; did you mean 'mean'? known: mean, max",
        ),
        ({"merges": [{"method": "dare", "seed": "x"}]}, "merges: seed='x': expected an integer"),
        ({"merges": [{"method": "dare", "seed": [0, True]}]}, "merges: seed=True: expected an integer"),
        ({"merges": [{"rank": 8}]}, "has no method"),
        ({"merges": [{"method": "swich"}]}, "merges: there is no method 'swich'; did you mean 'switch'"),
        ({"merges": [{"method": "cat"}, {"method": "cat"}]}, "'cat' is given twice"),
        ({"merges": [{"method": "cat", "label": " "}]}, "merges: label: expected a text, found ' '"),
        (
            {"merges": [{"method": "svd", "rank": [4, 8], "label": "mine"}]},
            "'mine' is given twice; a label is of one merge, and this entry spans several",
        ),
        (
            {"merges": [{"method": "svd", "rank": ["mean=8", ml.RankBudget(8)]}]},
            "'svd rank=mean=8' is given twice",
        ),
        ({"pipeline": ""}, "config: the key 'pipeline' is missing"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_one_sentence(change: dict[str, Any], sentence: str) -> None:
    """The key, what was expected, what was found."""
    with pytest.raises(ml.OptionError) as error:
        read(USUAL | change)
    assert sentence in str(error.value) and "\n" not in str(error.value)


def test_a_file_with_overrides(tmp_path: Path) -> None:
    """Dotted keys reach into mappings and lists; paths are relative to the file."""
    (tmp_path / "style.safetensors").write_bytes(b"")
    file = tmp_path / "config.yaml"
    file.write_text("pipeline: p\nloras: [{path: style.safetensors}]\nprompts: [a]\n")
    config = read(file, ["seeds=4", "clip.model=RN50", "loras.0.weight=0.5", "prompts=[b, c]", "generation.steps=3"])
    assert config.seeds == [0, 1, 2, 3] and config.clip is not None and config.clip.model == "RN50"
    assert config.loras[0].weight == 0.5 and config.loras[0].path == str(tmp_path / "style.safetensors")
    assert config.prompts == ["b", "c"] and config.generation.keywords() == {"num_inference_steps": 3}
    for override, sentence in (
        ("seeds", "expected KEY=VALUE"),
        ("loras.7.weight=1", "no '7' to go into"),
        ("sedes=4", "did you mean 'seeds'"),
        ("pipeline.x=1", "no 'x' to set"),
    ):
        with pytest.raises(ml.OptionError, match=sentence):
            read(file, [override])


def test_what_is_no_configuration(tmp_path: Path) -> None:
    """A missing file, broken YAML, a list."""
    with pytest.raises(ml.SourceError, match="no such file"):
        read(tmp_path / "none.yaml")
    for content, sentence in (("{", "this is no YAML"), ("- 1", "expected a mapping")):
        (tmp_path / "bad.yaml").write_text(content)
        with pytest.raises(ml.OptionError, match=sentence):
            read(tmp_path / "bad.yaml")
