"""Where a result may be written, which is settled before anything is computed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mergelab.errors import OutputError


def check_target(target: Path, inputs: Sequence[Path], overwrite: bool, format: str) -> None:
    """Raise unless a file (for "peft" a folder) may be written.

    Args:
        target: what is to be written.
        inputs: files that went into the result, none of which is ever replaced.
        overwrite: whether something that exists already may be replaced.
        format: the format of the output.

    Raises:
        OutputError: it is an input, exists already, has another ending than .safetensors, or there is no such folder.
    """
    if format == "peft" and target.suffix.lower() == ".safetensors":
        raise OutputError(f"{target}: format 'peft' is a folder, expected a name without .safetensors")
    if target.suffix.lower() != ".safetensors" and format != "peft":
        raise OutputError(f"{target}: expected a name that ends in .safetensors, by which tools know such a file")
    try:
        if any(_replaces(target, path) for path in inputs):
            raise OutputError(f"{target}: is an input of this adapter, and an output never replaces an input")
        if target.exists() and not overwrite:
            raise OutputError(
                f"{target}: exists already; choose another name, or allow it to be replaced: overwrite=True, on the "
                "command line --force"
            )
        if not target.parent.is_dir():
            raise OutputError(f"{target}: there is no folder {target.parent}")
    except (OSError, ValueError) as error:
        raise OutputError(f"{target}: cannot be written: {error}") from None


def _replaces(target: Path, path: Path) -> bool:
    """Whether writing a target would replace an existing file, whatever links and names lead to it."""
    if target.resolve() == path.resolve():
        return True
    # A folder is replaced as a whole, with whatever lies within it.
    at_stake = [path, *path.resolve().parents] if target.is_dir() else [path]
    return target.exists() and any(p.exists() and target.samefile(p) for p in at_stake)
