"""How a source is to be read."""

from __future__ import annotations

from dataclasses import dataclass

from mergelab.formats.base_sources import BaseSource
from mergelab.formats.base_weights import BaseWeights


@dataclass(frozen=True)
class ReadOptions:
    """What a reader may do and has to be told; travels as one object from `load` to the file.

    Attributes:
        allow_pickle: read `.bin`, `.pt`, `.pth` and `.ckpt` too, with `weights_only=True`.
        architecture: the id of the base model, where the file does not tell.
        base: the weights of the base model, or where they are, for adapters that are functions of them.
    """

    allow_pickle: bool = False
    architecture: str | None = None
    base: BaseSource | BaseWeights | None = None
