"""How the layers of a file are spelt: the format, and what tools that read it differ in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from mergelab.layer import AdapterData


@dataclass(frozen=True)
class Layout:
    """How a file is written.

    Attributes:
        format: "diffusers", "kohya", "comfy", "peft", "nunchaku" or "same".
        t5: what T5's modules begin with in kohya's format, None: as the architecture says.
        original_names: False: diffusers' names also where the format has those of the original model.
        alpha_is_rank: every alpha is the rank of its layer, for a tool that reads no alpha; so they always are in a
            format that has no alphas.
        quantized: the file of nunchaku's quantised model that format "nunchaku" is packed for.
    """

    format: str
    t5: str | None = None
    original_names: bool = True
    alpha_is_rank: bool = False
    quantized: Path | None = None

    @property
    def is_folder(self) -> bool:
        """Whether what is written is a folder, not a file."""
        return self.format == "peft"

    @property
    def is_packed(self) -> bool:
        """Whether the factors are stored as the kernels of one quantised model read them."""
        return self.format == "nunchaku"


Writer = Callable[[AdapterData, Layout], dict[str, Tensor]]
"""Turns an adapter into the tensors of a file."""
