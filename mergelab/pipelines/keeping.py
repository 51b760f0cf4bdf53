"""Where the originals of changed weights are kept: beside them, in the computer's memory, in files."""

from __future__ import annotations

import os
import uuid
import weakref
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from mergelab.checks import short_repr
from mergelab.errors import OptionError, OutputError

Original = Callable[[], Tensor]
"""Gives back the bits of a tensor as it was."""
Keeper = Callable[[str, Tensor], Original]
"""Keeps the bits of a tensor of this name."""


def keeper_of(keep: str | os.PathLike[str]) -> Keeper:
    """Where originals are kept: "device", "cpu", or a folder, whose files go when they are no longer needed.

    Raises:
        OptionError: none of these.
    """
    if keep == "device":
        return lambda _, tensor: _copy(tensor, tensor.device)
    if keep == "cpu":
        return lambda _, tensor: _copy(tensor, torch.device("cpu"))
    if not isinstance(keep, (str, os.PathLike)) or not Path(keep).is_dir():
        raise OptionError(f"keep={short_repr(keep)}: expected 'device', 'cpu' or a folder that exists")
    folder = Path(keep).resolve()  # the program may go elsewhere
    return lambda name, tensor: _File(folder / f"{name}.{uuid.uuid4().hex[:8]}.safetensors", tensor)


def _copy(tensor: Tensor, device: torch.device) -> Original:
    kept = tensor.detach().to(device, copy=True)
    return lambda: kept


class _File:
    """A tensor in a file, which is removed with it."""

    def __init__(self, path: Path, tensor: Tensor) -> None:
        self._path = path
        weakref.finalize(self, path.unlink, missing_ok=True)
        try:
            save_file({"tensor": tensor.detach().contiguous()}, path)
        except Exception as error:  # what the package makes of a full disk is no OSError
            raise OutputError(f"{path}: the original cannot be kept: {error}") from error

    def __call__(self) -> Tensor:
        return load_file(self._path)["tensor"]
