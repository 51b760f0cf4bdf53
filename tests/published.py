"""Writes the table of published shapes: `python -m tests.published`."""

from __future__ import annotations

import json
from functools import cache

import diffusers
import torch
from torch import nn

from mergelab.formats.architectures import ARCHITECTURES, Architecture
from mergelab.formats.architectures.published import TABLE, kind_of

LAYERS = (nn.Linear, nn.Conv2d, nn.Conv3d)


@cache
def model(architecture: Architecture) -> nn.Module:
    """The denoiser's real modules, without memory for their weights."""
    with torch.device("meta"):
        return getattr(diffusers, architecture.model_class).from_config(dict(architecture.model_config))


def layers(architecture: Architecture) -> dict[str, tuple[int, ...]]:
    """Shape of the weight of every linear layer and convolution, by path."""
    modules = model(architecture).named_modules()
    return {path: tuple(m.weight.shape) for path, m in modules if isinstance(m, LAYERS)}


def kinds(architecture: Architecture) -> dict[str, list[list[int]]]:
    """The shapes of an architecture's layers, by their kind."""
    found: dict[str, list[list[int]]] = {}
    for path, shape in layers(architecture).items():
        some = found.setdefault(kind_of(path), [])
        if list(shape) not in some:
            some.append(list(shape))
    return found


if __name__ == "__main__":
    transformers = [a for a in ARCHITECTURES.values() if a.denoiser == "transformer"]
    lines = (f"{json.dumps(a.id)}: {json.dumps(kinds(a), separators=(',', ':'))}" for a in transformers)
    TABLE.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
