"""Adapters from S3, of which a server runs here, and from other places that fsspec knows."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFile, MemoryFileSystem
from safetensors.torch import save

import mergelab as ml
from mergelab import cli
from mergelab.formats.fetching.cache import entry
from mergelab.formats.fetching.folders import without_secrets
from tests.files import LAYER, lora, write
from tests.peft_folders import component_folders, peft_folder
from tests.refusing import one_sentence

FILE = save(lora(rank=4))


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """The address of an S3 server."""
    pytest.importorskip("s3fs")
    moto = pytest.importorskip("moto.server")
    running = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    running.start()
    host, port = running.get_host_and_port()
    yield f"http://{host}:{port}"
    running.stop()


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache."""
    monkeypatch.setenv("MERGELAB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def bucket(server: str, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A file system with a bucket and adapters in it."""
    for name, value in {"ENDPOINT_URL": server, "ACCESS_KEY_ID": "test", "SECRET_ACCESS_KEY": "test"}.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    system = fsspec.filesystem("s3", skip_instance_cache=True)
    system.mkdir("loras")
    files = {
        "style.safetensors": FILE,
        "many/a.safetensors": FILE,
        "many/b.safetensors": FILE,
        "single/x.safetensors": FILE,
    }
    files |= {f"peft/{name}": body for name, body in peft_folder().items()}
    files |= {f"parts/{name}": body for name, body in component_folders().items()}
    for path, body in files.items():
        system.pipe(f"loras/{path}", body)
    yield system
    system.rm("loras", recursive=True)


def test_a_file(bucket: Any, cache: Path) -> None:
    """As the same file here; fetched once, and again when it is another."""
    adapter = ml.load("s3://loras/style.safetensors")
    assert adapter.ranks == {LAYER: 4} and adapter.name == "style" and adapter.inputs[0].read_bytes() == FILE
    before = adapter.inputs[0].stat().st_mtime_ns
    assert ml.load("s3://loras/style.safetensors").inputs[0].stat().st_mtime_ns == before
    bucket.pipe("loras/style.safetensors", save(lora(rank=2)))
    assert ml.load("s3://loras/style.safetensors").ranks == {LAYER: 2}
    assert len(list(cache.rglob("*.safetensors"))) == 1 and not list(cache.rglob("*.part"))


@pytest.mark.parametrize("path", ["peft", "peft/", "peft/adapter_model.safetensors"])
def test_peft(path: str, bucket: Any) -> None:
    """A folder, or its weights: the config counts."""
    assert [layer.scaling for layer in ml.load(f"s3://loras/{path}").layers.values()] == [3.0]


def test_other_folders(bucket: Any) -> None:
    """A folder for each component; one file."""
    assert {name.partition(".")[0] for name in ml.load("s3://loras/parts").layers} == {"unet", "text_encoder"}
    assert ml.load("s3://loras/single").name == "x"


@pytest.mark.parametrize(
    ("path", "needles"),
    [
        ("loras/none.safetensors", ["no such file"]),
        ("nowhere/none.safetensors", ["nowhere"]),
        ("loras/many", ["2 safetensors files", "a.safetensors, b.safetensors"]),
    ],
)
def test_refusals(path: str, needles: list[str], bucket: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """Each is one sentence."""
    assert cli.run(["inspect", f"s3://{path}"]) == 2
    sentence = one_sentence(capsys.readouterr().err)
    assert all(needle in sentence for needle in [f"s3://{path}", *needles])


def test_on_the_command_line(bucket: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With a weight, and nothing on standard error."""
    out = tmp_path / "out.safetensors"
    line = [
        "merge",
        "s3://loras/style.safetensors:0.5",
        "s3://loras/style.safetensors",
        "--method",
        "cat",
        "-o",
        str(out),
    ]
    assert cli.run(line) == 0 and not capsys.readouterr().err
    expected = 1.5 * ml.load("s3://loras/style.safetensors")
    assert (ml.load(out) - expected).norm() / expected.norm() < 1e-6


def test_in_a_generate_config_of_ai_toolkit(bucket: Any, tmp_path: Path) -> None:
    """In either form of its keys."""
    path, out = "s3://loras/style.safetensors", tmp_path / "out.safetensors"
    for model in (f"{{lora_path: {path}, lora_weight: 0.5}}", f"{{lora_paths: [{{path: {path}, weight: 0.5}}]}}"):
        config = tmp_path / "generate.yaml"
        config.write_text(f"{{job: generate, config: {{process: [{{type: to_folder, model: {model}}}]}}}}")
        assert cli.run(["merge", "--config", str(config), "-o", str(out), "--force"]) == 0
        assert (ml.load(out) - 0.5 * ml.load(path)).norm() < 1e-6 * ml.load(path).norm()
    assert cli.run(["merge", f"{path}=0.5", "-o", str(tmp_path / "plain.safetensors")]) == 0
    assert out.read_bytes() == (tmp_path / "plain.safetensors").read_bytes()


class Flaky(MemoryFileSystem):
    """A store in memory whose connections break off after so many bytes."""

    protocol = "flaky"
    store: dict[str, Any] = {}  # noqa: RUF012
    pseudo_dirs = [""]  # noqa: RUF012
    breaks: list[int] = []  # noqa: RUF012
    starts: list[int] = []  # noqa: RUF012

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return super()._strip_protocol(path.replace("flaky://", "memory://"))

    def _open(self, path: str, mode: str = "rb", **options: Any) -> Any:
        file = super()._open(path, mode, **options)
        if mode == "rb":
            read = file.read

            def broken(size: int = -1) -> bytes:
                self.starts.append(file.tell())
                if not self.breaks:
                    return read(size)
                if (left := self.breaks.pop(0)) == 0:
                    raise ConnectionResetError("reset by peer")
                return read(left)

            file.read = broken
        return file


def test_a_connection_that_breaks_off(cache: Path) -> None:
    """It goes on from there, in the same run or a later one; no file appears before it is whole."""
    fsspec.register_implementation("flaky", Flaky, clobber=True)
    system = fsspec.filesystem("flaky")
    system.pipe("/style.safetensors", FILE)
    Flaky.breaks[:] = [100, 0]
    assert ml.load("flaky://style.safetensors").inputs[0].read_bytes() == FILE
    assert Flaky.starts[:3] == [0, 100, 100]
    system.pipe("/other.safetensors", FILE)
    Flaky.breaks[:] = [100, 0, 0]
    with pytest.raises(
        ml.SourceError, match=r"flaky://other\.safetensors: the connection broke off.*goes on after 100"
    ):
        ml.load("flaky://other.safetensors")
    assert len(list(cache.rglob("*.safetensors"))) == 1
    assert ml.load("flaky://other.safetensors").inputs[0].read_bytes() == FILE


def test_names_that_lead_out_of_a_folder(cache: Path, tmp_path: Path) -> None:
    """Whoever fills a bucket chooses its names, and not where files of this machine are."""
    fsspec.register_implementation("flaky", Flaky, clobber=True)
    system = fsspec.filesystem("flaky")
    out = f"../{cache.name}/../evil/adapter_model.safetensors"
    system.store[f"/evil/{out}"] = MemoryFile(system, f"/evil/{out}", FILE)
    system.pseudo_dirs.append("/evil")
    with pytest.raises(ml.SourceError, match=r"^flaky://evil/\.\./.*: the name '\.\./.*leads out of its folder"):
        ml.load("flaky://evil")
    assert not list(tmp_path.rglob("*.safetensors"))
    for name in (out, "/etc/x", "a/../../x.safetensors"):
        with pytest.raises(ml.SourceError, match="leads out of its folder"):
            entry("flaky://evil", name)


def test_what_is_there_no_more(cache: Path) -> None:
    """A config that was fetched once does not count when the listing has it no more."""
    fsspec.register_implementation("flaky", Flaky, clobber=True)
    system = fsspec.filesystem("flaky")
    for name, body in peft_folder().items():
        system.pipe(f"/peft/{name}", body)
    for url in ("flaky://peft", "flaky://peft/adapter_model.safetensors"):
        system.pipe("/peft/adapter_config.json", peft_folder()["adapter_config.json"])
        adapter = ml.load(url)
        assert [layer.scaling for layer in adapter.layers.values()] == [3.0]
        assert (adapter.source, adapter.is_file) == (url, True)
        system.rm("/peft/adapter_config.json")
        assert [layer.scaling for layer in ml.load(url).layers.values()] == [1.0]


def test_no_secrets_in_messages() -> None:
    """Of addresses within another package's message as well."""
    text = "GET 'https://me:se@cret@host/x?token=secret' failed for filecache::http://host/y?token=secret"
    assert without_secrets(text) == "GET 'https://host/x failed for filecache::http://host/y"


def test_a_file_of_this_machine(tmp_path: Path) -> None:
    """`file://` copies nothing."""
    path = write(tmp_path / "style.safetensors", lora())
    assert ml.load(f"file://{path}").inputs == (path,)


def test_unknown_protocols() -> None:
    """One sentence."""
    with pytest.raises(ml.SourceError, match=r"nonsense://x.*cannot be opened.*nonsense"):
        ml.load("nonsense://x")


def test_without_s3fs(tmp_path: Path) -> None:
    """The command that installs it is named."""
    (tmp_path / "s3fs.py").write_text("raise ImportError")
    code = "from mergelab.cli import run; run(['inspect', 's3://loras/x.safetensors'])"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    sentence = one_sentence(done.stderr)
    assert "python -m pip install 'mergelab[s3]'" in sentence
