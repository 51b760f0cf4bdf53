"""OFT and its butterfly form BOFT: rotations of the outputs of a weight (LyCORIS, kohya)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from mergelab.formats.kinds.kind import Kind, ModuleTensors, Target, dense_layer, leaves, number_in
from mergelab.layer import DerivedLayer


def _to_layer(module: ModuleTensors, scaling: float | None, target: Target) -> DerivedLayer:
    """`rescale * (R @ W) - W` with a block-diagonal orthogonal R; `alpha` is LyCORIS' constraint on its angles."""
    module.check("oft" in module.tensors, "oft_blocks")
    blocks, outputs = module.tensors["oft"], target.shape[0]
    square = blocks.dim() in (3, 4) and blocks.shape[-1] == blocks.shape[-2]
    module.check(square and blocks.shape[-3] * blocks.shape[-1] == outputs, f"square blocks for {outputs} outputs")
    if blocks.dim() == 4:  # each stage has halves of blocks beside each other that are twice as far apart
        paired = blocks.shape[-1] % 2 == 0 and len(blocks) > 0 and blocks.shape[1] % 2 ** (len(blocks) - 1) == 0
        module.check(paired, "stages that pair their blocks")
    rescale = module.tensors.get("rescale")
    module.check(rescale is None or rescale.numel() == outputs, f"{outputs} rescales")
    constraint = number_in(module, "alpha") * outputs if "alpha" in module.tensors else 0.0
    assert target.weight is not None
    kind = "BOFT" if blocks.dim() == 4 else "OFT"
    return dense_layer(kind, target.shape, partial(_difference, target.weight, blocks, constraint, rescale))


def _difference(read: Callable[[], Tensor], blocks: Tensor, constraint: float, rescale: Tensor | None) -> Tensor:
    weight = read().float().flatten(1)
    rotations, rotated = rotations_of(blocks.float(), constraint), weight
    if blocks.dim() == 3:
        rotated = turned(rotations.mT, rotated)  # LyCORIS multiplies by the transposed blocks here, not in BOFT
    else:
        for i, stage in enumerate(rotations):
            apart = 2**i * blocks.shape[-1] // 2
            paired = rotated.unflatten(0, (-1, 2, apart)).transpose(1, 2).flatten(0, 2)
            rotated = turned(stage, paired).unflatten(0, (-1, apart, 2)).transpose(1, 2).flatten(0, 2)
    return (rotated if rescale is None else rotated * rescale.float().reshape(-1, 1)) - weight


def rotations_of(blocks: Tensor, constraint: float = 0.0) -> Tensor:
    """Orthogonal matrices by Cayley's transform of `q = blocks - blocks.T`: `(1 + q) (1 - q)^-1`, `(..., size, size)`.

    The norm of all q together is at most the constraint, where that is above 0.
    """
    q = blocks - blocks.mT
    if constraint > 0 and (norm := float(torch.linalg.vector_norm(q))) > constraint:
        q = q * (constraint / norm)
    one = torch.eye(q.shape[-1])
    return torch.linalg.solve(one - q, one + q, left=False)


def turned(rotations: Tensor, matrix: Tensor) -> Tensor:
    """Each block of rows by its own rotation."""
    count, size = rotations.shape[:2]
    return (rotations @ matrix.unflatten(0, (count, size))).flatten(0, 1)


OFT = Kind(
    name="OFT and BOFT",
    leaves=leaves((r"\.oft_blocks", "oft"), (r"\.rescale", "rescale")),
    marks=frozenset({"oft", "rescale"}),
    to_layer=_to_layer,
    needs_base=True,
)
