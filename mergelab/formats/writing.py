"""`AdapterData` -> a file or a folder, in the format or for the tool asked for."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from mergelab.formats.cast_errors import cast_error
from mergelab.formats.casting import cast
from mergelab.formats.files import replacing_folder
from mergelab.formats.headers import header
from mergelab.formats.layout import Layout
from mergelab.formats.messages import about
from mergelab.formats.nunchaku import packed, packed_dtype
from mergelab.formats.peft import folder_alphas, folder_config, split_components
from mergelab.formats.peft_config import PEFT_CONFIG, PEFT_WEIGHTS
from mergelab.formats.planning import tensors_of
from mergelab.formats.tensor_files import hashed, write_safetensors
from mergelab.formats.tools import Fitted
from mergelab.layer import AdapterData


@dataclass(frozen=True)
class Written:
    """A file that was written.

    Attributes:
        path: of the file, or the folder.
        format: that it is in.
        layers: how many were written.
        notes: sentences that a user should know: what a tool has no place for, which tools read less of it.
        cast_error: `||saved - exact|| / ||exact||` over all layers, None where nothing was cast.
    """

    path: Path
    format: str
    layers: int
    notes: tuple[str, ...] = ()
    cast_error: float | None = None

    def lines(self) -> list[str]:
        """The notes, and the error of the cast, in words."""
        error = [] if self.cast_error is None else [f"  relative error {self.cast_error:.2g} from the cast"]
        return error + [f"  note: {note}" for note in self.notes]


def state_dict(data: AdapterData, layout: Layout, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
    """The tensors of a file, by key.

    Args:
        data: what to write.
        layout: how; for "peft" the keys of one component's folder.
        dtype: of the factors; None keeps each as it is, float32 where a scaling would otherwise be rounded.

    Raises:
        FormatError, ArchitectureError: a layer or an extra that the format has no name for.
        OutputError: a value that overflows the dtype, or a layer that loses more in it than rounding explains.
    """
    with about(data.source):
        if layout.is_packed:
            return packed(cast(tensors_of(data, layout), packed_dtype(layout, dtype)), layout)
        return cast(tensors_of(data, layout), dtype)


def write(plan: Fitted, path: Path, dtype: torch.dtype | None) -> Written:
    """Write a file, or for "peft" a folder (one folder in it per component where there are several)."""
    data, layout = plan.data, plan.layout
    if layout.is_folder:
        error = _write_folder(data, layout, path, dtype)
    else:
        with about(data.source):
            dtype = packed_dtype(layout, dtype) if layout.is_packed else dtype
            exact = tensors_of(data, layout)
            after = exact if dtype is None else cast(exact, dtype)
            tensors = packed(after, layout) if layout.is_packed else after
        format = data.dialect or "" if layout.format == "same" else layout.format
        strings = header(data, format, tensors)
        if layout.quantized is not None:
            strings["mergelab.quantized"] = layout.quantized.name
        with hashed(tensors) as digest:
            with about(data.source):
                error = _error(exact, after, dtype)
            write_safetensors(path, tensors, strings, digest)
    return Written(path, layout.format, len(data.layers), plan.notes, error)


def _error(exact: dict[str, Tensor], after: Mapping[str, Tensor], dtype: torch.dtype | None) -> float | None:
    """The error of a cast; None where there was none, of tensors that are looked through in its place."""
    if dtype is None:
        cast(exact, None)
        return None
    return cast_error(exact, after)


def _write_folder(data: AdapterData, layout: Layout, folder: Path, dtype: torch.dtype | None) -> float | None:
    """Write a folder; the error of the cast over all components."""
    with about(data.source):
        parts = split_components(data)
    exact: dict[str, Tensor] = {}
    saved: dict[str, Tensor] = {}
    with replacing_folder(folder, {PEFT_CONFIG, PEFT_WEIGHTS[0]}) as temporary:
        for component, part in parts.items():
            target = temporary if len(parts) == 1 else temporary / component
            target.mkdir(exist_ok=True)
            with about(data.source):
                before = tensors_of(part, layout)
                after = cast(before, dtype)
            strings = {**header(part, "peft", after), "format": "pt", "mergelab.component": component}
            with hashed(after) as digest:
                write_safetensors(target / PEFT_WEIGHTS[0], after, strings, digest)
            text = json.dumps(folder_config(part, component), indent=2, sort_keys=True)
            (target / PEFT_CONFIG).write_text(text + "\n", encoding="utf-8")
            alphas = folder_alphas(part)
            exact |= {f"{component}.{key}": tensor for key, tensor in {**before, **alphas}.items()}
            saved |= {f"{component}.{key}": tensor for key, tensor in {**after, **alphas}.items()}
    return None if dtype is None else cast_error(exact, saved)
