"""The model card of an adapter: what it says, that it is valid, and that what its owner wrote stays."""

from __future__ import annotations

import json
from html import escape
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt

import mergelab as ml
from mergelab import cli
from mergelab.formats.architectures.registry import ARCHITECTURES
from mergelab.publishing.base_models import base_model_of, is_hub_name
from mergelab.publishing.card import BEGIN, CARD, END, Facts, card
from mergelab.publishing.usage import Place, usage
from tests.files import LAYER, lora, write
from tests.peft_folders import component_folders

KEY = "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k"
RECIPE = {
    "method": "ties",
    "options": {"density": 0.5, "rank": 8, "basis": None},
    "inputs": [
        {"name": "in|k", "weight": {"unet": 0.5}, "sha256": "ab12", "source": "user/ink@v2/in|k.safetensors"},
        {"name": "<b>cat</b>", "weight": -1.0, "sha256": None},
    ],
    "version": "1.2.3",
}
HEADER = {
    "mergelab": json.dumps(RECIPE),
    "modelspec.title": "Ink <script>alert(1)</script> | [x](javascript:1)",
    "modelspec.trigger_phrase": "sks, `szn`",
}


def adapter(width: int = 2048, **header: str) -> ml.Adapter:
    """An adapter of SDXL's size."""
    layer = ml.LoraLayer(torch.ones(4, width), torch.ones(640, 4))
    return ml.Adapter({KEY: layer}, architecture="sdxl", metadata={**HEADER, **header})


def card_of(data: ml.Adapter, existing: str | None = None, **facts: Any) -> str:
    place = Place("user/ink", None, "ink.safetensors", {})
    return card(Facts(data, "diffusers", place, base_model_of(data, facts.pop("given", None)), **facts), existing)


def kohya(module: str) -> dict[str, torch.Tensor]:
    """The tensors of one layer in kohya's format."""
    factors = {
        f"{module}.lora_down.weight": torch.ones(2, 1280, 1, 1),
        f"{module}.lora_up.weight": torch.ones(1280, 2, 1, 1),
    }
    return {**factors, f"{module}.alpha": torch.tensor(2.0)}


def test_what_it_says() -> None:
    """Front matter as the Hub reads it; method, options, weights, hashes and where inputs are from; trigger words."""
    read = ModelCard(card_of(adapter(), license="mit"))
    assert read.data.to_dict() == {
        "license": "mit",
        "library_name": "diffusers",
        "pipeline_tag": "text-to-image",
        "tags": ["text-to-image", "template:sd-lora", "lora", "diffusers", "sdxl", "mergelab"],
        "base_model": "stabilityai/stable-diffusion-xl-base-1.0",
        "base_model_relation": "adapter",
        "instance_prompt": "sks, `szn`",
    }
    for line in (
        "1 layer of rank 4; merged from `in\\|k` and `<b>cat</b>` with mergelab 1.2.3.",
        "| `ties` | 0.5 | 8 |",
        "| [in\\|k](https://huggingface.co/user/ink) (user/ink@v2/in\\|k.safetensors) | unet 0.5 | `ab12` |",
        "| \\<b\\>cat\\</b\\> | -1 | – |",
        'pipe.load_lora_weights("user/ink", weight_name="ink.safetensors")',
        "mergelab convert user/ink/ink.safetensors -o ink-comfyui.safetensors --for comfyui",
    ):
        assert line in read.text
    assert "license" not in ModelCard(card_of(adapter())).data.to_dict()


def test_no_text_of_a_file_is_markup() -> None:
    """Titles and names of files are what they are, in a browser too."""
    html = MarkdownIt("commonmark", {"html": True}).enable("table").render(ModelCard(card_of(adapter())).text)
    assert "<script" not in html and 'javascript:1"' not in html and "<b>" not in html
    assert html.count("<tr>") == 2 + 3 and html.count("<code>`szn`</code>") == 1


@pytest.mark.parametrize("word", ["a`b", "a``<b>b``c", "```", "`", "a\n\n# b", "a\x1b[31m\x00\u202eb", "<!-- x"])
def test_trigger_words_are_code(word: str) -> None:
    """Whatever stands in them: the same characters, on one line, and nothing else on the page changes."""
    page = MarkdownIt("commonmark", {"html": True})
    data = adapter(**{"modelspec.trigger_phrase": word})
    html = page.render(ModelCard(card_of(data)).text)
    shown = " ".join("".join(c if c.isprintable() else " " for c in word).split())
    line = f"<code>{escape(shown)}</code> in a prompt calls what it has learnt."
    usual = page.render(ModelCard(card_of(adapter(**{"modelspec.trigger_phrase": "sks"}))).text)
    assert line in html and html.count("<h") == usual.count("<h") and html.count("<b>") == 0


def test_what_its_owner_wrote_stays() -> None:
    """Before and after mergelab's part, and keys of the front matter; what is merely usual yields to it."""
    first = card_of(adapter())
    edited = first.replace("tags:\n", "license: mit\ntags:\n- mine\n").replace("xl-base-1.0", "xl-of-mine")
    edited = edited.replace(BEGIN, f"Before.\n\n{BEGIN}").replace(END, f"{END}\n\n## After\n")
    second = card_of(adapter(**{"modelspec.title": "Second"}), edited)
    read = ModelCard(second)
    assert read.text.startswith(f"\nBefore.\n\n{BEGIN}\n<!-- its keys: ") and "-->\n\n# Second\n" in read.text
    assert read.text.endswith(f"{END}\n\n## After\n\n")
    assert read.data.license == "mit" and read.data.tags[:2] == ["mine", "text-to-image"]
    assert read.data.base_model == "stabilityai/stable-diffusion-xl-of-mine"
    assert ModelCard(card_of(adapter(), edited, given="user/base")).data.base_model == "user/base"
    assert card_of(adapter(**{"modelspec.title": "Second"}), second) == second
    started = ModelCard(card_of(adapter(), "---\nlicense: mit\n---\n"))
    assert started.data.license == "mit" and BEGIN in started.text


@pytest.mark.parametrize(
    ("existing", "why"),
    [("# Mine", "not written by mergelab"), ("---\na: [\n---\n", "no YAML"), ("---\n- a\n---\n", "no mapping")],
)
def test_cards_by_another_hand(existing: str, why: str) -> None:
    """None is touched."""
    with pytest.raises(ml.OutputError, match=why):
        card_of(adapter(), existing)


def test_base_models() -> None:
    """The usual one of each family, unless layers or header speak against it."""
    for known in ARCHITECTURES.values():
        assert known.repository == "" or is_hub_name(known.repository)
        assert known.task in ("text-to-image", "text-to-video")
        if known.repository:
            own = {"ss_base_model_version": known.base_version, "modelspec.architecture": known.modelspec}
            assert base_model_of(ml.Adapter({}, architecture=known.id, metadata=own)).name == known.repository
    assert base_model_of(adapter(), "user/mine").name == "user/mine"
    assert base_model_of(adapter(), None, "user/drawn").name == "user/drawn"
    assert base_model_of(adapter(ss_base_model_version="sdxl_1.0")).name
    for data, why in (
        (adapter(64), "other sizes"),
        (ml.load("miniature/flux/fish"), "FLUX.1-dev"),
        (adapter(ss_base_model_version="illustrious"), "'illustrious'"),
        (adapter(**{"modelspec.architecture": "pony/lora"}), "'pony'"),
        (ml.Adapter({}, architecture="wan-14b"), "several"),
        (ml.load("miniature/sdxl/ghost"), "does not tell"),
    ):
        found = base_model_of(data)
        assert not found.name and why in found.note and "--base-model" in found.note
        assert "base_model" not in ModelCard(card_of(data)).data.to_dict()


def test_usage_of_other_files() -> None:
    """What diffusers does not read mergelab fuses; videos are exported; an unknown model is only loaded."""
    base, place = base_model_of(adapter()), Place("user/x", "dev/2", "x.safetensors", {})
    assert 'ml.fuse(pipe, "user/x@dev%2F2/x.safetensors")' in usage(adapter(), "comfy", place, base, "sks")
    assert 'weight_name="x.safetensors", revision="dev/2")' in usage(adapter(), "kohya", place, base, "sks")
    video = base_model_of(ml.Adapter({}, architecture="wan-5b"))
    assert 'export_to_video(pipe("sks").frames[0]' in usage(adapter(), "diffusers", place, video, "sks")
    compile(usage(adapter(), "diffusers", place, video, 'a "```" \n'), "card", "exec")
    assert "```" not in usage(adapter(), "diffusers", place, video, 'a "```"')
    assert "DiffusionPipeline" not in usage(adapter(), "kohya", place, base_model_of(ml.Adapter({})), "sks")


def test_what_is_no_pipelines() -> None:
    """An adapter of a language model is not said to draw, also where its base model is named."""
    data = ml.Adapter({"model.layers.0.self_attn.q_proj": ml.LoraLayer(torch.ones(1, 4), torch.ones(4, 1))})
    place = Place("user/x", None, "", {"model": ""})
    read = ModelCard(card(Facts(data, "peft", place, base_model_of(data, "user/llm"))))
    assert read.data.pipeline_tag is None and read.data.tags == ["lora", "peft", "mergelab"]
    assert 'ml.load("user/x")' in read.text and read.data.base_model == "user/llm"


def test_names_that_a_shell_would_split() -> None:
    """Are quoted."""
    place = Place("user/ink", None, "my `ink`.safetensors", {})
    text = card(Facts(adapter(), "diffusers", place, base_model_of(adapter())))
    assert "mergelab convert 'user/ink/my `ink`.safetensors' -o ink-comfyui" in text
    assert "`` mergelab inspect 'user/ink/my `ink`.safetensors' ``" in text


def test_files_in_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What would be pushed: a file and a folder of PEFT byte for byte, a merge as diffusers calls it, for a tool."""
    file = write(tmp_path / "ink.safetensors", lora(rank=4))
    assert cli.run(["push", str(file), "user/ink", "--folder", str(tmp_path / "a"), "--base-model", "user/base"]) == 0
    captured = capsys.readouterr()
    assert "ink.safetensors" in captured.out and "nothing was pushed" in captured.out and not captured.err
    assert (tmp_path / "a" / "ink.safetensors").read_bytes() == file.read_bytes()
    assert ModelCard.load(tmp_path / "a" / CARD).data.base_model == "user/base"
    for name, body in component_folders().items():
        (tmp_path / "peft" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "peft" / name).write_bytes(body)
    pushed = ml.load(tmp_path / "peft").push_to_hub("user/ink", folder=tmp_path / "b", base_model="user/base")
    assert set(pushed.files) == {*component_folders(), CARD}
    assert 'pipe.text_encoder, "user/ink", subfolder="text_encoder")' in (tmp_path / "b" / CARD).read_text()
    pushed = (2 * ml.load(file)).push_to_hub("user/ink", folder=tmp_path / "c", card=False)
    assert list(pushed.files) == ["pytorch_lora_weights.safetensors"]
    assert (ml.load(tmp_path / "c") - 2 * ml.load(file)).norm() == 0
    command = [
        "push",
        str(file),
        "user/ink",
        "--folder",
        str(tmp_path / "d"),
        "--for",
        "a1111",
        "--architecture",
        "sd15",
    ]
    assert cli.run(command) == 0
    assert set(ml.load(tmp_path / "d").layers) == {LAYER}


@pytest.mark.parametrize(
    ("prefix", "needle"), [("lora_unet", "pipe.load_lora_weights("), ("lycoris", "ml.fuse(pipe, ")]
)
def test_files_of_other_trainers(prefix: str, needle: str, tmp_path: Path) -> None:
    """What diffusers reads is known of keys that mergelab writes, too; others go the way that is always right."""
    module = f"{prefix}_mid_block_attentions_0_proj_in"
    file = write(tmp_path / "x.safetensors", kohya(module), metadata={"ss_base_model_version": "sd_v1"})
    adapter = ml.load(file, architecture="sd15")
    assert adapter.dialect == "kohya"
    adapter.push_to_hub("user/x", folder=tmp_path / "out")
    text = (tmp_path / "out" / CARD).read_text()
    assert needle in text and "does not read" not in text


REFUSED: dict[str, tuple[list[str], str]] = {
    "a bare name": (["push", "good.safetensors", "ink", "--folder", "out"], "user/repo"),
    "a file of a repository": (["push", "good.safetensors", "a/b/c", "--folder", "out"], "expected a repository"),
    "two revisions": (["push", "good.safetensors", "a/b@c", "--revision", "d", "--folder", "out"], "another revision"),
    "a folder with files": (["push", "good.safetensors", "a/b", "--folder", "."], "a new or an empty folder"),
    "nowhere": (["push", "good.safetensors", "a/b", "--folder", "no/out"], "there is no folder no"),
    "a base model": (["push", "good.safetensors", "a/b", "--folder", "out", "--base-model", "/x"], "base_model='/x'"),
    "a format": (["push", "good.safetensors", "a/b", "--folder", "out", "--format", "x"], "format='x'"),
    "a packed format": (
        ["push", "good.safetensors", "a/b", "--folder", "out", "--format", "nunchaku"],
        "--for nunchaku",
    ),
    "a run": (["push", "good.safetensors", "a/b", "--folder", "out", "--run", "no"], "a finished run"),
    "extras": (["push", "good.safetensors", "a/b", "--folder", "out", "--drop-extras"], "--drop-extras"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str, refused: Any, good: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One sentence each, and nothing is left behind."""
    monkeypatch.chdir(good.parent)
    arguments, needle = REFUSED[name]
    refused(*arguments, needles=[needle])
