"""The kinds of adapters: one file for each, and a line in the table; `refused` has those that are not read."""

from __future__ import annotations

from dataclasses import replace

from mergelab.errors import LayerError
from mergelab.formats.kinds.dora import dora
from mergelab.formats.kinds.full import FULL
from mergelab.formats.kinds.glora import GLORA
from mergelab.formats.kinds.ia3 import IA3
from mergelab.formats.kinds.kind import COMMON_LEAVES, Kind, ModuleTensors, Target
from mergelab.formats.kinds.loha import LOHA
from mergelab.formats.kinds.lokr import LOKR
from mergelab.formats.kinds.lora import LORA
from mergelab.formats.kinds.oft import OFT
from mergelab.formats.kinds.peft_boft import PEFT_BOFT
from mergelab.formats.kinds.peft_ia3 import PEFT_IA3
from mergelab.formats.kinds.peft_oft import PEFT_OFT
from mergelab.formats.kinds.refused import refused_kind
from mergelab.layer import DerivedLayer, Layer

__all__ = [
    "KINDS",
    "Kind",
    "ModuleTensors",
    "Target",
    "kind_of",
    "module_and_role",
    "module_shape",
    "refused_kind",
    "to_layer",
]


def kind_of(module: ModuleTensors) -> Kind:
    """The kind of a module; LoRA where nothing tells."""
    return next((kind for kind in KINDS if kind.marks & set(module.tensors)), KINDS[-1])


DORA = dora(kind_of)
KINDS: tuple[Kind, ...] = (DORA, LOHA, LOKR, FULL, OFT, GLORA, IA3, PEFT_OFT, PEFT_BOFT, PEFT_IA3, LORA)
"""Where a module's tensors are marks of two kinds, the first counts; the last is what a lone `alpha` is taken for."""

_LEAVES = (*(leaf for kind in KINDS for leaf in kind.leaves), *COMMON_LEAVES)


def module_and_role(key: str) -> tuple[str, str] | None:
    """The module that a key names, and the role of its tensor; None if the key has no leaf of any kind.

    Example:
        >>> module_and_role("unet.conv_in.lora_A.weight"), module_and_role("unet.conv_in.weight")
        (('unet.conv_in', 'down'), None)
    """
    for pattern, role in _LEAVES:
        if match := pattern.search(key):
            return key[: match.start()], role
    return None


def module_shape(module: ModuleTensors) -> tuple[int, ...]:
    """The shape of the weight that a module changes, `(out, in[, kh, kw])`, before anything is checked.

    () where its tensors do not tell.
    """
    try:
        return kind_of(module).shape(module)
    except LayerError:
        return ()


def to_layer(module: ModuleTensors, scaling: float | None, target: Target) -> Layer | None:
    """The layer of one module; None for a module that has nothing but a bias.

    Args:
        module: its tensors.
        scaling: from the header or a config; None: what the tensors themselves say.
        target: what is known of the weight, which some kinds need.

    Raises:
        LayerError: a tensor is missing, or they do not fit together.
    """
    if set(module.tensors) == {"bias"}:
        return None
    for role, tensor in module.tensors.items():
        if role not in ("alpha", "on_input") and not tensor.is_floating_point():
            raise LayerError(f"{module.keys[role]!r} is {tensor.dtype}, expected floating-point numbers")
    marked = [kind for kind in KINDS if kind.marks & set(module.tensors)]
    if len([kind for kind in marked if kind is not DORA]) > 1:
        keys = [next(module.keys[role] for role in module.tensors if role in kind.marks) for kind in marked]
        names = " and ".join(f"{kind.name} ({key!r})" for kind, key in zip(marked, keys))
        raise LayerError(f"one layer is {names}; expected one kind of adapter")
    kind = kind_of(module)
    layer = kind.to_layer(module, scaling, target)
    return replace(layer, dim=kind.dim(module)) if isinstance(layer, DerivedLayer) else layer
