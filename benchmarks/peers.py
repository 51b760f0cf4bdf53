"""The same merge by the installed PEFT, on a sample of the layers."""

from __future__ import annotations

import math
from collections import Counter
from importlib.metadata import version
from typing import Any

import torch

from benchmarks.measuring import measured
from benchmarks.synthetic import factors

# The combination type of PEFT that computes what our method does.
COMBINATIONS = {
    "linear": "svd",
    "cat": "svd",
    "svd": "svd",
    "ties": "ties_svd",
    "dare": "dare_linear_svd",
    "dare_ties": "dare_ties_svd",
    "magnitude_prune": "magnitude_prune_svd",
}


def cost(shape: tuple[int, ...]) -> float:
    """Of a dense SVD: `out * in * min(out, in)`."""
    out, columns = shape[0], math.prod(shape[1:])
    return float(out * columns * min(out, columns))


def most_frequent(layers: dict[str, tuple[int, ...]]) -> str:
    """The first layer that has the most frequent shape."""
    shape, _ = Counter(layers.values()).most_common(1)[0]
    return next(name for name, own in layers.items() if own == shape)


def peft_seconds(
    layers: dict[str, tuple[int, ...]],
    method: str,
    adapters: int,
    rank: int,
    density: float,
    device: str = "cpu",
) -> dict[str, Any]:
    """Seconds of `add_weighted_adapter` on one layer of the most frequent shape, and scaled by cost to all layers.

    On a GPU the second of two runs counts: the first one loads its libraries.
    """
    from peft import LoraConfig, get_peft_model

    name = most_frequent(layers)
    shape = layers[name]
    if len(shape) != 2:
        linear: torch.nn.Module = torch.nn.Conv2d(shape[1], shape[0], shape[2:], bias=False)
    else:
        linear = torch.nn.Linear(shape[1], shape[0], bias=False)
    config = LoraConfig(r=rank, lora_alpha=rank, target_modules=["0"])
    peft_model: Any = get_peft_model(torch.nn.Sequential(linear), config, adapter_name="0")
    for i in range(1, adapters):
        peft_model.add_adapter(str(i), config)
    model = peft_model.to(device).base_model
    with torch.no_grad():
        for i in range(adapters):
            lora_a, lora_b = factors(name, shape, rank, i, device)
            model.model[0].lora_A[str(i)].weight.copy_(lora_a)
            model.model[0].lora_B[str(i)].weight.copy_(lora_b)
    combination = COMBINATIONS[method]
    extra = {} if combination == "svd" else {"density": density}
    names = [str(i) for i in range(adapters)]
    for run in range(1 if device == "cpu" else 2):
        with measured() as took:
            model.add_weighted_adapter(names, [1.0] * adapters, f"merged_{run}", combination, svd_rank=rank, **extra)
    scale = sum(map(cost, layers.values())) / cost(shape)
    return {
        "version": version("peft"),
        "combination_type": combination,
        "sample": {"layer": name, "shape": list(shape)},
        "seconds": round(took.seconds, 2),
        "processor_seconds": round(took.processor_seconds, 2),
        "extrapolated_seconds": round(took.seconds * scale, 1),
        "extrapolated_processor_seconds": round(took.processor_seconds * scale, 1),
        "extrapolation": "by out * in * min(out, in) of every layer",
    }
