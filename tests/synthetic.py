"""Small synthetic adapters, and dense float64 oracles of the merge rules, written independently of mergelab."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

import mergelab as ml
from mergelab.layer import LoraLayer
from mergelab.linalg.draws import EntryDraws
from mergelab.methods.sparsify import Drop, Trim

SHAPES: dict[str, tuple[int, ...]] = {
    "unet.down_blocks.0.attentions.0.proj_in": (24, 18),
    "unet.mid_block.attentions.0.proj_out": (16, 30),
    "unet.up_blocks.0.resnets.0.conv1": (12, 8, 3, 3),
    "unet.up_blocks.1.resnets.0.conv_shortcut": (14, 10, 1, 1),
}


def lora(shape: Sequence[int], rank: int, generator: torch.Generator, scaling: float = 1.0) -> LoraLayer:
    """A random layer whose delta weight has entries of order one."""
    ones = [1] * (len(shape) - 2)
    lora_a = torch.randn(rank, *shape[1:], generator=generator)
    lora_b = torch.randn(shape[0], rank, *ones, generator=generator) / rank**0.5
    return LoraLayer(lora_a, lora_b, scaling)


def adapter(
    seed: int,
    rank: int | Sequence[int] = 4,
    scaling: float = 1.0,
    shapes: dict[str, tuple[int, ...]] = SHAPES,
    source: str | None = None,
) -> ml.Adapter:
    """A random adapter; `rank` is one number, or one for each layer."""
    generator = torch.Generator().manual_seed(seed)
    ranks = [rank] * len(shapes) if isinstance(rank, int) else list(rank)
    layers = {name: lora(shape, r, generator, scaling) for (name, shape), r in zip(shapes.items(), ranks)}
    return ml.Adapter(layers, source=source or f"adapter{seed}")


def dense(a: ml.Adapter, name: str) -> np.ndarray:
    """The change of a layer in float64, straight from the definition."""
    layer = a.layers[name]
    lora_a = layer.lora_A.flatten(1).double().numpy()
    lora_b = layer.lora_B.flatten(1).double().numpy()
    return (layer.scaling * (lora_b @ lora_a)).reshape(layer.shape)


def trimmed(x: np.ndarray, density: float) -> np.ndarray:
    """Keep the floor(density * n) entries of largest magnitude."""
    count = int(density * x.size)
    if count == 0:
        return np.zeros_like(x)
    threshold = np.sort(np.abs(x).ravel())[-count]
    return np.where(np.abs(x) >= threshold, x, 0.0)


def ties(
    xs: Sequence[np.ndarray], weights: Sequence[float], density: float, majority: str = "total", peft: bool = False
) -> np.ndarray:
    """TIES by loops over adapters, as the paper tells it."""
    seen = [trimmed(x if peft else w * x, density) for x, w in zip(xs, weights)]
    values = [x * w if peft else x for x, w in zip(seen, weights)]
    votes = sum(np.sign(x) if majority == "frequency" else x for x in seen)
    gamma = np.where(votes >= 0, 1.0, -1.0) if peft else np.sign(np.where(votes == 0, sum(seen), votes))
    total, count = np.zeros_like(xs[0]), np.zeros_like(xs[0])
    for x, value in zip(seen, values):
        agrees = np.sign(x) == gamma
        total += np.where(agrees, value, 0.0)
        count += agrees & (x != 0)
    return total / np.maximum(count, 1)


def relative(found: torch.Tensor | np.ndarray, expected: torch.Tensor | np.ndarray) -> float:
    """Relative Frobenius difference."""
    found, expected = np.asarray(found, dtype=np.float64), np.asarray(expected, dtype=np.float64)
    return float(np.linalg.norm(found - expected) / max(np.linalg.norm(expected), 1e-300))


def difference(a: ml.Adapter, b: ml.Adapter) -> float:
    """Largest relative difference of any layer; infinite where the layers are not the same."""
    if set(a.layers) != set(b.layers):
        return float("inf")
    pairs = ((a.layers[n].delta_weight(), b.layers[n].delta_weight()) for n in a.layers)
    return max(float((x.double() - y.double()).norm() / y.double().norm().clamp_min(1e-30)) for x, y in pairs)


def trim(x: torch.Tensor, threshold: float) -> torch.Tensor:
    """Zero below a threshold, as the sparsifier of TIES does it."""
    return Trim(0.5).apply(x.clone(), threshold, EntryDraws(0), slice(0, len(x)))


def trim_topk(x: torch.Tensor, density: float) -> torch.Tensor:
    """The same by PEFT."""
    return Trim(density).as_peft(x, torch.Generator())


def drop(x: torch.Tensor, density: float, key: int, rows: slice | None = None) -> torch.Tensor:
    """Rows of a matrix as the sparsifier of DARE leaves them."""
    return Drop(density).apply(x.clone(), None, EntryDraws(key), rows or slice(0, len(x)))
