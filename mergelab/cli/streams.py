"""Standard output and standard error: of any encoding, closed, full, or read by nobody."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from io import TextIOWrapper
from pathlib import Path


class Interrupted(Exception):
    """Ctrl-C during a command that keeps something: what, in words."""


def prepare() -> None:
    """Give each stream a place to go, and each character: what a console cannot show is replaced.

    A descriptor that the caller closed (`>&-`) would be given to the next file that is opened, and libraries that print
    would write into it.
    """
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(descriptor)
    sys.stdout = sys.stdout or Path(os.devnull).open("w")  # noqa: SIM115 - open as long as the process is
    sys.stderr = sys.stderr or Path(os.devnull).open("w")  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="replace")


def drop_unwritable() -> None:
    """Empty the buffers, so that the interpreter's own flush at exit does not fail with three lines and code 120."""
    for stream in filter(None, (sys.__stdout__, sys.__stderr__)):
        try:
            stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def show(text: str) -> str | None:
    """Print to standard output; what stood in the way, if anything did. A reader who left (`| head`) is no obstacle."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        return None
    except OSError as error:
        return f"standard output cannot be written: {error.strerror}"
    return None


def complain(line: str) -> None:
    """Print to standard error; where nobody can be told, the exit code is what remains."""
    with suppress(OSError):
        print(line, file=sys.stderr, flush=True)
