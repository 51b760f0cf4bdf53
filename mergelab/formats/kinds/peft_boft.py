"""BOFT as PEFT has it: rotations of the inputs of a weight in several stages, and a factor for each output."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from mergelab.formats.kinds.kind import Kind, ModuleTensors, Target, dense_layer, leaves
from mergelab.formats.kinds.oft import rotations_of, turned
from mergelab.layer import DerivedLayer


def _to_layer(module: ModuleTensors, scaling: float | None, target: Target) -> DerivedLayer:
    """`s * W (R_n ... R_1)^T - W`, W as a matrix."""
    module.check({"peft_boft", "peft_boft_s"} <= set(module.tensors), "boft_R and boft_s")
    blocks, factors = module.tensors["peft_boft"], module.tensors["peft_boft_s"]
    inputs, outputs = math.prod(target.shape[1:]), target.shape[0]
    square = blocks.dim() == 4 and blocks.numel() > 0 and blocks.shape[-1] == blocks.shape[-2]
    module.check(square and blocks.shape[1] * blocks.shape[2] == inputs, f"square blocks for {inputs} inputs")
    stages, count, size = blocks.shape[:3]
    halves = stages == 1 or (size % 2 == 0 and count % 2 ** (stages - 1) == 0)
    module.check(halves and factors.numel() == outputs, f"stages that pair their blocks, and {outputs} factors")
    assert target.weight is not None
    return dense_layer("BOFT", target.shape, partial(_difference, target.weight, blocks, factors))


def _difference(read: Callable[[], Tensor], blocks: Tensor, factors: Tensor) -> Tensor:
    weight = read().float().flatten(1)
    rotated, size = weight.T, blocks.shape[-1]
    for i, stage in enumerate(rotations_of(-0.5 * blocks.float())):
        order = _order(len(rotated), size, i) if len(blocks) > 1 else torch.arange(len(rotated))
        rotated = turned(stage, rotated[order.argsort()])[order]
    return rotated.T * factors.float().reshape(-1, 1) - weight


def _order(count: int, size: int, stage: int) -> Tensor:
    """Which inputs a stage has beside each other: of every `2**stage` blocks the even halves, then the odd ones."""
    return torch.arange(count).reshape(-1, 2**stage, 2, size // 2).transpose(1, 2).flatten()


PEFT_BOFT = Kind(
    name="BOFT of PEFT",
    leaves=leaves((r"\.boft_R(\.[^.]+)?", "peft_boft"), (r"\.boft_s(\.[^.]+)?", "peft_boft_s")),
    marks=frozenset({"peft_boft", "peft_boft_s"}),
    to_layer=_to_layer,
    needs_base=True,
)
