"""Which layers LoRA trainers usually adapt in the real models, and their shapes: from diffusers, without any weights.

The configurations are those of mergelab's architectures: what the models' repositories publish
(`transformer/config.json` of black-forest-labs/FLUX.1-dev, `unet/config.json` of
stabilityai/stable-diffusion-xl-base-1.0 and of stable-diffusion-v1-5), as far as it sets shapes.
"""

from __future__ import annotations

import diffusers
import torch

from mergelab.formats.architectures import ARCHITECTURES

NAMES = ("flux", "sdxl", "sd15")


def model_on_meta(arch: str) -> torch.nn.Module:
    """The real model's modules, without memory for their weights."""
    known = ARCHITECTURES[arch]
    with torch.device("meta"):
        return getattr(diffusers, known.model_class).from_config(dict(known.model_config))


def all_shapes(arch: str) -> dict[str, tuple[int, ...]]:
    """Weight shape of every linear layer and convolution, by diffusers' module path."""
    kinds = (torch.nn.Linear, torch.nn.Conv2d)
    return {name: tuple(m.weight.shape) for name, m in model_on_meta(arch).named_modules() if isinstance(m, kinds)}


def usual_layers(arch: str) -> dict[str, tuple[int, ...]]:
    """Canonical name -> shape of the layers that are usually adapted.

    FLUX: every linear layer of the 19 double and 38 single blocks, 494. SDXL and SD 1.5: every layer of the attention
    blocks, 722 and 192.
    """
    component, part = ("transformer", "transformer_blocks.") if arch == "flux" else ("unet", "attentions.")
    return {f"{component}.{name}": shape for name, shape in all_shapes(arch).items() if part in name}


def sampled(layers: dict[str, tuple[int, ...]], count: int | None) -> dict[str, tuple[int, ...]]:
    """Evenly spaced layers, all of them by default."""
    if count is None or count >= len(layers):
        return layers
    names = list(layers)
    chosen = [names[i * len(names) // count] for i in range(count)]
    return {name: layers[name] for name in chosen}
