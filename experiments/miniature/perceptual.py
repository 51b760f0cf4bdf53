"""The trunk that LPIPS compares features of, trained to name what a picture shows."""

from __future__ import annotations

import warnings
from pathlib import Path

import lpips
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from experiments.miniature.clip import blur
from experiments.miniature.training import DEVICE, RUNS, fit
from experiments.miniature.vae import stored
from mergelab.miniature.judge import OBJECTS
from mergelab.miniature.world import BACKGROUNDS, COLORS, SHAPES, SIZES, STYLES, Scene, sample

STEPS, BATCH, LR, PICTURES = 1500, 64, 1e-3, 20000
ATTRIBUTES: dict[str, tuple[str | None, ...]] = {
    "object": OBJECTS,
    "color": (*COLORS,),
    "background": (*BACKGROUNDS,),
    "size": (*SIZES,),
    "style": (None, *STYLES),
}


class Classifier(nn.Module):
    """The trunk of `lpips` (SqueezeNet 1.1) and one linear layer for each attribute."""

    def __init__(self) -> None:
        super().__init__()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torchvision's, about the argument that lpips passes to it
            self.metric = lpips.LPIPS(net="squeeze", lpips=False, pnet_rand=True, pnet_tune=True, verbose=False)
        self.heads = nn.ModuleDict({name: nn.Linear(512, len(values)) for name, values in ATTRIBUTES.items()})

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Logits of each attribute for images (n, 3, 48, 48) in [-1, 1]."""
        features = self.metric.net(self.metric.scaling_layer(images))[-1].mean((2, 3))
        return {name: head(features) for name, head in self.heads.items()}


def labels(scenes: list[Scene]) -> dict[str, Tensor]:
    """The class of each scene for each attribute; -100, which counts for nothing, where it cannot be seen."""
    found = {
        name: torch.tensor([values.index(getattr(scene, name)) for scene in scenes])
        for name, values in ATTRIBUTES.items()
    }
    found["color"][[scene.object not in SHAPES for scene in scenes]] = -100
    found["background"][[scene.style == "night" for scene in scenes]] = -100
    return found


def train() -> Path:
    """Trains it, or returns its file where it is finished."""
    path = RUNS / "lpips_trunk.safetensors"
    if path.exists():
        return path
    torch.manual_seed(0)
    model = Classifier()
    scenes = sample(PICTURES, seed=6, objects=OBJECTS, styles=[None] * len(STYLES) + [*STYLES])
    pictures = stored(scenes)
    truth = labels(scenes)

    def loss(generator: torch.Generator) -> Tensor:
        picks = torch.randint(PICTURES, (BATCH,), generator=generator)
        logits = model((blur(pictures[picks].float() / 255, generator) * 2 - 1).to(DEVICE))
        return torch.stack([F.cross_entropy(logits[name].cpu(), truth[name][picks]) for name in ATTRIBUTES]).mean()

    fit("lpips", model, loss, steps=STEPS, lr=LR)
    save_file({k: v.half().contiguous() for k, v in model.metric.net.state_dict().items()}, path)
    return path


if __name__ == "__main__":
    train()
