"""What a kind of adapter is to a reader: the tensors it has for a module, and the layer they make."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field

from torch import Tensor

from mergelab.layer import LoraLayer


@dataclass
class ModuleTensors:
    """The tensors that a file has for one module, by role.

    Attributes:
        keys: role -> the key in the file.
        tensors: role -> the tensor.
    """

    keys: dict[str, str] = field(default_factory=dict)
    tensors: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Kind:
    """One kind of adapter.

    Attributes:
        name: as people write it.
        leaves: (end of a key, role) -> the first that matches counts; roles are "down", "up", ... as the kind needs.
        marks: the roles of which a module has one if it is of this kind.
        to_layer: the layer of a module, given its scaling where a header or a config tells it; raises `LayerError`,
            without the file's name.
    """

    name: str
    leaves: tuple[tuple[re.Pattern[str], str], ...]
    marks: frozenset[str]
    to_layer: Callable[[ModuleTensors, float | None], LoraLayer]


def leaves(*rows: tuple[str, str]) -> tuple[tuple[re.Pattern[str], str], ...]:
    """A table of leaves from patterns of the ends of keys."""
    return tuple((re.compile(rf"{pattern}$"), role) for pattern, role in rows)


# What modules of every kind may have; `alpha` after the leaves of a kind, which may end alike.
COMMON_LEAVES = leaves(
    (r"\.lora_B(\.[^.]+)?\.bias", "bias"),
    (r"(\.lora|_lora)?\.alpha", "alpha"),
    (r"\.diff_b", "bias"),
)
