"""Outputs that may not or cannot be written: an input, a file that exists, a full disk."""

from __future__ import annotations

import math
import os
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

import mergelab as ml
from mergelab import cli
from tests.files import FORMATS, LAYER, OTHER, OUTPUTS, TEXT, A, B, content, lora, write
from tests.refusing import COMMAND, Refused, one_sentence, run


@pytest.mark.parametrize("force", [(), ("--force",)])
@pytest.mark.parametrize("kind", ["same", "symlink", "hard link", "relative", "dots", "linked folder"])
def test_output_is_an_input(
    kind: str, force: tuple[str, ...], tmp_path: Path, good: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An input is never replaced, whatever it is called, even with --force."""
    out = tmp_path / "out.safetensors"
    if kind == "symlink":
        out.symlink_to(good)
    elif kind == "hard link":
        out.hardlink_to(good)
    elif kind == "linked folder":
        (tmp_path / "linked").symlink_to(tmp_path, target_is_directory=True)
        out = tmp_path / "linked" / good.name
    else:
        out = {"relative": Path(good.name), "dots": tmp_path / "." / ".." / tmp_path.name / good.name}.get(kind, good)
        monkeypatch.chdir(tmp_path)
    before = content(tmp_path)
    for command in (["merge"], ["convert", "--format", "kohya"], ["resize", "--rank", "1"]):
        refused(*command, good, "-o", out, *force, needles=[str(out), "input"])
    with pytest.raises(ml.OutputError, match="input"):
        ml.merge([good, good]).save(out)
    with pytest.raises(ml.OutputError, match="input"):
        (0.5 * ml.load(good)).select("unet").save(out, overwrite=True)
    assert content(tmp_path) == before


def test_output_folder_is_an_input(tmp_path: Path, refused: Refused) -> None:
    """A PEFT folder is never replaced by what was made from it, or from a folder within it."""
    both = write(tmp_path / "both.safetensors", lora(), lora(TEXT))
    peft = tmp_path / "peft"
    ml.load(both).save(peft, format="peft")
    assert sorted(path.name for path in peft.iterdir()) == ["text_encoder", "unet"]
    for source in (peft, peft / "unet", peft / "unet" / "adapter_model.safetensors"):
        refused("convert", source, "-o", peft, "--format", "peft", "--force", needles=[str(peft), "input"])


def test_output_exists(tmp_path: Path, good: Path, refused: Refused, capsys: pytest.CaptureFixture[str]) -> None:
    """An existing file is kept, which is said before any merging; with --force it is replaced."""
    out = tmp_path / "out.safetensors"
    out.write_text("precious")
    poison = lora()
    poison[A][0, 0] = math.nan
    bad = write(tmp_path / "bad.safetensors", poison)
    refused("merge", bad, "-o", out, needles=[str(out), "exists", "overwrite=True", "--force"])
    refused("convert", bad, "-o", out, "--format", "kohya", needles=[str(out), "exists", "--force"])
    refused("resize", bad, "-o", out, "--rank", "1", needles=[str(out), "exists", "--force"])
    refused("merge", bad, "-o", out, "--force", needles=["NaN"])
    assert out.read_text() == "precious"
    assert cli.run(["merge", str(good), "-o", str(out), "--force"]) == 0
    assert list(ml.load(out).layers) == [LAYER, OTHER]
    with pytest.raises(ml.OutputError, match="exists"):
        ml.load(good).save(out, overwrite=False)


@pytest.mark.parametrize("format", FORMATS)
def test_output_that_cannot_be(format: str, tmp_path: Path, good: Path, refused: Refused) -> None:
    """No such folder, a folder for a file, a file for a folder, a name that is too long: nothing is left behind."""
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "precious.txt").touch()
    (tmp_path / "file").touch()
    wrong = tmp_path / ("file" if format == "peft" else "folder")
    for out in (tmp_path / "no folder" / "out", tmp_path / "file" / "out", wrong, tmp_path / ("x" * 5000)):
        refused("merge", good, "-o", out, "--format", format, "--force", needles=[str(out)])
        with pytest.raises(ml.OutputError):
            ml.load(good).save(out, format=format)
    refused("merge", good, "-o", tmp_path / "folder", "--format", "peft", "--force", needles=["folder"])


def test_float16_overflow(tmp_path: Path, refused: Refused) -> None:
    """A value that float16 cannot hold: the layer, the value and the remedy are named; bfloat16 holds it."""
    tensors = lora()
    tensors[B][0, 0] = 1e6
    file = write(tmp_path / "large.safetensors", tensors)
    out = tmp_path / "out.safetensors"
    needles = [LAYER, "1e+06", "bfloat16"]
    refused("convert", file, "-o", out, "--format", "diffusers", "--dtype", "float16", needles=[str(file), *needles])
    refused("merge", file, "-o", out, "--method", "cat", "--dtype", "float16", needles=["large", *needles])
    with pytest.raises(ml.OutputError, match="bfloat16"):
        ml.load(file).state_dict(dtype=torch.float16)
    assert cli.run(["merge", str(file), "-o", str(out), "--dtype", "bfloat16"]) == 0


@pytest.fixture
def large(tmp_path: Path) -> Path:
    """A file of 64 KiB and more."""
    return write(tmp_path / "large.safetensors", lora(LAYER, 1024, 1024, 8))


@pytest.mark.parametrize("format", ["diffusers", "peft"])
def test_file_size_limit(format: str, tmp_path: Path, large: Path) -> None:
    """A write that fails midway, as on a full disk, leaves what was there."""
    resource = pytest.importorskip("resource")
    out = tmp_path / OUTPUTS[format]
    ml.load(lora()).save(out, format=format)
    before = content(tmp_path)
    done = run(
        *("convert", large, "-o", out, "--format", format, "--force"),
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000)),
    )
    assert done.returncode == 2
    assert "cannot be written" in one_sentence(done.stderr)
    assert content(tmp_path) == before


def in_own_mount(folder: Path, options: str, after: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run the command with a small file system of its own mounted at a folder, then list that folder.

    The mount lives in a namespace of its own, and ends with the process.
    """
    unshare = shutil.which("unshare")
    if unshare is None:
        pytest.skip("there is no unshare here")
    mount = f'mount -t tmpfs -o {options} none "$0" && cp "$1" "$0/out.safetensors"{after} || exit 77; shift'
    script = f'{mount}; "$@"; code=$?; ls -A "$0" >&2; cmp "$KEPT" "$0/out.safetensors" >&2; exit $code'
    small = write(folder.parent / "small.safetensors", lora())
    command = [unshare, "--mount", "--map-root-user", "sh", "-c", script, folder, small, *COMMAND, *arguments]
    done = subprocess.run(
        [str(part) for part in command],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**os.environ, "KEPT": str(small)},
    )
    if done.returncode in (1, 77):
        pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")
    return done


@pytest.mark.parametrize(
    ("options", "after", "reason"),
    [("size=32k", "", "No space left"), ("size=1m", ' && mount -o remount,ro "$0"', "Read-only")],
    ids=["full disk", "read-only folder"],
)
def test_file_system(options: str, after: str, reason: str, tmp_path: Path, large: Path) -> None:
    """A full disk and a read-only folder keep what they hold, and no temporary file."""
    folder = tmp_path / "mounted"
    folder.mkdir()
    out = folder / "out.safetensors"
    done = in_own_mount(folder, options, after, "merge", large, "-o", out, "--force")
    assert done.returncode == 2
    sentence, *listing = done.stderr.splitlines(keepends=True)
    assert reason in one_sentence(sentence)
    assert str(out) in sentence
    assert listing == ["out.safetensors\n"]


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")
def test_folder_without_permission(tmp_path: Path, good: Path, refused: Refused) -> None:
    """A folder that may not be written to."""
    folder = tmp_path / "closed"
    folder.mkdir(mode=0o500)
    refused("merge", good, "-o", folder / "out.safetensors", needles=["Permission denied"])
