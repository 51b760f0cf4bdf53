"""A small CLIP of the drawn world in open_clip's format, trained contrastively."""

from __future__ import annotations

import json
from pathlib import Path

import open_clip
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from experiments.miniature.captions import vary
from experiments.miniature.tokens import LENGTH, clip_tokenizer
from experiments.miniature.training import DEVICE, RUNS, fit
from experiments.miniature.vae import stored
from mergelab.miniature.world import SHAPES, STYLES, SUBJECTS, Scene, sample

STEPS, BATCH, LR, PICTURES = 1500, 128, 1e-3, 20000
CONFIG = {
    "model_cfg": {
        "embed_dim": 64,
        "vision_cfg": {"image_size": 48, "layers": 4, "width": 96, "head_width": 32, "patch_size": 8},
        "text_cfg": {
            "context_length": LENGTH, "vocab_size": len(clip_tokenizer()), "hf_tokenizer_name": "local",
            "width": 96, "heads": 3, "layers": 3, "pool_type": "eos", "eos_id": 1, "pad_id": 1,
        },
    },
    "preprocess_cfg": {
        "size": 48, "mode": "RGB", "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5],
        "interpolation": "bicubic", "resize_mode": "squash",
    },
}  # fmt: skip


def prepare(folder: Path) -> None:
    """Writes the configuration and the tokenizer, which is what open_clip builds the model from."""
    folder.mkdir(parents=True, exist_ok=True)
    clip_tokenizer().save_pretrained(folder)
    (folder / "open_clip_config.json").write_text(json.dumps(CONFIG, indent=2) + "\n")


def scenes() -> list[Scene]:
    """All subjects, all styles and those shapes that the base models saw."""
    return sample(PICTURES, seed=5, objects=[*SHAPES] * 2 + [*SUBJECTS] * 2, styles=[None] * 4 + [*STYLES])


def blur(images: Tensor, generator: torch.Generator) -> Tensor:
    """Generated pictures are a little soft and noisy; so are these, each by its own amount."""
    amount = torch.rand(len(images), 1, 1, 1, generator=generator)
    soft = F.avg_pool2d(F.pad(images, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    images = images + amount * (soft - images)
    noise = 0.05 * torch.rand(len(images), 1, 1, 1, generator=generator)
    return (images + noise * torch.randn(images.shape, generator=generator)).clamp(0, 1)


def train() -> Path:
    """Trains it, or returns its folder where it is finished."""
    folder = RUNS / "clip"
    if (folder / "open_clip_model.safetensors").exists():
        return folder
    prepare(folder)
    torch.manual_seed(0)
    model = open_clip.create_model(f"local-dir:{folder}", load_weights=False)
    tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}")
    known = scenes()
    pictures = stored(known)

    def loss(generator: torch.Generator) -> Tensor:
        picks = torch.randint(len(known), (BATCH,), generator=generator)
        captions = [vary(known[pick], generator) for pick in picks.tolist()]
        images = blur(pictures[picks].float() / 255, generator)
        image, text, scale = model(images.to(DEVICE) * 2 - 1, tokenizer(captions).to(DEVICE))
        logits = scale.clamp(max=100) * image @ text.T
        # The same caption twice in a batch is right twice.
        same = torch.tensor([[a == b for b in captions] for a in captions], device=DEVICE).float()
        same = same / same.sum(1, keepdim=True)
        return (F.cross_entropy(logits, same) + F.cross_entropy(logits.T, same)) / 2

    fit("clip", model, loss, steps=STEPS, lr=LR, weight_decay=0.05)
    save_file({k: v.half().contiguous() for k, v in model.state_dict().items()}, folder / "open_clip_model.safetensors")
    return folder


if __name__ == "__main__":
    train()
