"""A small StableDiffusionXLPipeline: how it is built and what one training step minimises."""

from __future__ import annotations

import torch
from diffusers import (
    AutoencoderKL,
    DDPMScheduler,
    EulerDiscreteScheduler,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from experiments.miniature.tokens import LENGTH, clip_tokenizer

STEPS, BATCH, LR = 4500, 32, 8e-4
SHARPNESS = 2.0
"""Of the differences between rare words: see `rare.Names`."""


def text_config(vocabulary: int, width: int, layers: int) -> CLIPTextConfig:
    """Configuration of a small CLIP text encoder for the vocabulary of `clip_tokenizer`."""
    return CLIPTextConfig(
        vocab_size=vocabulary, hidden_size=width, intermediate_size=4 * width, projection_dim=width,
        num_hidden_layers=layers, num_attention_heads=width // 32, max_position_embeddings=LENGTH,
        bos_token_id=0, eos_token_id=1, pad_token_id=1, hidden_act="gelu",
    )  # fmt: skip


def spread(embedding: nn.Embedding, std: float = 0.1) -> None:
    """Starts the words far enough apart that rare ones stay apart."""
    nn.init.normal_(embedding.weight, std=std)


def build(vae: AutoencoderKL) -> StableDiffusionXLPipeline:
    """The untrained pipeline: velocity prediction with zero terminal SNR, which black and white grounds need."""
    torch.manual_seed(0)
    tokenizer = clip_tokenizer()
    encoder = CLIPTextModel(text_config(len(tokenizer), 64, 3))
    encoder_2 = CLIPTextModelWithProjection(text_config(len(tokenizer), 64, 3))
    for model in (encoder, encoder_2):
        spread(model.get_input_embeddings())
    unet = UNet2DConditionModel(
        sample_size=12, in_channels=8, out_channels=8,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(64, 128), layers_per_block=1, transformer_layers_per_block=1, attention_head_dim=(2, 4),
        cross_attention_dim=128, norm_num_groups=16, use_linear_projection=True,
        addition_embed_type="text_time", addition_time_embed_dim=16, projection_class_embeddings_input_dim=64 + 6 * 16,
    )  # fmt: skip
    scheduler = EulerDiscreteScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear",
        prediction_type="v_prediction", rescale_betas_zero_snr=True, timestep_spacing="trailing",
    )  # fmt: skip
    return StableDiffusionXLPipeline(
        vae=vae, text_encoder=encoder, text_encoder_2=encoder_2, tokenizer=tokenizer, tokenizer_2=clip_tokenizer(),
        unet=unet, scheduler=scheduler, add_watermarker=False,
    )  # fmt: skip


def predict(
    pipeline: StableDiffusionXLPipeline,
    latents: Tensor,
    captions: list[str],
    generator: torch.Generator,
    drop: float = 0.1,
) -> tuple[Tensor, Tensor]:
    """Predicted and true velocity; a share of the captions is dropped, as the pipeline does for guidance."""
    count, device = len(captions), latents.device
    kept = (torch.rand(count, generator=generator) >= drop).float().to(device)
    alphas = DDPMScheduler.from_config(pipeline.scheduler.config).alphas_cumprod
    times = torch.randint(len(alphas), (count,), generator=generator)
    alpha = alphas[times].reshape(-1, 1, 1, 1).to(device)
    noise = torch.randn(latents.shape, generator=generator).to(device)
    noisy = alpha.sqrt() * latents + (1 - alpha).sqrt() * noise
    return velocity(pipeline, noisy, times, captions, kept), alpha.sqrt() * noise - (1 - alpha).sqrt() * latents


def velocity(
    pipeline: StableDiffusionXLPipeline, noisy: Tensor, times: Tensor, captions: list[str], kept: Tensor | None = None
) -> Tensor:
    """Predicted velocity of latents (n, 8, 12, 12) of variance 1 at times (n,); no caption where `kept` is 0."""
    words, _, pooled, _ = pipeline.encode_prompt(captions, do_classifier_free_guidance=False)
    if kept is not None:
        words, pooled = words * kept.reshape(-1, 1, 1), pooled * kept.reshape(-1, 1)
    side = float(pipeline.unet.config.sample_size * pipeline.vae_scale_factor)
    return pipeline.unet(
        noisy,
        times.to(noisy.device),
        encoder_hidden_states=words,
        added_cond_kwargs={
            "text_embeds": pooled,
            "time_ids": torch.tensor([side, side, 0, 0, side, side], device=noisy.device).expand(len(noisy), -1),
        },
    ).sample


def leap(
    pipeline: StableDiffusionXLPipeline, start: Tensor, end: Tensor, place: Tensor, steps: int, captions: list[str]
) -> tuple[Tensor, Tensor]:
    """Predicted velocity, and the one by which Euler's step number `place` (n,) of `steps` takes `start` to `end`."""
    pipeline.scheduler.set_timesteps(steps)
    now, then = (pipeline.scheduler.sigmas[place + i].reshape(-1, 1, 1, 1) for i in (0, 1))
    clean = start - now * (end - start) / (then - now)
    size = (now.square() + 1).sqrt()
    wanted = (start / size - clean * size) / now
    return velocity(pipeline, start / size, pipeline.scheduler.timesteps[place], captions), wanted


def noise(count: int, generator: torch.Generator) -> Tensor:
    """Latents to start from."""
    return torch.randn(count, 8, 12, 12, generator=generator)
