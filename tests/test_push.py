"""Pushing to the Hugging Face Hub, through huggingface_hub and a server that answers as the Hub does."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard, constants
from numpy.typing import NDArray

import mergelab as ml
from mergelab import cli, miniature
from mergelab.pipelines.opening import quietly
from mergelab.publishing.card import BEGIN, CARD
from tests.files import content
from tests.hub_server import Hub, running_hub
from tests.refusing import Refused
from tests.serving import Page, serving

GHOST = "miniature/sdxl/ghost"
# huggingface_hub's own call of httpx, where files do not go to Xet.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")


@pytest.fixture
def hub(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub with nothing on it."""
    with running_hub(tmp_path_factory.mktemp("hub"), monkeypatch) as server:
        yield server


def test_what_is_pushed(hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The bytes of the file and a card, in one commit of a new repository; what was done is said, and nothing else."""
    file = (ml.load(GHOST) * 0.5).save(tmp_path / "ghost.safetensors")
    options = ["--private", "--license", "mit", "--commit-message", "First", "--base-model", "user/base"]
    assert cli.run(["push", str(file), "user/ghost", *options]) == 0
    said = capsys.readouterr()
    assert not said.err
    lines = [f"user/ghost: {hub.site.address}/user/ghost/commit/", "ghost.safetensors", CARD, "the repository is new"]
    assert all(needle in line for needle, line in zip(lines, said.out.splitlines(), strict=True))
    repo, files = hub.repos["user/ghost"], hub.files("user/ghost")
    assert repo.private and repo.messages == ["First"]
    assert files["ghost.safetensors"] == file.read_bytes()
    assert sum(path.startswith("/api/models/user/ghost/commit/") for path in hub.written()) == 1
    data = ModelCard.load("user/ghost").data
    assert (data.license, data.base_model, data.instance_prompt) == ("mit", "user/base", "sks")
    loaded = ml.load("user/ghost")
    assert (loaded - ml.load(file)).norm() == 0 and loaded.is_on_the_hub


def test_a_folder_is_what_would_be_pushed(hub: Hub, tmp_path: Path) -> None:
    """The same bytes under the same names; nothing is asked of the Hub."""
    merged = ml.merge([GHOST, "miniature/sdxl/day"], [0.5, 1.0], method="cat")
    there = merged.push_to_hub("user/both", folder=tmp_path / "out")
    assert not hub.site.asked
    pushed = merged.push_to_hub("both")
    written = {name: (tmp_path / "out" / name).read_bytes() for name in pushed.files}
    assert there.files == pushed.files and pushed.repo == "user/both"
    assert written | {".gitattributes": b""} == hub.files("user/both")
    assert set(content(tmp_path / "out")) == set(written)


def test_a_folder_comes_with_the_command_that_pushes_it_as_asked(tmp_path: Path) -> None:
    """Branch, pull request and privacy are in it; without a card nothing is said of one."""
    out = tmp_path / "a folder"
    pushed = ml.load(GHOST).push_to_hub("user/x@v2", folder=out, private=True, create_pr=True, card=False)
    assert [f"`hf upload user/x '{out}' . --revision v2 --private --create-pr`" in note for note in pushed.notes] == [
        True
    ]
    for wrong in ("MIT License", 3, ""):
        with pytest.raises(ml.OptionError, match="expected an identifier of the Hugging Face Hub in small letters"):
            ml.load(GHOST).push_to_hub("user/x", folder=tmp_path / "other", license=wrong)
    assert not (tmp_path / "other").exists()


def test_the_source_of_an_input_is_told(hub: Hub) -> None:
    """Of one on the Hub, in the recipe and in the card; of a file here its name alone."""
    ml.load(GHOST).push_to_hub("user/ghost")
    merged = ml.merge(["user/ghost", "miniature/sdxl/day"], method="cat")
    assert '"source": "user/ghost/ghost.safetensors"' in merged.metadata["mergelab"]
    assert str(miniature.WEIGHTS) not in merged.metadata["mergelab"]
    merged.push_to_hub("user/both")
    assert (
        "[ghost](https://huggingface.co/user/ghost) (user/ghost/ghost.safetensors)" in ModelCard.load("user/both").text
    )


FORMATS: dict[str, tuple[str, dict[str, Any], str]] = {
    "diffusers": (GHOST, {"format": "diffusers", "revision": "v2"}, 'load_lora_weights("user/x", weight_name='),
    "peft": ("miniature/sdxl/house", {}, "PeftModel"),
    # Of a size that diffusers' converter does not know.
    "kohya": ("miniature/flux/fish", {"format": "kohya"}, "ml.fuse"),
}


@pytest.mark.parametrize("name", FORMATS)
def test_the_card_says_how_to_use_it(name: str, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its Python runs, from the Hub, and its pipeline draws what one does into which mergelab fuses the adapter."""
    source, options, needle = FORMATS[name]
    base, _, _ = source.rpartition("/")
    adapter = ml.load(source)
    adapter.push_to_hub("user/x", base_model=base, **options)
    text = hub.files("user/x", options.get("revision", "main"))[CARD].decode()
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert needle in code
    monkeypatch.chdir(tmp_path)
    found: dict[str, Any] = {}
    with quietly():
        exec(compile(code, CARD, "exec"), found)
        pipe = miniature.pipeline(base.removeprefix(miniature.PREFIX))
        bare = drawn(pipe, adapter, base)
        with ml.fused(pipe, adapter):
            there, here = drawn(found["pipe"], adapter, base), drawn(pipe, adapter, base)
    assert Path("image.png").is_file()
    assert np.abs(there - here).max() <= 3 < np.abs(here - bare).max()


def drawn(pipe: Any, adapter: ml.Adapter, base: str) -> NDArray[np.float64]:
    """An image of what the adapter has learnt, always from the same noise."""
    settings = miniature.settings(base.removeprefix(miniature.PREFIX)) | {"num_inference_steps": 4}
    words = adapter.metadata["modelspec.trigger_phrase"]
    image = pipe(words, generator=torch.Generator().manual_seed(3), **settings).images[0]
    return np.asarray(image, dtype=float)


def test_what_is_there_is_not_replaced(hub: Hub, tmp_path: Path, refused: Refused) -> None:
    """Other weights under the same name, a README.md by another hand: not without being asked to."""
    push = ["push", GHOST, "user/mine"]
    hub.put("user/mine", {CARD: b"# By hand", "ghost.safetensors": b"other", "b.safetensors": b""})
    before = dict(hub.files("user/mine"))
    refused(*push, needles=["user/mine", CARD, "not written by mergelab", "--force", "--no-card"])
    refused(*push, "--no-card", needles=["another ghost.safetensors", "--force", "--create-pr"])
    assert hub.files("user/mine") == before and not any("/commit/" in path for path in hub.written())
    pushed = ml.load(GHOST).push_to_hub("user/mine", create_pr=True, card=False)
    assert pushed.url.endswith("/user/mine/discussions/1") and hub.files("user/mine") == before
    ml.load(GHOST).push_to_hub("user/mine", revision="v2", overwrite=True)
    assert hub.files("user/mine") == before and BEGIN in hub.files("user/mine", "v2")[CARD].decode()
    pushed = ml.load(GHOST).push_to_hub("user/mine", overwrite=True)
    assert [note for note in pushed.notes if "place of" in note or "b.safetensors" in note] == [
        "README.md took the place of the one that was there",
        "ghost.safetensors took the place of another",
        "the repository also holds b.safetensors: whoever loads one has to name it",
    ]
    assert hub.files("user/mine")["ghost.safetensors"] != b"other"


def test_a_second_push(hub: Hub) -> None:
    """The card is written anew where mergelab wrote it; equal weights need no permission."""
    ml.load(GHOST).push_to_hub("user/mine")
    files = hub.files("user/mine")
    files[CARD] = files[CARD].replace(BEGIN.encode(), b"By hand.\n\n" + BEGIN.encode())
    pushed = ml.load(GHOST).push_to_hub("user/mine@main", base_model="user/base")
    assert any("the rest of it is kept" in note for note in pushed.notes)
    assert b"By hand." in files[CARD] and b"base_model: user/base" in files[CARD]


def test_somebody_else_pushes_meanwhile(hub: Hub, refused: Refused) -> None:
    """What has come since the repository was looked at is not written over."""
    ml.load(GHOST).push_to_hub("user/mine")

    def answer(method: str, path: str, headers: dict[str, str], body: bytes) -> Page | None:
        if "/preupload/" in path:
            hub.files("user/mine")[CARD] = b"theirs"
        return hub.answer(method, path, headers, body)

    hub.site.program = answer
    refused("push", GHOST, "user/mine", "--base-model", "user/base", needles=["meanwhile", "push again"])
    assert hub.files("user/mine")[CARD] == b"theirs"


def _page(status: int, code: str = "", message: str = "") -> Page:
    headers = {"X-Error-Code": code, "X-Error-Message": message}
    body = json.dumps({"errors": [{"message": message}]}).encode()
    return Page(body, status, {key: value for key, value in headers.items() if value}, validated=False)


REFUSALS: dict[str, tuple[str, dict[str, Page], list[str]]] = {
    "whose token may not write": ("reader/x", {}, ["token of reader may not write there", "HF_TOKEN", "namespace"]),
    "another's name": ("someone/x", {}, ["token of user may not write there", "a name of your own"]),
    "another's repository": ("other/there", {}, ["token of user may not write there", "write access"]),
    "a taken name": ("user/x", {"POST /api/repos/create": _page(409, message="a dataset")}, ["is taken", "a dataset"]),
    "no right to upload": (
        "user/x",
        {"lfs/objects/batch": _page(403, message="read only")},
        ["read only", "the repository was made"],
    ),
    "a card it does not take": (
        "user/x",
        {"validate-yaml": _page(400, message="no such licence")},
        ["README.md", "no such"],
    ),
    "a fault of its own": ("user/x", {"/commit/": _page(500, message="sorry")}, ["HTTP 500", "sorry"]),
    "no name": ("user/..x", {}, ["user/..x"]),
    "otherwise public": ("user/there", {}, ["exists, and is public", "--private"]),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_refusals(name: str, hub: Hub, refused: Refused) -> None:
    """Each is one sentence and exit code 2; no file is in the repository."""
    repo, hub.fails, needles = REFUSALS[name]
    hub.put("other/there", {})
    hub.put("user/there", {})
    if repo.startswith("reader"):
        hub.token("hf_read")
    options = ["--private"] if repo == "user/there" else []
    refused("push", GHOST, repo, *options, needles=[repo, *needles])
    assert not any(name != ".gitattributes" for known in hub.repos.values() for name in known.branches["main"])


def test_without_a_valid_token(hub: Hub, refused: Refused, monkeypatch: pytest.MonkeyPatch) -> None:
    """None, or one that the Hub does not know."""
    hub.token("hf_wrong")
    refused("push", GHOST, "user/x", needles=["does not know the token", "hf auth login"])
    monkeypatch.delenv("HF_TOKEN")
    asked = len(hub.site.asked)
    refused("push", GHOST, "user/x", needles=["there is no token", "hf auth login", "HF_TOKEN"])
    assert len(hub.site.asked) == asked
    assert ml.load(GHOST).push_to_hub("x", token="hf_write").repo == "user/x"


@pytest.mark.parametrize("how", ["down", "offline"])
def test_without_a_connection(how: str, hub: Hub, refused: Refused, monkeypatch: pytest.MonkeyPatch) -> None:
    """One sentence at once."""
    with serving() as gone:
        pass
    if how == "down":
        monkeypatch.setattr(constants, "ENDPOINT", gone.address)
    else:
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    refused("push", GHOST, "user/x", needles=["the Hugging Face Hub cannot be reached", "nothing was uploaded"])


def test_interrupted(hub: Hub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Ctrl-C while it uploads: exit code 130, and what is true of the repository."""

    def interrupt(*arguments: Any) -> Page:
        raise KeyboardInterrupt

    monkeypatch.setattr("mergelab.publishing.hub.Repository.commit", interrupt)
    assert cli.run(["push", GHOST, "user/x"]) == 130
    assert "all of the files, or none" in capsys.readouterr().err
