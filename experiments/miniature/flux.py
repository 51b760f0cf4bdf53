"""A small FluxPipeline: how it is built and what one training step minimises."""

from __future__ import annotations

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
from torch import Tensor
from transformers import CLIPTextModel, T5Config, T5EncoderModel

from experiments.miniature.sdxl import spread, text_config
from experiments.miniature.tokens import LENGTH, clip_tokenizer, t5_tokenizer

STEPS, BATCH, LR = 10000, 32, 2e-3
SHARPNESS = 5.0
"""Of the differences between rare words: see `rare.Names`. Modulation follows the pooled vector: far apart is noise."""


def build(vae: AutoencoderKL) -> FluxPipeline:
    """The untrained pipeline; like FLUX.1-schnell it has no guidance embedding, guidance is the true one."""
    torch.manual_seed(0)
    tokenizer, tokenizer_2 = clip_tokenizer(), t5_tokenizer()
    encoder = CLIPTextModel(text_config(len(tokenizer), 64, 2))
    spread(encoder.get_input_embeddings())
    encoder_2 = T5EncoderModel(T5Config(
        vocab_size=len(tokenizer_2), d_model=128, d_kv=32, d_ff=256, num_layers=2, num_heads=4,
        feed_forward_proj="gated-gelu", dropout_rate=0.0, use_cache=False, tie_word_embeddings=False,
    ))  # fmt: skip
    transformer = FluxTransformer2DModel(
        in_channels=4 * vae.config.latent_channels, num_layers=2, num_single_layers=4, num_attention_heads=4,
        attention_head_dim=32, joint_attention_dim=128, pooled_projection_dim=64, axes_dims_rope=(8, 12, 12),
    )  # fmt: skip
    return FluxPipeline(
        vae=vae, text_encoder=encoder, text_encoder_2=encoder_2, tokenizer=tokenizer, tokenizer_2=tokenizer_2,
        transformer=transformer, scheduler=FlowMatchEulerDiscreteScheduler(shift=1.0),
    )  # fmt: skip


def predict(
    pipeline: FluxPipeline,
    latents: Tensor,
    captions: list[str],
    generator: torch.Generator,
    drop: float = 0.1,
) -> tuple[Tensor, Tensor]:
    """Predicted and true flow; a share of the captions is empty, for guidance.

    Half of the times are logit-normal, half uniform: what shape it will be is decided at the noisy end.
    """
    count, channels, height, width = latents.shape
    kept = (torch.rand(count, generator=generator) >= drop).tolist()
    captions = [caption if keep else "" for caption, keep in zip(captions, kept)]
    clean = pipeline._pack_latents(latents, count, channels, height, width)
    noise = torch.randn(clean.shape, generator=generator).to(clean.device)
    time = torch.rand(count, generator=generator)
    middle = torch.rand(count, generator=generator) < 0.5
    time = torch.where(middle, torch.sigmoid(torch.randn(count, generator=generator)), time).to(clean.device)
    return flow(pipeline, clean + time.reshape(-1, 1, 1) * (noise - clean), time, captions), noise - clean


def flow(pipeline: FluxPipeline, noisy: Tensor, time: Tensor, captions: list[str]) -> Tensor:
    """Predicted flow of packed latents (n, 36, 32) at times (n,) from 0, clean, to 1."""
    words, pooled, text_ids = pipeline.encode_prompt(captions, None, max_sequence_length=LENGTH)
    side = round(noisy.shape[1] ** 0.5)
    return pipeline.transformer(
        hidden_states=noisy,
        timestep=time,
        pooled_projections=pooled,
        encoder_hidden_states=words,
        txt_ids=text_ids,
        img_ids=pipeline._prepare_latent_image_ids(len(noisy), side, side, noisy.device, noisy.dtype),
    ).sample


def leap(
    pipeline: FluxPipeline, start: Tensor, end: Tensor, place: Tensor, steps: int, captions: list[str]
) -> tuple[Tensor, Tensor]:
    """Predicted flow, and the one that takes `start` to `end` in step `place` (n,) of `steps` equal ones."""
    return flow(pipeline, start, 1 - place / steps, captions), (start - end) * steps


def noise(count: int, generator: torch.Generator) -> Tensor:
    """Packed latents to start from."""
    return torch.randn(count, 36, 32, generator=generator)
