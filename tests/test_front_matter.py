"""The front matter of a card over several pushes: its owner's text to the letter, and nothing of an earlier adapter."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard

import mergelab as ml
from mergelab.publishing.base_models import base_model_of
from mergelab.publishing.card import BEGIN, END, Facts, card
from mergelab.publishing.exhibits import Exhibit, Picture, Score
from mergelab.publishing.front_matter import FrontMatter, parted
from mergelab.publishing.usage import Place

BY_HAND = """\
# the fields are described in the Hub's documentation
language: no   # Norwegian
version: 1.10
licensed_on: 2026-01-02
pipeline_tag: image-to-image
instance_prompt: 'my own words'
library_name: my-lib

# shown first
widget:
  - text: on  # a switch
    output: {url: images/mine.png}

"""
DRAWN = Exhibit(
    name="merge",
    pictures=(Picture("a sks", Path("p.png")),),
    scores=(Score("recovery", "of what it has learnt", {"merge": "91%"}, 0.91),),
    design="2 prompts, 1 seed each",
    settings="4 steps",
    base_model="user/drawn",
    triggers=("sks",),
)


def pushed(name: str, before: str | None = None, exhibit: Exhibit | None = None, license: str | None = None) -> str:
    """README.md after a push of a miniature adapter."""
    data = ml.load(name)
    base = base_model_of(data, None, exhibit.base_model if exhibit else None)
    place = Place("user/x", None, "x.safetensors", {})
    return card(Facts(data, "diffusers", place, base, license=license, exhibit=exhibit), before)


def test_what_its_owner_wrote_is_kept_to_the_letter() -> None:
    """Words that YAML reads as something else, comments, quotes, lines; and keys that mergelab has a value for, too."""
    before = f"\ufeff---\n{BY_HAND}---\nMine.\n{BEGIN}{END}"
    first = pushed("miniature/sdxl/ghost", before)
    assert first.startswith(f"---\n{BY_HAND}tags:\n") and ModelCard(first).text.startswith("Mine.\n")
    second = pushed("miniature/sdxl/day", first, DRAWN)
    assert second.startswith(f"---\n{BY_HAND.partition('# shown')[0]}# shown first\nwidget:\n- text: on\n")
    assert [entry["text"] for entry in ModelCard(second).data.to_dict()["widget"]] == [True, "a sks"]
    third = pushed("miniature/sdxl/ghost", second)
    assert third.partition("widget:")[0] == first.partition("widget:")[0]
    assert yaml.safe_load(parted(third)[0]) == yaml.safe_load(parted(first)[0])
    assert pushed("miniature/sdxl/ghost", third) == third


def test_nothing_of_an_earlier_adapter_stays() -> None:
    """Pictures, scores, trigger words and base model of the first are not said of the second; a licence is."""
    first = pushed("miniature/sdxl/ghost", None, DRAWN, "mit")
    assert {"widget", "model-index", "base_model", "instance_prompt"} < set(ModelCard(first).data.to_dict())
    second = pushed("miniature/sdxl/day", first)
    assert second == pushed("miniature/sdxl/day", None, license="mit")
    assert ModelCard(second).data.instance_prompt == "szn"


def test_what_its_owner_has_changed_is_theirs() -> None:
    """Also where mergelab wrote it first."""
    first = pushed("miniature/sdxl/ghost", None, DRAWN)
    edited = first.replace("user/drawn", "user/mine", 1).replace("instance_prompt: sks", "instance_prompt: a sks ghost")
    edited = edited.replace("- lora\n", "- lora\n- mine\n", 1)
    found = ModelCard(pushed("miniature/sdxl/day", edited)).data.to_dict()
    assert (found["base_model"], found["instance_prompt"]) == ("user/mine", "a sks ghost")
    assert "mine" in found["tags"] and "widget" not in found


@pytest.mark.parametrize(("theirs", "expected"), [
    ("{a: 1.10, tags: [x]}\n", "a: 1.10\ntags: [x, y]\nb: c\n"),
    ("{}\n", "tags:\n- y\nb: c\n"),
    ("# nothing yet\n", "# nothing yet\ntags:\n- y\nb: c\n"),
    ("  a: 010\n  d: e\n", "a: 010\nd: e\ntags:\n- y\nb: c\n"),
    ("a: &x [1]\nd: *x\ne: |\n  # text\n\ntags: x\n", "a: &x [1]\nd: *x\ne: |\n  # text\n\ntags:\n- x\n- y\nb: c\n"),
    ("b:\ntags:\n- x\n# end\n", "b: c\ntags:\n- x\n- y\n# end\n"),
    ("? [a]\n: 1\nb: [1,\n  2]\n", "? [a]\n: 1\nb: c\ntags:\n- y\n"),
])  # fmt: skip
def test_however_it_is_written(theirs: str, expected: str) -> None:
    """Flow style, indents, anchors, texts of several lines, empty values, keys that are no words."""
    assert FrontMatter(theirs).updated({"tags": ["y"], "b": "c"}, ["b"]).text == expected
