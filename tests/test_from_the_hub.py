"""Adapters from the Hugging Face Hub, through huggingface_hub and a server that answers as the Hub does."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest
from huggingface_hub import constants
from safetensors.torch import save

import mergelab as ml
from mergelab import cli
from mergelab.formats.fetching.hub import Reference, by_address, by_name
from tests.files import LAYER, lora
from tests.peft_folders import component_folders, peft_folder
from tests.refusing import Refused, one_sentence
from tests.serving import Page, Site, serving

COMMIT, OLD = "c" * 40, "a" * 40
PEFT = peft_folder()
ERROR = {"X-Repo-Commit": COMMIT, "X-Error-Code": "EntryNotFound"}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    """A hub with some repositories, and an empty cache."""
    monkeypatch.delenv("HF_TOKEN", raising=False)
    with serving() as site:
        monkeypatch.setattr(constants, "ENDPOINT", site.address)
        template = f"{site.address}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
        put(site, "user/one", {"README.md": b"", "loras/style.safetensors": save(lora(rank=4))})
        put(site, "user/one", {"loras/style.safetensors": save(lora(rank=2))}, "v1", OLD)
        put(site, "user/one", {"loras/style.safetensors": save(lora(rank=3))}, "refs/pr/1", "b" * 40)
        put(site, "user/many", {f"{name}.safetensors": save(lora()) for name in "ab"})
        put(site, "user/peft", PEFT)
        put(site, "user/parts", component_folders())
        put(site, "user/steps", {f"checkpoint-5/{name}": body for name, body in PEFT.items()})
        put(site, "user/none", {"README.md": b""})
        yield site


def put(site: Site, repo: str, files: dict[str, bytes], revision: str = "main", commit: str = COMMIT) -> None:
    """What the Hub answers of a repository."""
    for name in (revision, commit):
        tree = [{"type": "file", "path": path, "oid": "0" * 40, "size": len(body)} for path, body in files.items()]
        page = Page(json.dumps(tree).encode(), headers={"Content-Type": "application/json"})
        site.pages[f"/api/models/{repo}/tree/{quote(name, safe='')}"] = page
        for path, body in files.items():
            site.pages[f"/{repo}/resolve/{quote(name, safe='')}/{path}"] = Page(body, headers={"X-Repo-Commit": commit})
        absent = f"/{repo}/resolve/{quote(name, safe='')}/adapter_config.json"
        site.pages.setdefault(absent, Page(status=404, headers={**ERROR, "X-Repo-Commit": commit}))


@pytest.mark.parametrize(
    ("source", "rank"),
    [
        ("user/one", 4),
        ("user/one/loras/style.safetensors", 4),
        ("user/one@v1/loras/style.safetensors", 2),
        ("user/one@v1", 2),
        ("user/one@refs/pr/1/loras/style.safetensors", 3),
        (f"user/one@{OLD}/loras/style.safetensors", 2),
        ("user/one/loras", 4),
        ("hf://user/one@v1/loras/style.safetensors", 2),
        ("{site}/user/one/resolve/v1/loras/style.safetensors?download=true", 2),
        ("{site}/user/one/blob/refs%2Fpr%2F1/loras/style.safetensors", 3),
        ("{site}/user/one/tree/v1/loras", 2),
        ("{site}/user/one", 4),
    ],
)
def test_what_a_name_means(source: str, rank: int, hub: Site, tmp_path: Path) -> None:
    """The file of that revision, in the Hub's own cache."""
    adapter = ml.load(source.format(site=hub.address))
    assert adapter.ranks == {LAYER: rank} and adapter.name == "style"
    assert adapter.inputs[0].is_relative_to(tmp_path / "hub" / "models--user--one")


def test_a_file_is_fetched_once(hub: Site, capsys: pytest.CaptureFixture[str]) -> None:
    """Whatever names it; and in a pipe nothing is written of it."""
    page = f"{hub.address}/user/one/blob/main/loras/style.safetensors"
    for source in ("user/one", "user/one/loras/style.safetensors", page):
        assert cli.run(["inspect", source]) == 0 and not capsys.readouterr().err
    assert len(hub.requests("/user/one/resolve/main/loras/style.safetensors")) == 1


@pytest.mark.parametrize(
    "source",
    [
        "user/peft",
        "user/peft/adapter_model.safetensors",
        "hf://user/peft",
        "{site}/user/peft/tree/main",
        "{site}/user/peft/resolve/main/adapter_model.safetensors",
        "user/steps/checkpoint-5",
        "user/steps/checkpoint-5/adapter_model.safetensors",
    ],
)
def test_peft(source: str, hub: Site) -> None:
    """The config comes with the weights."""
    adapter = ml.load(source.format(site=hub.address))
    assert [layer.scaling for layer in adapter.layers.values()] == [3.0]
    assert adapter.is_file and adapter.source.startswith("user/")
    assert COMMIT not in adapter.source and [path.name for path in adapter.inputs] == [
        "adapter_model.safetensors",
        "adapter_config.json",
    ]


def test_peft_of_two_components(hub: Site) -> None:
    """A folder for each, as diffusers' examples write them."""
    assert {name.partition(".")[0] for name in ml.load("user/parts").layers} == {"unet", "text_encoder"}


def test_weights_without_a_config(hub: Site) -> None:
    """They are read as they are, once the Hub has said that there is none."""
    put(hub, "user/bare", {"adapter_model.safetensors": PEFT["adapter_model.safetensors"]})
    assert [layer.scaling for layer in ml.load("user/bare/adapter_model.safetensors").layers.values()] == [1.0]


def test_without_a_connection(hub: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is in the cache serves; what is not is one sentence."""
    ml.load("user/one/loras/style.safetensors")
    ml.load("user/peft")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert ml.load("user/one/loras/style.safetensors").ranks == {LAYER: 4}
    assert [layer.scaling for layer in ml.load("user/peft/adapter_model.safetensors").layers.values()] == [3.0]
    with pytest.raises(
        ml.SourceError, match=r"cannot be reached, and its cache here lacks a\.safetensors of user/many"
    ):
        ml.load("user/many/a.safetensors")
    with pytest.raises(ml.SourceError, match=r"cannot be reached.*without a connection, name the file"):
        ml.load("user/one")


@pytest.mark.parametrize("source", ["user/one", "user/one/loras/new.safetensors"])
def test_a_hub_that_is_down(
    source: str, hub: Site, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One sentence at once, and no line of each attempt; what is in the cache serves."""
    ml.load("user/one/loras/style.safetensors")
    with serving() as gone:
        pass
    monkeypatch.setattr(constants, "ENDPOINT", gone.address)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", f"{gone.address}/{{repo_id}}/{{revision}}/{{filename}}"
    )
    assert cli.run(["inspect", source]) == 2
    assert "the Hugging Face Hub cannot be reached" in one_sentence(capsys.readouterr().err)
    assert ml.load("user/one/loras/style.safetensors").ranks == {LAYER: 4}


REFUSALS: dict[str, tuple[str, list[str]]] = {
    "several files": ("user/many", ["2 safetensors files, name one of them: a.safetensors, b.safetensors"]),
    "none": ("user/none", ["adapter_config.json", "found neither"]),
    "no such file": ("user/one/x.safetensors", ["user/one has no file x.safetensors"]),
    "no such folder": ("user/one/x", ["user/one has no file or folder 'x'"]),
    "no such revision": ("user/one@v9/x.safetensors", ["user/one has no revision 'v9'"]),
    "no such repository": ("user/private", ["no repository user/private", "HF_TOKEN"]),
    "gated": ("user/gated/x.safetensors", ["user/gated is gated", "accept its terms", "HF_TOKEN"]),
    "no model": ("hf://datasets/user/one", ["expected a model"]),
    "nothing named": ("hf://user", ["expected a model"]),
    "no name": ("user/one two/x.safetensors", ["there is no such file or folder"]),
    "a file that is not here": ("nowhere/x.safetensors", ["there is no such file or folder"]),
    "no file here either": (
        "user/private/x.safetensors",
        ["no such file here, and the Hugging Face Hub shows no repo"],
    ),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_refusals(name: str, hub: Site, tmp_path: Path, refused: Refused, capsys: pytest.CaptureFixture[str]) -> None:
    """Each is one sentence."""
    for path, code, status in (
        ("/user/one/resolve/main/x.safetensors", "EntryNotFound", 404),
        ("/user/one/resolve/v9/x.safetensors", "RevisionNotFound", 404),
        ("/api/models/user/private/tree/main", "RepoNotFound", 401),
        ("/user/private/resolve/main/x.safetensors", "RepoNotFound", 401),
        ("/user/gated/resolve/main/x.safetensors", "GatedRepo", 403),
    ):
        hub.pages[path] = Page(status=status, headers={"X-Error-Code": code, "X-Repo-Commit": COMMIT})
    source, needles = REFUSALS[name]
    assert cli.run(["inspect", source]) == 2
    sentence = one_sentence(capsys.readouterr().err)
    assert all(needle in sentence for needle in [source, *needles])


def test_addresses() -> None:
    """Of models on the Hub, and none of others."""
    site = "https://huggingface.co/user/repo"
    assert by_address(site) == by_address(f"{site}/") == Reference("user/repo")
    assert by_address(f"{site}/tree/main/a%20b") == Reference("user/repo", "main", "a b")
    assert by_address(f"{site}/blob/refs/pr/1/x.safetensors") == Reference("user/repo", "refs/pr/1", "x.safetensors")
    assert by_address("https://huggingface.co/datasets/user/repo/resolve/main/x.safetensors") is None
    assert by_address("https://huggingface.co.evil.org/user/repo") is None
    assert by_name("user/repo@dev%2Fnew/x.safetensors") == Reference("user/repo", "dev/new", "x.safetensors")
    assert by_name("../user/repo") is by_name("user") is by_name("a/b//") is by_name("a/b//c") is None
