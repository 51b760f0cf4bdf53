"""LoRA that begins with a part of the weight, which the base model loses: PiSSA and OLoRA, as PEFT has them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from mergelab.errors import LayerError
from mergelab.formats.kinds.kind import Target, selected
from mergelab.layer import DerivedLayer, LoraLayer, full_rank, matrices
from mergelab.linalg.lowrank import Factors, stack

Start = Callable[[Tensor, int, float], Factors]


def start_of(config: Mapping[str, Any]) -> str | None:
    """The start that a config names, of those that follow from the weight alone; None for any other."""
    name = str(config.get("init_lora_weights")).lower()
    return name if name in STARTS else None


def without_start(layer: LoraLayer, start: str, target: Target) -> DerivedLayer:
    """`scaling * lora_B @ lora_A` without what it began with: the change of the weight as it was before training.

    Args:
        layer: the trained factors, scaled.
        start: a name of `STARTS`.
        target: the weight.

    Raises:
        LayerError: it is a convolution, for which PEFT has no such start.
    """
    if len(layer.shape) != 2:
        raise LayerError(f"a convolution, {layer.shape}, cannot have begun with {start}, expected a linear layer")
    assert target.weight is not None
    rank = min(2 * layer.rank, full_rank(layer.shape))
    return DerivedLayer(f"LoRA from {start}", layer.shape, rank, _Trained(layer, STARTS[start], target.weight))


@dataclass(frozen=True, eq=False)
class _Trained:
    """Rows of the factors, of which those of the start are computed once: a decomposition of the whole weight."""

    layer: LoraLayer
    start: Start
    weight: Callable[[], Tensor]

    @cached_property
    def begun(self) -> Factors:
        return self.start(self.weight().float(), self.layer.rank, self.layer.scaling)

    def __call__(self, rows: Sequence[slice]) -> Factors:
        whole = stack([matrices(self.layer), Factors(-self.begun.B, self.begun.A)])
        return Factors(selected(whole.B, rows), whole.A)


def _principal(weight: Tensor, rank: int, scaling: float) -> Factors:
    """The best approximation of the weight of this rank, whatever the scaling; as exact as PEFT's."""
    u, s, vh = torch.linalg.svd(weight, full_matrices=False)
    return Factors(u[:, :rank] * s[:rank], vh[:rank].contiguous())


def _orthogonal(weight: Tensor, rank: int, scaling: float) -> Factors:
    """`scaling * Q R` of the first columns and rows of the weight's QR decomposition."""
    q, r = torch.linalg.qr(weight)
    return Factors(scaling * q[:, :rank], r[:rank])


STARTS: Mapping[str, Start] = {"pissa": _principal, "olora": _orthogonal}
"""By PEFT's `init_lora_weights`: the change that the factors are before training."""
