"""nunchaku's quantised model as far as an adapter needs it: its modules, their shapes, its own low-rank branch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from mergelab.errors import FormatError, LayerError, OptionError
from mergelab.formats.messages import about
from mergelab.formats.nunchaku.packing import unpack
from mergelab.formats.streaming import Header, read_header

_WEIGHT = ".qweight"
_BLOCKS = ("transformer_blocks.", "single_transformer_blocks.")
# In every file of FLUX.1, and in none of another model: that one has other names.
_OF_FLUX = ("qkv_proj", "mlp_fc1", "out_proj")
_DTYPES = {"BF16": torch.bfloat16, "F16": torch.float16}


@dataclass(frozen=True)
class QuantizedModel:
    """A file of nunchaku's, read as far as it is asked: of several GB a header, and of each layer its branch.

    Attributes:
        header: what the file says of itself.
    """

    header: Header

    @classmethod
    def of(cls, path: Path | None) -> QuantizedModel:
        """The model that a file is packed for.

        Raises:
            OptionError: none is given.
            SourceError, FormatError: it cannot be read, or is none of nunchaku's files of FLUX.1.
        """
        if path is None:
            raise OptionError(
                "format 'nunchaku' is packed for one quantised model: name its file, quantized=, with mergelab convert "
                "--quantized transformer_blocks.safetensors; any of them reads a file that is written for_='nunchaku' "
                "(--for nunchaku)"
            )
        model = cls(read_header(path))
        known = {module.rpartition(".")[2] for module in model.modules}
        if not known.issuperset(_OF_FLUX):
            some = next(iter(model.header.entries), "no tensor")
            raise FormatError(
                f"{path}: expected FLUX.1 as nunchaku quantised it (transformer_blocks.safetensors), with "
                f"modules {', '.join(_OF_FLUX)}; found {some!r}"
            )
        return model

    @property
    def path(self) -> Path:
        """The file."""
        return self.header.path

    @cached_property
    def modules(self) -> dict[str, tuple[int, int]]:
        """Outputs and inputs of every quantised module."""
        shapes = {}
        for key, entry in self.header.entries.items():
            if key.startswith(_BLOCKS) and key.endswith(_WEIGHT) and len(entry.shape) == 2:
                # Two weights of 4 bits in a byte; of a modulation, four rows are one of 32-bit numbers.
                rows = entry.shape[0] * (4 if entry.dtype == "I32" else 1)
                shapes[key.removesuffix(_WEIGHT)] = (rows, entry.shape[1] * 2)
        return shapes

    @property
    def bits(self) -> str:
        """How the weights are quantised: "int4" or "fp4"."""
        scales = (entry for key, entry in self.header.entries.items() if key.endswith(".wscales"))
        return "fp4" if any(entry.dtype.startswith("F8") for entry in scales) else "int4"

    @property
    def said(self) -> str:
        """What a user has to know of a file that is packed for it."""
        name = f"{self.header.path.name} ({self.bits})"
        return f"{name}, whose own low-rank branch is in the file: no other model can read it, and no tool but nunchaku"

    @property
    def dtype(self) -> torch.dtype:
        """Of its own low-rank branch."""
        entries = self.header.entries
        found = (entries[key].dtype for key in entries if key.endswith(".lora_down"))
        return _DTYPES.get(next(found, ""), torch.bfloat16)

    def check(self, module: str, shape: Sequence[int]) -> None:
        """Raise `LayerError` where a change does not fit the module of a block."""
        if module.startswith(_BLOCKS) and self.modules.get(module) != tuple(shape):
            found = self.modules.get(module)
            raise LayerError(
                f"layer {module}: the adapter changes a weight of shape {tuple(shape)}, and the quantised model "
                f"{self.path} has {f'one of shape {found}' if found else 'none'} there; are the two for one base model?"
            )

    def branches(self) -> Iterator[tuple[str, tuple[Tensor, Tensor] | None]]:
        """Every module with its own low-rank branch, `lora_A` and `lora_B` in the usual order, None where it has none.

        Raises:
            FormatError: a branch that lacks a factor, or is none as nunchaku packs it.
        """
        with safe_open(self.path, framework="pt") as file:
            for module in self.modules:
                keys = [f"{module}.lora_{end}" for end in ("down", "up")]
                entries = [self.header.entries.get(key) for key in keys]
                if not any(entry and 0 not in entry.shape for entry in entries):
                    yield module, None
                    continue
                with about(f"{self.path}: {module}"):
                    if not all(entries):
                        raise FormatError("its low-rank branch lacks lora_down or lora_up; download the file again")
                    down, up = (unpack(file.get_tensor(key), end == "down") for key, end in zip(keys, ("down", "up")))
                    if down.shape[0] != up.shape[1] or (up.shape[0], down.shape[1]) != self.modules[module]:
                        raise FormatError(
                            f"its low-rank branch of shapes {tuple(down.shape)} and {tuple(up.shape)} does not fit its "
                            f"weight of shape {self.modules[module]}"
                        )
                yield module, (down, up)
