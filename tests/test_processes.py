"""The command as a process: what it says where, its progress, its end."""

from __future__ import annotations

import os
import re
import select
import signal
import struct
import subprocess
import time
from pathlib import Path

import pytest

from tests.files import content, lora, write
from tests.refusing import COMMAND, one_sentence, run


def test_process_refuses(tmp_path: Path, good: Path) -> None:
    """The command itself: code 2, one line on standard error, nothing on standard output, nothing written."""
    bad = tmp_path / "bad.safetensors"
    bad.write_bytes(good.read_bytes()[:-1])
    before = content(tmp_path)
    done = run("merge", bad, good, "-o", tmp_path / "out.safetensors")
    assert (done.returncode, done.stdout) == (2, "")
    assert str(bad) in one_sentence(done.stderr)
    assert content(tmp_path) == before


def read_until(terminal: int, process: subprocess.Popen[bytes], pattern: str) -> str:
    """What a process writes to a terminal, until a pattern appears or it ends."""
    text, end = "", time.monotonic() + 100
    while time.monotonic() < end:
        ended = process.poll() is not None
        ready, _, _ = select.select([terminal], [], [], 0 if ended else 0.05)
        if ready:
            try:
                text += os.read(terminal, 65536).decode(errors="replace")
            except OSError:  # the other end is closed
                return text
        elif ended:
            return text
        if re.search(pattern, text):
            return text
    process.kill()
    raise AssertionError(f"no {pattern!r} in 100 s: {text!r}")


def test_progress_and_interruption(tmp_path: Path) -> None:
    """On a terminal there is a progress bar; Ctrl-C ends with code 130, no traceback and no file."""
    fcntl, pty, termios = (pytest.importorskip(name) for name in ("fcntl", "pty", "termios"))
    layers = [f"unet.down_blocks.0.attentions.{i}.proj_in" for i in range(80)]
    files = [
        write(tmp_path / f"{name}.safetensors", *(lora(layer, 1024, 1024, rank) for layer in layers))
        for name, rank in (("a", 4), ("b", 5))
    ]
    before = content(tmp_path)
    terminal, other_end = pty.openpty()
    fcntl.ioctl(other_end, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))
    arguments = [*map(str, files), "-o", str(tmp_path / "out.safetensors"), "--method", "ties", "--rank", "64"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        [*COMMAND, "merge", *arguments],
        stdout=subprocess.PIPE,
        stderr=other_end,
        env=environment,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a suite in the background ignores it
    ) as process:
        os.close(other_end)
        seen = read_until(terminal, process, r"[1-9]\d*/80")
        assert re.search(r"merging \(ties, delta\)", seen)
        assert process.poll() is None, "the merge was over before it could be interrupted"
        process.send_signal(signal.SIGINT)
        seen += read_until(terminal, process, r"\Z\A")
        stdout = process.communicate(timeout=100)[0]
    os.close(terminal)
    assert process.returncode == 130
    assert "Traceback" not in seen
    assert stdout == b""
    assert content(tmp_path) == before
    assert "interrupted" in seen.splitlines()[-1]


def test_no_progress_in_a_pipe(tmp_path: Path, good: Path) -> None:
    """In a pipe nothing is written to standard error, and the report to standard output."""
    done = run("merge", good, good, "-o", tmp_path / "out.safetensors")
    assert (done.returncode, done.stderr) == (0, "")
    assert "retained energy" in done.stdout
