"""Hashes of what computes: a pipeline, a model, an adapter. A kept result counts only for the hash it was made with."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from mergelab.adapter import Adapter


def fingerprint(pipeline: Any) -> str:
    """A hash of what a pipeline computes: class, configurations, vocabularies, and a sample of every tensor."""
    settings = {
        key: value for key, value in pipeline.config.items() if not isinstance(value, (list, tuple)) and key[0] != "_"
    }
    parts = {name: _component(part) for name, part in pipeline.components.items()}
    return _digest({"class": type(pipeline).__name__, "config": settings, "components": parts})


def weights_hash(model: nn.Module) -> str:
    """A hash of a sample of every tensor, buffers included, with its name and shape.

    Reading every byte of FLUX would take a minute at each start; 64 values of every tensor tell models apart.
    """
    digest = hashlib.sha256()
    for key, tensor in sorted(model.state_dict().items()):
        digest.update(f"{key} {tuple(tensor.shape)} {tensor.dtype}".encode())
        if not tensor.is_meta:  # as with layers that are offloaded one by one
            flat = tensor.detach().flatten()
            digest.update(flat[:: max(1, flat.numel() // 64)][:64].float().cpu().numpy().tobytes())
    return digest.hexdigest()


def adapter_hash(adapter: Adapter) -> str:
    """A hash of the change that an adapter makes, factors and scalings."""
    digest = hashlib.sha256()
    for name, layer in sorted(adapter.layers.items()):
        digest.update(f"{name} {tuple(layer.shape)}".encode())
        for factor in adapter.matrices(name):
            digest.update(torch.as_tensor(factor).detach().float().contiguous().cpu().numpy().tobytes())
    return digest.hexdigest()


def _component(part: Any) -> dict[str, Any]:
    config: Any = getattr(part, "config", {})
    config = config.to_dict() if hasattr(config, "to_dict") else config
    content: dict[str, Any] = {
        "class": type(part).__name__,
        "config": {key: value for key, value in dict(config).items() if key[0] != "_" and "version" not in key},
    }
    if isinstance(part, nn.Module):
        content["weights"] = weights_hash(part)
    if hasattr(part, "get_vocab"):
        content["vocabulary"] = part.get_vocab()
    return content


def _digest(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()
