"""What an adapter can do about files: `Savable`."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from mergelab.formats.planning import plan, to_dtype
from mergelab.formats.sources import located
from mergelab.formats.targets import check_target
from mergelab.formats.writing import Written, state_dict, write
from mergelab.layer import AdapterData

_LOG = logging.getLogger("mergelab")


@dataclass(frozen=True, eq=False)
class Savable(AdapterData):
    """An adapter that can be written.

    Attributes:
        inputs: the files it was made from, which none of its files ever replaces.
    """

    inputs: tuple[Path, ...] = ()

    def state_dict(
        self,
        format: str | None = None,
        dtype: torch.dtype | str | None = None,
        for_: str | None = None,
        quantized: str | os.PathLike[str] | None = None,
    ) -> dict[str, Tensor]:
        """The tensors of a file, by key.

        Arguments and errors are those of `save`; for "peft", which has the keys of one component's folder, several
        components are a `FormatError`.

        Example:
            >>> import mergelab as ml
            >>> next(iter(ml.load("miniature/sdxl/ghost").state_dict("kohya", "float16")))
            'lora_unet_down_blocks_1_attentions_0_proj_in.lora_down.weight'
        """
        chosen = plan(self, format, for_, quantized=located(quantized))
        _log(chosen.notes, for_)
        return state_dict(chosen.data, chosen.layout, to_dtype(dtype))

    def save(
        self,
        path: str | os.PathLike[str],
        format: str | None = None,
        dtype: torch.dtype | str | None = None,
        overwrite: bool = True,
        for_: str | None = None,
        quantized: str | os.PathLike[str] | None = None,
    ) -> Path:
        """Write the adapter.

        The file is written beside its target and renamed when it is whole, so that a full disk or an interruption
        leaves what was there. Where the dtype is too narrow for a factor of a layer, the two are balanced first: powers
        of two go from one to the other, and the change stays what it is.

        Args:
            path: a `.safetensors` file; for "peft" a folder.
            format: "diffusers", "kohya", "comfy" (ComfyUI's names for every base model), "peft", or "same" (the dialect
                of the inputs). By default "diffusers" where a pipeline has such layers, else "same".
                And "nunchaku": packed as the kernels of one quantised FLUX.1 read it.
            dtype: "float32", "float16", "bfloat16"; None keeps every tensor exact in the dtype it has. A packed file is
                float16 or bfloat16, by default as the quantised model's own branch.
            overwrite: whether an existing file may be replaced. A file that went into the adapter never is.
            for_: instead of a format the tool that is to read the file: "comfyui", "forge", "a1111", "sd-scripts",
                "aitoolkit", "onetrainer", "invokeai", "diffusers", "nunchaku" or "peft". What it has no place for is
                left out where it could do harm, and a logged warning says what, and how much of the change that is.
            quantized: for format "nunchaku" the quantised model's file (transformer_blocks.safetensors), here or on the
                Hub. Its own low-rank branch stands in what is written, so that this model alone can read it.

        Returns:
            The path; `write` returns also what there is to say about the file.

        Raises:
            OptionError: there is no such format, tool or dtype.
            OutputError: the target is an input, exists, or cannot be written; or a value is not finite or overflows
                the dtype, or a layer loses more in it than rounding explains.
            FormatError, ArchitectureError: the format has no name for a layer or an extra, or the tool reads no adapter
                of this base model.

        Example:
            >>> import tempfile
            >>> import mergelab as ml
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     path = ml.load("miniature/sdxl/ghost").save(f"{folder}/out.safetensors", "kohya", "float16")
            ...     len(ml.load(path).layers)
            48
        """
        written = self.write(path, format, dtype, overwrite, for_, quantized)
        _log(written.notes, for_)
        return written.path

    def write(
        self,
        path: str | os.PathLike[str],
        format: str | None = None,
        dtype: torch.dtype | str | None = None,
        overwrite: bool = True,
        for_: str | None = None,
        quantized: str | os.PathLike[str] | None = None,
    ) -> Written:
        """As `save`, with an account: the format, notes on what tools read of it, and the error of the cast.

        Example:
            >>> import tempfile
            >>> import mergelab as ml
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     written = ml.load("miniature/sdxl/ghost").write(f"{folder}/out.safetensors", dtype="bfloat16")
            ...     written.format, written.cast_error < 0.01
            ('diffusers', True)
        """
        chosen, target = plan(self, format, for_, quantized=located(quantized)), Path(path)
        model = [chosen.layout.quantized] if chosen.layout.quantized else []
        check_target(target, [*self.inputs, *model], overwrite, chosen.layout.format)
        return write(chosen, target, to_dtype(dtype))


def _log(notes: tuple[str, ...], for_: str | None) -> None:
    """What a tool has no place for is a warning; what others read less of, where none was named, is information."""
    for note in notes:
        _LOG.log(logging.WARNING if for_ else logging.INFO, note)
