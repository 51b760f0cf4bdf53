"""Which layers LoRA trainers usually adapt in the real models, and their shapes: from diffusers, without any weights.

The configurations are those that the models' repositories publish (`transformer/config.json` of
black-forest-labs/FLUX.1-dev, `unet/config.json` of stabilityai/stable-diffusion-xl-base-1.0 and of
stable-diffusion-v1-5), as far as they set shapes.
"""

from __future__ import annotations

from typing import Any

import torch

FLUX = {
    "attention_head_dim": 128,
    "guidance_embeds": True,
    "in_channels": 64,
    "joint_attention_dim": 4096,
    "num_attention_heads": 24,
    "num_layers": 19,
    "num_single_layers": 38,
    "patch_size": 1,
    "pooled_projection_dim": 768,
}
SDXL = {
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "attention_head_dim": [5, 10, 20],
    "block_out_channels": [320, 640, 1280],
    "cross_attention_dim": 2048,
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "projection_class_embeddings_input_dim": 2816,
    "sample_size": 128,
    "transformer_layers_per_block": [1, 2, 10],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "use_linear_projection": True,
}
SD15 = {
    "attention_head_dim": 8,
    "block_out_channels": [320, 640, 1280, 1280],
    "cross_attention_dim": 768,
    "down_block_types": ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
    "sample_size": 64,
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"],
}
ARCHITECTURES = ("flux", "sdxl", "sd15")


def model_on_meta(arch: str) -> torch.nn.Module:
    """The real model's modules, without memory for their weights."""
    from diffusers import FluxTransformer2DModel, UNet2DConditionModel

    build: Any = FluxTransformer2DModel if arch == "flux" else UNet2DConditionModel
    config: dict[str, Any] = {"flux": FLUX, "sdxl": SDXL, "sd15": SD15}[arch]
    with torch.device("meta"):
        return build.from_config(config)


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
