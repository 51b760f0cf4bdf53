"""The autoencoder that both pipelines share: 48 x 48 pixels to 12 x 12 latents of 8 channels."""

from __future__ import annotations

import torch
from diffusers import AutoencoderKL
from torch import Tensor

from experiments.miniature.training import DEVICE, RUNS, fit
from mergelab.miniature.world import SHAPES, STYLES, SUBJECTS, Scene, draw, sample

STEPS, BATCH = 4500, 8


def build() -> AutoencoderKL:
    """The untrained network."""
    torch.manual_seed(0)
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(16, 32, 64),
        layers_per_block=1,
        latent_channels=8,
        norm_num_groups=8,
        mid_block_add_attention=False,
        sample_size=48,
    )


def stored(scenes: list[Scene]) -> Tensor:
    """Pictures of the scenes, uint8 (n, 3, 48, 48), drawn a thousand at a time."""
    chunks = [scenes[i : i + 1000] for i in range(0, len(scenes), 1000)]
    return torch.cat([draw(chunk).mul(255).round().to(torch.uint8) for chunk in chunks])


def pictures(count: int, seed: int) -> Tensor:
    """Everything the world can show, uint8 (count, 3, 48, 48): half of it plain, a fifth of the objects subjects."""
    objects = [*SHAPES] * 3 + [*SUBJECTS]
    return stored(sample(count, seed, objects=objects, styles=[None] * len(STYLES) + [*STYLES], held_out=None))


@torch.no_grad()
def encode(vae: AutoencoderKL, images: Tensor) -> Tensor:
    """Latents (n, 8, 12, 12) of pictures in [0, 1]."""
    return torch.cat([vae.encode(chunk * 2 - 1).latent_dist.mean for chunk in images.split(250)])


@torch.no_grad()
def normalise(vae: AutoencoderKL, images: Tensor) -> None:
    """Folds mean and deviation of each latent channel into the 1 x 1 convolutions on both sides of the latents.

    Both pipelines then see channels of mean 0 and variance 1, with a scaling factor of 1 and no shift.
    """
    latents = encode(vae, images)
    mean, std = latents.mean((0, 2, 3)), latents.std((0, 2, 3))
    gain, log_gain = torch.cat([1 / std, torch.ones_like(std)]), -2 * std.log()
    vae.post_quant_conv.bias += vae.post_quant_conv.weight[:, :, 0, 0] @ mean
    vae.post_quant_conv.weight *= std.reshape(1, -1, 1, 1)
    vae.quant_conv.weight *= gain.reshape(-1, 1, 1, 1)
    vae.quant_conv.bias.copy_(torch.cat([(vae.quant_conv.bias[: len(std)] - mean) / std,
                                         vae.quant_conv.bias[len(std) :] + log_gain]))  # fmt: skip
    vae.register_to_config(scaling_factor=1.0, shift_factor=0.0)


def train() -> AutoencoderKL:
    """Trains it, or loads it where it is finished."""
    folder = RUNS / "vae"
    if folder.exists():
        return AutoencoderKL.from_pretrained(folder).eval()
    vae = build()
    data = pictures(20000, seed=1)

    def loss(generator: torch.Generator) -> Tensor:
        x = data[torch.randint(len(data), (BATCH,), generator=generator)].float().to(DEVICE) / 127.5 - 1
        posterior = vae.encode(x).latent_dist
        y = vae.decode(
            posterior.mean + posterior.std * torch.randn(posterior.mean.shape, generator=generator).to(DEVICE)
        ).sample
        edges = sum((y.diff(dim=d) - x.diff(dim=d)).abs().mean() for d in (-1, -2))
        return (y - x).abs().mean() + (y - x).square().mean() + 0.5 * edges + 1e-6 * posterior.kl().mean()

    fit("vae", vae, loss, steps=STEPS, lr=1.5e-3)
    normalise(vae, data[:4000].float() / 255)
    vae.save_pretrained(folder)
    return vae


if __name__ == "__main__":
    train()
