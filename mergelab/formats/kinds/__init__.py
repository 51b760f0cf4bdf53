"""The kinds of adapters: one file for each, and a line in the table; `refused` has those that are not read."""

from __future__ import annotations

from mergelab.formats.kinds.kind import COMMON_LEAVES, Kind, ModuleTensors
from mergelab.formats.kinds.lora import LORA
from mergelab.formats.kinds.refused import refused_kind
from mergelab.layer import LoraLayer

__all__ = ["KINDS", "Kind", "ModuleTensors", "module_and_role", "module_shape", "refused_kind", "to_layer"]

KINDS: tuple[Kind, ...] = (LORA,)
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
    down, up = module.tensors.get("down"), module.tensors.get("up")
    if down is None or up is None or down.dim() < 2 or not up.dim():
        return ()
    shape = (up.shape[0], *down.shape[1:])
    return shape if all(shape) else ()


def to_layer(module: ModuleTensors, scaling: float | None) -> LoraLayer | None:
    """The layer of one module; None for a module that has nothing but a bias.

    Args:
        module: its tensors.
        scaling: from the header or a config; None: what the tensors themselves say.

    Raises:
        LayerError: a tensor is missing, or they do not fit together.
    """
    roles = set(module.tensors)
    if roles == {"bias"}:
        return None
    kind = next((kind for kind in KINDS if kind.marks & roles), KINDS[-1])
    return kind.to_layer(module, scaling)
