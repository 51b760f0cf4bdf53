"""The shapes of the layers of published transformers, which tell a model from another with the same names.

`python -m tests.published` writes the table from diffusers' classes; a test keeps it true.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path

from mergelab.formats.architectures.evidence import Shape

TABLE = Path(__file__).with_name("published.json")


def kind_of(path: str) -> str:
    """A module's path without the numbers of blocks.

    Example:
        >>> kind_of("transformer_blocks.7.ff.net.2")
        'transformer_blocks.{}.ff.net.{}'
    """
    return re.sub(r"(?<![^.])\d+(?![^.])", "{}", path)


def is_published(id: str, shapes: Mapping[str, Shape], input_layer: str | None = None) -> bool | None:
    """Whether layers have the shapes of the published model; None where the table does not have the model.

    Args:
        id: of the architecture.
        shapes: path of a module of the denoiser -> shape of its weight.
        input_layer: a path of which only the outputs count; variants of a model read other latents.
    """
    table = _table().get(id)
    if table is None:
        return None
    return all(
        any(_alike(shape, there, path == input_layer) for there in table.get(kind_of(path), ()))
        for path, shape in shapes.items()
    )


def _alike(shape: Shape, there: tuple[int, ...], outputs_only: bool) -> bool:
    if outputs_only:
        return shape[0] == there[0]
    return shape == there or (len(there) == 4 and there[2:] == (1, 1) and shape == there[:2])


@cache
def _table() -> dict[str, dict[str, list[tuple[int, ...]]]]:
    read = json.loads(TABLE.read_text(encoding="utf-8"))
    return {id: {kind: [tuple(s) for s in some] for kind, some in kinds.items()} for id, kinds in read.items()}
