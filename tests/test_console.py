"""Standard output and standard error: of any encoding, closed, full, or read by nobody."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import mergelab as ml
from tests.files import LAYER, OTHER, lora, write
from tests.refusing import COMMAND, one_sentence

# The settings of the interpreter that runs the suite would hide what a user sees; where the package is found stays.
PLAIN = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON") or key == "PYTHONPATH"}
FULL = Path("/dev/full")
needs_a_full_disk = pytest.mark.skipif(not FULL.exists(), reason="there is no /dev/full here")


@needs_a_full_disk
@pytest.mark.parametrize(
    ("command", "unbuffered"),
    # A buffered answer is that of the merge below.
    [
        ("methods", True),
        *((command, on) for command in ("--help", "merge --help", "--version") for on in (False, True)),
    ],
)
def test_standard_output_that_cannot_be_written(command: str, unbuffered: bool) -> None:
    """A full disk behind standard output: exit code 2 and one sentence; so it is whatever the interpreter buffers."""
    environment = PLAIN | ({"PYTHONUNBUFFERED": "1"} if unbuffered else {})
    with FULL.open("w") as full:
        done = subprocess.run(
            [*COMMAND, *command.split()], stdout=full, stderr=subprocess.PIPE, text=True, timeout=120, env=environment
        )
    assert done.returncode == 2
    assert one_sentence(done.stderr) == "mergelab: error: standard output cannot be written: No space left on device\n"


@needs_a_full_disk
def test_a_merge_whose_report_cannot_be_shown(tmp_path: Path, good: Path) -> None:
    """The file is whole, and the sentence says so."""
    out = tmp_path / "out.safetensors"
    command = [*COMMAND, "merge", str(good), str(good), "-o", str(out)]
    with FULL.open("w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, timeout=120, env=PLAIN)
    assert done.returncode == 2
    assert "standard output cannot be written: No space left on device" in one_sentence(done.stderr)
    assert "files it writes are written" in done.stderr
    assert list(ml.load(out).layers) == [LAYER, OTHER]


@needs_a_full_disk
@pytest.mark.parametrize(
    ("redirect", "stderr"),
    [
        (">&-", "mergelab: error: No such command 'frobnicate'.\n"),
        ("2>&-", ""),
        ("2>/dev/full", ""),
        (">/dev/full 2>/dev/full", ""),
        ("<&- >&- 2>&-", ""),
    ],
)
def test_an_error_that_nobody_hears(redirect: str, stderr: str) -> None:
    """Where standard error is closed or full, the exit code is what remains; nothing of it goes elsewhere."""
    command = ["sh", "-c", f'"$@" {redirect}', "sh", *COMMAND, "frobnicate"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=PLAIN)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", stderr)


def test_the_version() -> None:
    """As the package has it."""
    done = subprocess.run([*COMMAND, "--version"], capture_output=True, text=True, timeout=120, env=PLAIN)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"mergelab {ml.__version__}\n", "")


def test_an_answer_that_nobody_reads() -> None:
    """Standard output that is closed: what would go there, such as help, goes nowhere."""
    done = subprocess.run(
        ["sh", "-c", '"$@" >&-', "sh", *COMMAND, "--help"], capture_output=True, timeout=120, env=PLAIN
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


@needs_a_full_disk
@pytest.mark.parametrize("redirect", [">&-", "<&- >&- 2>&-", "2>/dev/full"])
def test_a_merge_that_nobody_watches(redirect: str, tmp_path: Path, good: Path) -> None:
    """Who closes a stream wants to hear nothing: the merge is done, and no file takes the stream's place."""
    out = tmp_path / "out.safetensors"
    command = ["sh", "-c", f'"$@" {redirect}', "sh", *COMMAND, "merge", str(good), str(good), "-o", str(out)]
    done = subprocess.run(command, capture_output=True, timeout=120, env=PLAIN)
    assert (done.returncode, done.stderr) == (0, b"")
    assert list(ml.load(out).layers) == [LAYER, OTHER]


@pytest.mark.parametrize("buffered", [True, False])
def test_broken_pipe(buffered: bool) -> None:
    """`mergelab methods | head -1`: no traceback where nobody reads on."""
    environment = PLAIN if buffered else PLAIN | {"PYTHONUNBUFFERED": "1"}
    read, write_end = os.pipe()
    os.close(read)
    try:
        done = subprocess.run(
            [*COMMAND, "methods"], stdout=write_end, stderr=subprocess.PIPE, text=True, timeout=120, env=environment
        )
    finally:
        os.close(write_end)
    assert (done.returncode, done.stderr) == (0, "")


# Several command lines, one after another: each is run as a process would run it, and followed by a line with its code.
SEVERAL = """
import sys
from mergelab.cli import main
given = sys.argv[1:] + ["THEN"]
while given:
    end = given.index("THEN")
    sys.argv, given = ["mergelab", *given[:end]], given[end + 1:]
    try:
        main()
    except SystemExit as stop:
        print("CODE", stop.code)
"""


@pytest.mark.parametrize(
    "console",
    [
        {"PYTHONIOENCODING": "cp1252"},
        {"PYTHONIOENCODING": "ascii:strict"},
        {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "LC_ALL": "C"},
        {"LC_ALL": "C"},  # UTF-8, as Python coerces it
    ],
    ids=lambda console: ",".join(f"{key}={value}" for key, value in console.items()),
)
def test_consoles_of_any_encoding(console: dict[str, str], tmp_path: Path) -> None:
    """What a console cannot show is replaced there, in results, in help and in errors; the files are written."""
    style = tmp_path / "\u30b9\u30bf\u30a4\u30eb \u2013 \u00fc.safetensors"
    write(style, lora(), metadata={"note": "\u65e5\u672c"})
    out, missing = tmp_path / "\u51fa\u529b.safetensors", tmp_path / "\u65e5\u672c.safetensors"
    given = ["merge", style, style, "-o", out, "THEN", "inspect", style, "THEN", "inspect", style, "--json"]
    given += ["THEN", "merge", "--help", "THEN", "inspect", missing]
    done = subprocess.run(
        [os.fsencode(part) for part in (sys.executable, "-c", SEVERAL, *given)],
        capture_output=True,
        timeout=120,
        env=PLAIN | {"LC_ALL": "C.UTF-8"} | console,
    )
    merged, inspected, described, usage, nothing, *_ = done.stdout.split(b"CODE ")
    assert b".safetensors: 1 layer, format diffusers" in merged
    assert inspected.startswith(b"0\n") and b"note: " in inspected
    assert json.loads(described.removeprefix(b"0\n"))["metadata"]["note"] == "\u65e5\u672c"
    assert usage.startswith(b"0\n") and b"Usage" in usage
    assert (nothing, done.stdout.split(b"CODE ")[-1]) == (b"0\n", b"2\n")
    one_sentence(done.stderr.decode(errors="replace"))
    assert ml.load(out).metadata["mergelab"]
