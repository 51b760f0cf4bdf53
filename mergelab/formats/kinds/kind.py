"""What a kind of adapter is to a reader: the tensors it has for a module, and the layer they make."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import takewhile
from typing import Any

import torch
from torch import Tensor

from mergelab.checks import is_number, short_repr
from mergelab.errors import LayerError
from mergelab.layer import DerivedLayer, Layer, full_rank
from mergelab.linalg.lowrank import Factors, identity_factored


@dataclass
class ModuleTensors:
    """The tensors that a file has for one module, by role.

    Attributes:
        keys: role -> the key in the file.
        tensors: role -> the tensor.
    """

    keys: dict[str, str] = field(default_factory=dict)
    tensors: dict[str, Tensor] = field(default_factory=dict)

    def without(self, *roles: str) -> ModuleTensors:
        """All but the tensors of some roles."""
        kept = [role for role in self.keys if role not in roles]
        return replace(self, keys={r: self.keys[r] for r in kept}, tensors={r: self.tensors[r] for r in kept})

    def matrix(self, role: str) -> Tensor:
        """A tensor in float32, `(rows, everything else)`; raises `LayerError` unless it has both."""
        self.check(
            self.tensors[role].dim() > 1 and self.tensors[role].numel() > 0, "matrices, or kernels, with entries"
        )
        return self.tensors[role].detach().float().flatten(1)

    def check(self, fits: bool, expected: str) -> None:
        """Raise `LayerError` with the shapes unless they fit."""
        if not fits:
            own = {self.keys[role]: tensor for role, tensor in self.tensors.items() if role not in ("alpha", "bias")}
            common = takewhile(lambda letters: len(set(letters)) == 1, zip(*self.keys.values()))
            name = "".join(letters[0] for letters in common).rpartition(".")[0]
            shapes = ", ".join(f"{key.removeprefix(name).strip('.')} {tuple(t.shape)}" for key, t in own.items())
            raise LayerError(f"{name!r}: expected {expected}, found {shapes}, which do not fit together")


@dataclass(frozen=True, eq=False)
class Target:
    """What is known of the weight that a module changes.

    Attributes:
        shape: `(out, in[, kh, kw])`; () where only the module's tensors tell it.
        weight: reads it, `shape`, float32; None where there is no base model.
        bias: reads the bias beside it, or None where there is none.
        config: the fields of a PEFT config beside the file.
    """

    shape: tuple[int, ...] = ()
    weight: Callable[[], Tensor] | None = None
    bias: Callable[[], Tensor | None] | None = None
    config: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Kind:
    """One kind of adapter.

    Attributes:
        name: as people write it.
        leaves: (end of a key, role) -> the first that matches counts; roles are "down", "up", ... as the kind needs.
        marks: the roles of which a module has one if it is of this kind.
        to_layer: the layer of a module, given its scaling where a header or a config tells it, and what is known of
            the weight; raises `LayerError`, without the file's name.
        shape: of the weight that a module changes, before anything is checked; () where its tensors do not tell. That
            of a convolution may be flat, `(out, in * kh * kw)`.
        dim: the rank that alpha is divided by; 0 where there is none.
        needs_base: whether the layer is a function of the weight.
        bias: how the bias changes, where the layer changes it; None where it does not.
    """

    name: str
    leaves: tuple[tuple[re.Pattern[str], str], ...]
    marks: frozenset[str]
    to_layer: Callable[[ModuleTensors, float | None, Target], Layer]
    shape: Callable[[ModuleTensors], tuple[int, ...]] = lambda module: ()
    dim: Callable[[ModuleTensors], int] = lambda module: 0
    needs_base: bool = False
    bias: Callable[[ModuleTensors, Target], Tensor | None] = lambda module, target: None


def leaves(*rows: tuple[str, str]) -> tuple[tuple[re.Pattern[str], str], ...]:
    """A table of leaves from patterns of the ends of keys."""
    return tuple((re.compile(rf"{pattern}$"), role) for pattern, role in rows)


# What modules of every kind may have; `alpha` after the leaves of a kind, which may end alike.
COMMON_LEAVES = leaves(
    (r"\.lora_B(\.[^.]+)?\.bias", "bias"),
    (r"(\.lora|_lora)?\.alpha", "alpha"),
    (r"\.scalar", "scalar"),
    (r"\.(diff_b|b_norm)", "bias"),
)


def number_in(module: ModuleTensors, role: str) -> float:
    """The one number that a tensor holds."""
    tensor = module.tensors[role]
    value = float(tensor.reshape(-1)[0]) if tensor.numel() == 1 and not tensor.is_complex() else float("nan")
    if not is_number(value):
        raise LayerError(f"{module.keys[role]!r} holds {short_repr(tensor.tolist())}, expected one finite number")
    return value


def scaling_of(module: ModuleTensors, dim: int, given: float | None) -> float:
    """`alpha / dim`, else what a header or a config says, else 1; times LyCORIS' trained scalar, where there is one."""
    scaling = 1.0 if given is None else given
    if "alpha" in module.tensors and dim:
        scaling = number_in(module, "alpha") / dim
    return scaling * (number_in(module, "scalar") if "scalar" in module.tensors else 1.0)


def selected(matrix: Tensor, rows: Sequence[slice]) -> Tensor:
    """Parts of the rows of a matrix, one after the other."""
    return matrix[rows[0]] if len(rows) == 1 else torch.cat([matrix[part] for part in rows])


def dense_layer(kind: str, shape: tuple[int, ...], delta: Callable[[], Tensor], scaling: float = 1.0) -> DerivedLayer:
    """The layer of a change that is computed whole, `shape` or as a matrix."""
    return DerivedLayer(kind, shape, full_rank(shape), partial(_dense, delta), scaling)


def _dense(delta: Callable[[], Tensor], rows: Sequence[slice]) -> Factors:
    return identity_factored(selected(delta().flatten(1), rows))
