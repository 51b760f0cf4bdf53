"""Adapters from web servers: kept, resumed, checked, named; and each refusal in one sentence."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from pathlib import Path

import pytest
from safetensors.torch import save

import mergelab as ml
from mergelab import cli
from mergelab.formats.fetching import web
from tests.files import LAYER, lora, write
from tests.peft_folders import peft_folder
from tests.refusing import one_sentence
from tests.serving import Page, Site, certificate, serving

FILE = save(lora(rank=4, inner=2**13, out=2**13))
HALF = 2**17  # bytes, where blocks of a download end


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache."""
    monkeypatch.setenv("MERGELAB_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("CIVITAI_API_TOKEN", raising=False)
    monkeypatch.setenv("NO_PROXY", "*")
    return tmp_path / "cache"


@pytest.fixture
def site(cache: Path) -> Iterator[Site]:
    """A server."""
    with serving() as site:
        yield site


def files(cache: Path) -> list[str]:
    """What is kept, without the notes."""
    names = [path.name for path in cache.rglob("*") if path.is_file()]
    return sorted(name for name in names if not name.endswith((".json", ".lock")) or name == "adapter_config.json")


def test_a_file(site: Site, cache: Path) -> None:
    """It is read as the same file here is, and not fetched again as long as it is the same there."""
    site.pages["/loras/style.safetensors"] = Page(FILE)
    url = f"{site.address}/loras/style.safetensors"
    first, again = ml.load(url), ml.load(url)
    assert list(first.layers) == [LAYER] and first.name == "style" and first.is_file
    assert first.layers[LAYER].lora_A.equal(again.layers[LAYER].lora_A)
    assert [bool(headers.get("If-None-Match")) for headers in site.requests("/loras/style.safetensors")] == [
        False,
        True,
    ]
    assert files(cache) == ["style.safetensors"] and first.inputs[0].read_bytes() == FILE


def test_a_new_version(site: Site, cache: Path) -> None:
    """What changed there is fetched again."""
    site.pages["/style.safetensors"] = Page(FILE)
    url = f"{site.address}/style.safetensors"
    assert ml.load(url).ranks == {LAYER: 4}
    site.pages["/style.safetensors"] = Page(save(lora(rank=2)))
    assert ml.load(url).ranks == {LAYER: 2}
    assert files(cache) == ["style.safetensors"]


def test_without_versions(site: Site, cache: Path) -> None:
    """A server that tells no version or no length: whole every time, and nothing is left of what breaks off."""
    for validated, sized in ((False, False), (False, True), (True, False)):
        site.pages["/style.safetensors"] = Page(FILE, validated=validated, sized=sized)
        assert ml.load(f"{site.address}/style.safetensors").ranks == {LAYER: 4}
    assert not any("If-None-Match" in headers for headers in site.requests("/style.safetensors"))
    page = site.pages["/style.safetensors"] = Page(FILE, sized=False, breaks=[HALF])
    with pytest.raises(ml.FormatError, match="no whole safetensors file"):
        ml.load(f"{site.address}/style.safetensors")
    assert not page.breaks and ml.load(f"{site.address}/style.safetensors").ranks == {LAYER: 4}
    site.pages["/other.safetensors"] = Page(FILE, validated=False, breaks=[HALF])
    with pytest.raises(ml.SourceError, match=r"other\.safetensors: the connection broke off.*try again"):
        ml.load(f"{site.address}/other.safetensors")
    assert files(cache) == ["style.safetensors"]
    assert ml.load(f"{site.address}/other.safetensors").ranks == {LAYER: 4}


def test_a_connection_that_breaks_off(site: Site, cache: Path) -> None:
    """The next request asks for the rest only."""
    site.pages["/style.safetensors"] = page = Page(FILE, breaks=[HALF, 2**16])
    assert ml.load(f"{site.address}/style.safetensors").inputs[0].read_bytes() == FILE
    ranges = [headers.get("Range") for headers in site.requests("/style.safetensors")]
    assert ranges == [None, f"bytes={HALF}-", f"bytes={HALF + 2**16}-"] and not page.breaks
    assert files(cache) == ["style.safetensors"]


def test_a_connection_that_never_gets_further(site: Site, cache: Path) -> None:
    """One sentence; no file appears; a later run goes on from there, or anew if the file is another by then."""
    page = site.pages["/style.safetensors"] = Page(FILE, breaks=[HALF, 0, 0])
    url = f"{site.address}/style.safetensors"
    with pytest.raises(ml.SourceError, match=rf"broke off.*goes on after {HALF} bytes"):
        ml.load(url)
    assert not list(cache.rglob("*.safetensors"))
    page.breaks.clear()
    assert ml.load(url).ranks == {LAYER: 4}
    assert site.requests("/style.safetensors")[-1]["Range"] == f"bytes={HALF}-"

    site.pages["/x.safetensors"] = Page(FILE, breaks=[HALF, 0])
    with pytest.raises(ml.SourceError):
        ml.load(f"{site.address}/x.safetensors")
    other = save(lora(rank=2))
    site.pages["/x.safetensors"] = Page(other)
    assert ml.load(f"{site.address}/x.safetensors").inputs[0].read_bytes() == other
    assert len(files(cache)) == 2


def test_a_part_that_is_no_part(site: Site, cache: Path) -> None:
    """More bytes here than there are there: it begins anew."""
    page = site.pages["/style.safetensors"] = Page(FILE, breaks=[HALF, 0])
    url = f"{site.address}/style.safetensors"
    with pytest.raises(ml.SourceError):
        ml.load(url)
    (part,) = cache.rglob("*.part")
    part.write_bytes(FILE + b"more")
    page.breaks.clear()
    assert ml.load(url).inputs[0].read_bytes() == FILE


def test_without_a_connection(cache: Path) -> None:
    """What is kept serves; what is not is one sentence."""
    with serving() as site:
        site.pages["/style.safetensors"] = Page(FILE)
        ml.load(f"{site.address}/style.safetensors")
    assert ml.load(f"{site.address}/style.safetensors").ranks == {LAYER: 4}
    sentence = r"other\.safetensors: 127\.0\.0\.1 cannot be reached: it refuses the connection$"
    with pytest.raises(ml.SourceError, match=sentence):
        ml.load(f"{site.address}/other.safetensors?token=secret")
    with pytest.raises(ml.SourceError, match=r"^https://x\.invalid/x: x\.invalid cannot be reached: there is no such"):
        ml.load("https://me:se@secret@x.invalid/x?token=secret")


@pytest.mark.parametrize(
    ("disposition", "name"),
    [
        ('attachment; filename="Style v2.safetensors"', "Style v2.safetensors"),
        ("attachment; filename*=UTF-8''caf%C3%A9.safetensors", "café.safetensors"),
        ('attachment; filename="../../.ssh/evil.safetensors"', "evil.safetensors"),
        ('attachment; filename="..\\\\evil.safetensors"', "evil.safetensors"),
        ('attachment; filename="..."', "128713"),
        (f'attachment; filename="{"x" * 300}.safetensors"', "x" * 188 + ".safetensors"),
        ("inline", "128713"),
        (None, "128713"),
    ],
)
def test_names(disposition: str | None, name: str, site: Site, cache: Path) -> None:
    """As the server says, never with a folder; else the end of the address, as on Civitai."""
    headers = {"Content-Disposition": disposition} if disposition else {}
    site.pages["/api/download/models/128713"] = Page(FILE, headers=headers)
    adapter = ml.load(f"{site.address}/api/download/models/128713?type=Model&format=SafeTensor")
    assert adapter.inputs[0].name == name and adapter.inputs[0].parent.parent == cache


def test_two_files_of_one_name(site: Site, cache: Path) -> None:
    """Addresses that differ in the query alone are two files."""
    for version, rank in (("1", 2), ("2", 3)):
        disposition = {"Content-Disposition": 'attachment; filename="lora.safetensors"'}
        site.pages[f"/download?version={version}"] = Page(save(lora(rank=rank)), headers=disposition)
    ranks = [ml.load(f"{site.address}/download?version={version}").ranks[LAYER] for version in "121"]
    assert ranks == [2, 3, 2]


def test_a_pickle_stays_one(site: Site) -> None:
    """Its name comes from the server."""
    headers = {"Content-Disposition": 'attachment; filename="lora.pt"'}
    site.pages["/download/7"] = Page(b"PK\x03\x04", headers=headers)
    with pytest.raises(ml.FormatError, match=r"lora\.pt: is a pickle.*--allow-pickle"):
        ml.load(f"{site.address}/download/7")


def test_a_token_goes_to_its_host_alone(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not where that host redirects to (another port is another host), not to any other, and not unencrypted."""
    monkeypatch.setenv("CIVITAI_API_TOKEN", "secret")
    monkeypatch.setitem(web._TOKENS, "127.0.0.1", "CIVITAI_API_TOKEN")
    site.pages["/x.safetensors"] = Page(status=401)
    with pytest.raises(ml.SourceError, match=r"set CIVITAI_API_TOKEN.*begin the address with https://"):
        ml.load(f"{site.address}/x.safetensors")
    assert "Authorization" not in site.requests("/x.safetensors")[0]
    pem = certificate(tmp_path)
    with serving(pem) as site, serving() as storage:
        with pytest.raises(ml.SourceError, match="its certificate is not accepted"):
            ml.load(f"{site.address}/api/download/models/1")
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(pem))
        storage.pages["/signed/style.safetensors"] = Page(FILE)
        target = storage.address.replace("127.0.0.1", "localhost") + "/signed/style.safetensors"
        site.pages["/api/download/models/1"] = Page(status=307, headers={"Location": target})
        assert ml.load(f"{site.address}/api/download/models/1").name == "style"
        assert "Authorization" not in storage.requests("/signed/style.safetensors")[0]
        assert site.requests("/api/download/models/1")[0]["Authorization"] == "Bearer secret"


REFUSALS = {
    "no such file": (Page(status=404), ["HTTP 404", "no such file"]),
    "gone": (Page(status=410), ["HTTP 410", "no such file"]),
    "no token": (Page(status=401), ["HTTP 401", "needs a token", ".netrc"]),
    "forbidden": (Page(status=403), ["HTTP 403", "needs a token", ".netrc"]),
    "busy": (Page(status=503), ["HTTP 503", "try again later"]),
    "a page": (
        Page(b"<html></html>", headers={"Content-Type": "text/html; charset=utf-8"}),
        ["is a web page", "itself"],
    ),
    "a page in disguise": (Page(b"<!DOCTYPE html><html></html>"), ["is a web page"]),
    "no adapter": (Page(b"GGUF\x03\x00\x00\x00"), ["is a GGUF file"]),
    "nowhere": (Page(status=302, headers={"Location": "/x.safetensors"}), ["could not be fetched", "without an end"]),
    "to no address": (Page(status=302, headers={"Location": "http://[bad"}), ["could not be fetched", "no address"]),
    "not changed": (Page(status=304), ["HTTP 304"]),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_refusals(name: str, site: Site, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each is one sentence that names the address, without its query."""
    page, needles = REFUSALS[name]
    site.pages["/x.safetensors"] = page
    assert cli.run(["inspect", f"{site.address}/x.safetensors?token=secret"]) == 2
    sentence = one_sentence(capsys.readouterr().err)
    assert all(needle in sentence for needle in ["x.safetensors", *needles]) and "secret" not in sentence


def test_civitai_is_told_of_its_token(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where it answers with its page for logging in."""
    monkeypatch.setitem(web._TOKENS, "127.0.0.1", "CIVITAI_API_TOKEN")
    for page in (Page(status=401), Page(b"<html>", headers={"Content-Type": "text/html"})):
        site.pages["/api/download/models/1"] = page
        with pytest.raises(ml.SourceError, match="set CIVITAI_API_TOKEN"):
            ml.load(f"{site.address}/api/download/models/1")
    assert {"civitai.com", "civitai.red"} <= set(web._TOKENS)


def test_peft(site: Site, cache: Path) -> None:
    """A folder by its address, and its weights alone: the config counts; without a config they are read as they are."""
    for name, body in peft_folder().items():
        site.pages[f"/peft/{name}"] = Page(body)
    for end in ("", "adapter_model.safetensors"):
        adapter = ml.load(f"{site.address}/peft/{end}")
        assert [layer.scaling for layer in adapter.layers.values()] == [3.0] and len(adapter.inputs) == 2
    assert files(cache) == ["adapter_config.json", "adapter_model.safetensors"]
    site.pages["/alone/adapter_model.safetensors"] = site.pages["/peft/adapter_model.safetensors"]
    adapter = ml.load(f"{site.address}/alone/adapter_model.safetensors")
    assert [layer.scaling for layer in adapter.layers.values()] == [1.0] and adapter.notes
    with pytest.raises(ml.SourceError, match=r"/alone/adapter_config\.json: 127\.0\.0\.1 has no such file"):
        ml.load(f"{site.address}/alone/")


def test_peft_is_called_by_its_address(site: Site) -> None:
    """Not by its place in the cache; nor is what is wrong with it."""
    for name, body in peft_folder().items():
        site.pages[f"/peft/{name}"] = Page(body)
    adapter = ml.load(f"{site.address}/peft/?token=secret")
    assert (adapter.source, adapter.name, adapter.is_file) == (f"{site.address}/peft", "peft", True)
    assert not (2 * adapter).is_file and not adapter.select("unet").is_file
    site.pages["/peft/adapter_config.json"] = Page(b"{")
    with pytest.raises(ml.FormatError, match=rf"^{site.address}/peft/adapter_config.json: is no JSON"):
        ml.load(f"{site.address}/peft/")
    site.pages["/models/7"] = Page(b"none", headers={"Content-Disposition": 'attachment; filename="x.safetensors"'})
    with pytest.raises(ml.FormatError, match=rf"^{site.address}/models/7/x.safetensors: is no whole"):
        ml.load(f"{site.address}/models/7?token=secret")


def test_a_config_that_is_there_no_more(site: Site) -> None:
    """It does not count any longer."""
    for name, body in peft_folder().items():
        site.pages[f"/peft/{name}"] = Page(body)
    url = f"{site.address}/peft/adapter_model.safetensors"
    assert [layer.scaling for layer in ml.load(url).layers.values()] == [3.0]
    del site.pages["/peft/adapter_config.json"]
    assert [layer.scaling for layer in ml.load(url).layers.values()] == [1.0]


def test_a_signed_address(site: Site) -> None:
    """What follows the "?" opens the config as well; where it does not, that is said of the config."""
    for name, body in peft_folder().items():
        site.pages[f"/peft/{name}"] = Page(status=403)
        site.pages[f"/peft/{name}?sig=1"] = Page(body)
    url = f"{site.address}/peft/adapter_model.safetensors?sig=1"
    assert [layer.scaling for layer in ml.load(url).layers.values()] == [3.0]
    del site.pages["/peft/adapter_config.json?sig=1"]
    with pytest.raises(ml.SourceError, match=r"the adapter_config\.json beside it, which says its alpha, is refused"):
        ml.load(url)


@pytest.mark.parametrize("url", ["https://[bad/x.safetensors", "HTTP://[::1/x", "https://host:port/x?token=secret"])
def test_no_address(url: str, cache: Path) -> None:
    """One sentence."""
    with pytest.raises(ml.SourceError, match=r"it is no address of the web") as caught:
        ml.load(url)
    assert "secret" not in str(caught.value)


def test_a_bar_on_a_terminal_alone(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the name of the file; in a pipe nothing is written."""

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    for stream in (Terminal(), io.StringIO()):
        site.pages[f"/{type(stream).__name__}.safetensors"] = Page(FILE)
        with contextlib.redirect_stderr(stream):
            ml.load(f"{site.address}/{type(stream).__name__}.safetensors")
        assert ("Terminal.safetensors" in stream.getvalue()) == stream.isatty() == bool(stream.getvalue())


def test_a_cache_that_cannot_be(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file where the folder should be."""
    (tmp_path / "occupied").touch()
    monkeypatch.setenv("MERGELAB_CACHE", str(tmp_path / "occupied"))
    site.pages["/style.safetensors"] = Page(FILE)
    with pytest.raises(ml.SourceError, match=r"cannot be kept in .*occupied.*MERGELAB_CACHE"):
        ml.load(f"{site.address}/style.safetensors")


def test_on_the_command_line(site: Site, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With a weight, and beside a local file."""
    site.pages["/style.safetensors"] = Page(save(lora()))
    local, out = write(tmp_path / "subject.safetensors", lora()), tmp_path / "out.safetensors"
    url = f"{site.address}/style.safetensors?download=true"
    assert cli.run(["merge", url, f"{local}:0.5", "--method", "cat", "-o", str(out)]) == 0, capsys.readouterr().err
    expected = 1.5 * ml.load(local)
    assert (ml.load(out) - expected).norm() / expected.norm() < 1e-6
