"""What is known of the weights that an adapter changes: from the base model, where it is given, or from their names."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from torch import Tensor

from mergelab.errors import ArchitectureError, BaseModelNeeded, LayerError
from mergelab.formats.base_sources import BaseSource
from mergelab.formats.base_weights import BaseWeights, open_base
from mergelab.formats.kinds import ModuleTensors, Target, kind_of, module_shape
from mergelab.formats.kinds.starts import start_of
from mergelab.formats.names import Located
from mergelab.tables import counted

# Convolutions of a UNet that have 3 x 3 taps; its others have one.
_THREE_BY_THREE = ("conv1", "conv2", "conv_in", "conv_out", "conv")
# One tensor of a module from those of its parts.
Join = Callable[[list[Tensor]], Tensor]


def check_base(modules: Mapping[str, ModuleTensors], base: object) -> None:
    """Raise `BaseModelNeeded` where a module is a function of the base model's weights and these are not given."""
    if base is not None:
        return
    needing: dict[str, list[str]] = {}
    for module in modules.values():
        if (kind := kind_of(module)).needs_base:
            needing.setdefault(kind.name, []).append(next(key for r, key in module.keys.items() if r in kind.marks))
    if needing:
        what = "; ".join(f"{name} ({counted(len(k), 'layer')}, {k[0]!r} the first)" for name, k in needing.items())
        raise BaseModelNeeded(
            f"holds {what}, which changes the base model's own weights: give them too, "
            "as in load(..., base='model.safetensors'), on the command line --base"
        )


@dataclass(frozen=True, eq=False)
class Targets:
    """The weights of a base model, as far as they are known.

    Attributes:
        base: their values; None where none were given.
        config: the fields of a PEFT config beside the file.
    """

    base: BaseWeights | None = None
    config: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        base: BaseSource | BaseWeights | None,
        architecture: str | None,
        config: Mapping[str, Any] | None = None,
    ) -> Targets:
        """From what the user gives."""
        config = config or {}
        if base is None or isinstance(base, BaseWeights):
            return cls(base, config)
        try:
            return cls(open_base(base, architecture), config)
        except ArchitectureError as error:
            title = base if isinstance(base, (str, os.PathLike)) else "as given"
            raise ArchitectureError(f"its base model ({title}): {error}") from None

    @property
    def architecture(self) -> str | None:
        """The base model's id, where its weights tell."""
        return self.base.architecture if self.base else None

    @property
    def notes(self) -> tuple[str, ...]:
        """What a user should know of how the base model was read."""
        return self.base.notes if self.base else ()

    def of_module(self, module: ModuleTensors, where: Located) -> Target:
        """What is known of one module's weight.

        Raises:
            LayerError: the module needs it, and the base model has no such layer, or one of another shape.
        """
        own = module_shape(module)
        started = start_of(self.config) if "down" in module.tensors else None
        if self.base is not None and (started or kind_of(module).needs_base):
            if self.config.get("fan_in_fan_out"):
                raise LayerError(
                    f"{next(iter(module.keys.values()))!r} is a function of a weight that its model stores as (in, "
                    "out) (fan_in_fan_out), which this version of mergelab does not read"
                )
            parts = where.original.parts if where.original else [where.path]
            names = [self._name_of(f"{where.component}.{part}") for part in parts]
            shapes = [self.base.shape(name) for name in names]
            shape = (sum(s[0] for s in shapes), *shapes[0][1:])
            if own and (own[0], math.prod(own[1:])) != (shape[0], math.prod(shape[1:])):
                raise LayerError(
                    f"{next(iter(module.keys.values()))!r} is for a weight of shape {own}, and {self.base.title} has "
                    f"{shape} there: is the adapter for another base model?"
                )
            joined = partial(_joined, where, shape)
            weight, bias = partial(_weight, self.base, names, joined), partial(_bias, self.base, names, joined)
            return Target(shape, weight, bias, self.config)
        name = where.name or ""
        if where.component == "unet" and len(own) == 2 and name.endswith(_THREE_BY_THREE) and own[1] % 9 == 0:
            return Target((own[0], own[1] // 9, 3, 3))
        return Target()

    def _name_of(self, layer: str) -> str:
        """A layer's name in the base model; where the adapter's is not known, and is flat, the one that it is of."""
        assert self.base is not None
        if self.base.has(f"{layer}.weight"):
            return layer
        flat = layer.replace(".", "_")
        found = [name for name in self.base.names if name.replace(".", "_") == flat]
        return found[0] if len(found) == 1 else layer


def _weight(base: BaseWeights, names: list[str], joined: Join) -> Tensor:
    """The weight of a module of the original model, from those of diffusers' modules."""
    return joined([base.weight(name) for name in names])


def _bias(base: BaseWeights, names: list[str], joined: Join) -> Tensor | None:
    """The bias of a module, likewise."""
    biases = [bias for name in names if (bias := base.bias(name)) is not None]
    return joined(biases) if len(biases) == len(names) else None


def _joined(where: Located, shape: tuple[int, ...], parts: list[Tensor]) -> Tensor:
    return where.original.join_rows(dict(enumerate(parts)), shape) if where.original else parts[0]
