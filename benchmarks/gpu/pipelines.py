"""Pipelines of the true configurations with random weights, made on the device; and small ones of the same classes.

The denoiser and the VAE have the sizes that the models' repositories publish. The text encoders have two blocks, of
the widths that the denoiser wants; their tokenizers are the miniature's.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from mergelab import miniature
from mergelab.formats.architectures import ARCHITECTURES
from mergelab.pipelines.opening import quietly

CLIP_LENGTH = 77
_BLOCKS = {
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
}
VAES: dict[str, dict[str, Any]] = {
    "flux": {
        **_BLOCKS,
        "latent_channels": 16,
        "scaling_factor": 0.3611,
        "shift_factor": 0.1159,
        "use_quant_conv": False,
        "use_post_quant_conv": False,
        "sample_size": 1024,
    },
    "sdxl": {**_BLOCKS, "latent_channels": 4, "scaling_factor": 0.13025, "sample_size": 1024},
}
SMALL: dict[str, dict[str, Any]] = {
    "flux": {
        "num_layers": 1,
        "num_single_layers": 2,
        "num_attention_heads": 2,
        "joint_attention_dim": 128,
        "pooled_projection_dim": 64,
    },
    "sdxl": {
        "block_out_channels": [32, 64, 64],
        "attention_head_dim": [1, 2, 2],
        "transformer_layers_per_block": [1, 1, 1],
        "cross_attention_dim": 128,
        "addition_time_embed_dim": 16,
        "projection_class_embeddings_input_dim": 64 + 6 * 16,
    },
}


def real_pipeline(arch: str, device: str, small: bool) -> Any:
    """FLUX.1-dev or SDXL in bfloat16, of random weights, on the device; `small`: few and narrow blocks."""
    import diffusers

    known = ARCHITECTURES[arch]
    config = dict(known.model_config) | (SMALL[arch] if small else {})
    vae = VAES[arch] | ({"block_out_channels": (32, 32, 32, 32), "layers_per_block": 1} if small else {})
    with quietly():
        own: Any = miniature.pipeline(arch)  # for its tokenizers
    tokenizers = {"tokenizer": own.tokenizer, "tokenizer_2": own.tokenizer_2}
    own.tokenizer.model_max_length = CLIP_LENGTH
    torch.manual_seed(0)
    with torch.device(device), _in_bfloat16(), quietly():
        denoiser = getattr(diffusers, known.model_class).from_config(config)
        decoder = diffusers.AutoencoderKL.from_config(vae)
        encoders = _encoders_of_flux(own, config) if arch == "flux" else _encoders_of_sdxl(own, small)
    if arch == "flux":
        pipe: Any = diffusers.FluxPipeline(
            scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
            transformer=denoiser, vae=decoder, **tokenizers, **encoders,
        )  # fmt: skip
    else:
        own.tokenizer_2.model_max_length = CLIP_LENGTH
        schedule = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
        pipe = diffusers.StableDiffusionXLPipeline(
            scheduler=diffusers.EulerDiscreteScheduler(**schedule, timestep_spacing="leading"),
            unet=denoiser, vae=decoder, **tokenizers, **encoders, add_watermarker=False,
        )  # fmt: skip
    pipe.set_progress_bar_config(disable=True)
    return pipe.to(device)


def _encoders_of_flux(own: Any, config: dict[str, Any]) -> dict[str, Any]:
    from transformers import CLIPTextModel, T5Config, T5EncoderModel

    t5 = T5Config(
        vocab_size=len(own.tokenizer_2), d_model=config["joint_attention_dim"], d_kv=64, d_ff=1024, num_heads=8,
        num_layers=2, feed_forward_proj="gated-gelu",
    )  # fmt: skip
    width = config["pooled_projection_dim"]
    return {
        "text_encoder": CLIPTextModel(_clip(own.tokenizer, width, width)).eval(),
        "text_encoder_2": T5EncoderModel(t5).eval(),
    }


def _encoders_of_sdxl(own: Any, small: bool) -> dict[str, Any]:
    from transformers import CLIPTextModel, CLIPTextModelWithProjection

    first, second = (64, 64) if small else (768, 1280)
    return {
        "text_encoder": CLIPTextModel(_clip(own.tokenizer, first, first)).eval(),
        "text_encoder_2": CLIPTextModelWithProjection(_clip(own.tokenizer_2, second, second)).eval(),
    }


def _clip(tokenizer: Any, width: int, projection: int) -> Any:
    from transformers import CLIPTextConfig

    return CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=width, intermediate_size=2 * width, num_hidden_layers=2,
        num_attention_heads=width // 64, max_position_embeddings=CLIP_LENGTH, projection_dim=projection,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip


@contextmanager
def _in_bfloat16() -> Iterator[None]:
    """What is made has this dtype from the start: twelve billion weights in float32 would be 48 GB."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
