"""Trim and drop: which entries of a change a rule gets to see.

`density` is the share that is KEPT, everywhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from mergelab.checks import is_number, shown
from mergelab.errors import OptionError

Scope = Literal["layer", "adapter"]
SCOPES = ("layer", "adapter")


def check_density(density: object) -> None:
    """Raise unless `0 < density <= 1`."""
    if not is_number(density) or not 0 < density <= 1:  # type: ignore[operator]
        raise OptionError(f"density is the share of entries kept, expected 0 < density <= 1, found {shown(density)}")


@dataclass(frozen=True)
class Trim:
    """Keep the `floor(density * n)` entries of largest magnitude; entries equal to the smallest kept are all kept.

    Args:
        density: share kept, in (0, 1].
        scope: "layer": n counts the entries of one layer; "adapter": of all layers together, as in the TIES paper
            (arXiv 2306.01708).
    """

    density: float
    scope: Scope = "layer"


@dataclass(frozen=True)
class Drop:
    """Keep every entry with probability `density`, and divide what is kept by `density`.

    Variant: DARE as published (arXiv 2311.03099) with its rescaling, `m * x / density`, m ~ Bernoulli(density).
    """

    density: float


def trim(x: Tensor, threshold: float, out: Tensor | None = None) -> Tensor:
    """Zero where `|x| < threshold`.

    Args:
        x: float32.
        threshold: in float32, 0 or more.
        out: where to put the result; may be `x`.
    """
    out = torch.empty_like(x) if out is None else out
    if threshold <= 0:
        return out.copy_(x)
    # hardshrink keeps what is larger than its parameter, in one pass.
    below = float(np.nextafter(np.float32(threshold), np.float32(0)))
    return torch.ops.aten.hardshrink.out(x, below, out=out)


def trim_topk(x: Tensor, density: float) -> Tensor:
    """Keep exactly `floor(density * n)` entries, ties resolved as `torch.topk` does: PEFT's variant."""
    if density >= 1:
        return x
    mask = torch.zeros(x.numel(), dtype=x.dtype, device=x.device)
    mask[torch.topk(x.abs().reshape(-1), k=int(density * x.numel())).indices] = 1
    return x * mask.reshape(x.shape)


def drop(x: Tensor, density: float, generator: torch.Generator) -> Tensor:
    """Drop and rescale; the draw is made on the CPU, so that no device changes it."""
    return x if density >= 1 else dropped(x, density, draw(x.shape, generator))


def draw(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    """Uniform numbers, one for each entry. `draw < density` is what `torch.bernoulli` gives, in a third of the time."""
    return torch.rand(tuple(shape), generator=generator)


def dropped(x: Tensor, density: float, uniform: Tensor, out: Tensor | None = None) -> Tensor:
    """`x / density` where the uniform number is below the density, else 0; overwrites the uniform numbers."""
    mask = torch.lt(uniform, density, out=uniform).to(x.device)
    return torch.mul(x, mask, out=out).div_(density)
