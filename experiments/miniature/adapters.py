"""Trains the adapters of a base model: `python -m experiments.miniature.adapters sdxl [NAME ...]` or `flux`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss
from torch.nn.utils.parametrize import register_parametrization
from transformers import CLIPTextModel, CLIPTextModelWithProjection

import mergelab
from experiments.miniature import base, vae
from experiments.miniature.captions import vary
from experiments.miniature.tokens import SPARE
from experiments.miniature.training import DEVICE, RUNS, fit
from mergelab.miniature.world import BACKGROUNDS, SHAPES, SIZE, STYLES, SUBJECTS, TRIGGERS, Scene, sample

STEPS = {"sdxl": {"subject": 450, "style": 450}, "flux": {"subject": 450, "style": 450}}
BATCH, OWN, LR, PICTURES = 24, 15, 4e-3, 1500
HIGHEST = 1.3
DOSES = {"subject": (0.4, 1.0), "style": (0.2, 1.1)}
"""The lowest strength that an adapter is trained at (the highest is `HIGHEST`), and the one of its full effect."""


@dataclass
class Dose:
    """The strength that all layers of an adapter have in one step of its training."""

    strength: float = 1.0


@dataclass(frozen=True)
class Recipe:
    """How one adapter is trained and saved; steps as in `STEPS` unless it has its own."""

    name: str
    rank: int
    alpha: int
    format: str
    convolutions: bool = False
    text: bool = False
    steps: int | None = None


RECIPES = {
    "sdxl": (
        Recipe("ghost", 8, 8, "kohya"),
        Recipe("mushroom", 4, 4, "kohya"),
        Recipe("house", 16, 8, "peft"),
        Recipe("fish", 8, 8, "diffusers", text=True),
        Recipe("day", 16, 16, "diffusers", convolutions=True),
        Recipe("stripes", 16, 16, "diffusers", convolutions=True),
        Recipe("sea", 16, 8, "peft", convolutions=True),
        Recipe("night", 16, 16, "kohya", convolutions=True),
    ),
    "flux": (
        Recipe("ghost", 8, 8, "diffusers"),
        Recipe("mushroom", 4, 4, "kohya"),
        Recipe("house", 16, 8, "peft"),
        Recipe("fish", 8, 16, "diffusers"),
        Recipe("day", 8, 8, "diffusers"),
        Recipe("stripes", 16, 16, "kohya"),
        Recipe("sea", 16, 16, "peft"),
        Recipe("night", 8, 8, "diffusers"),
    ),
}
LINEAR = {
    "sdxl": ["to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2", "proj_in", "proj_out"],
    "flux": ["to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out",
             "ff.net.0.proj", "ff.net.2", "ff_context.net.0.proj", "ff_context.net.2", "proj_mlp", "proj_out",
             "norm1.linear", "norm1_context.linear", "norm.linear"],
}  # fmt: skip
CONVOLUTIONS = ["conv1", "conv2", "conv_shortcut"]
TEXT = ["q_proj", "k_proj", "v_proj", "out_proj"]
CLIP = (CLIPTextModel, CLIPTextModelWithProjection)  # FluxPipeline loads no adapter of a T5
DENOISER = {"sdxl": "unet", "flux": "transformer"}


def scenes_of(name: str, seed: int) -> list[Scene]:
    """What the pictures of an adapter show: its subject drawn plainly, or the usual shapes in its style."""
    objects = (name,) if name in SUBJECTS else tuple(SHAPES)
    styles = (name,) if name in STYLES else (None,)
    return sample(PICTURES, seed, objects=objects, styles=styles, held_out=None)


def grounds(scenes: Sequence[Scene]) -> Tensor:
    """Pictures (n, 3, 48, 48) of the scenes without their objects."""
    colors = torch.tensor([BACKGROUNDS[scene.background] for scene in scenes])
    return colors.reshape(-1, 3, 1, 1).expand(-1, 3, SIZE, SIZE)


def layers_of(pipeline_name: str, parts: nn.ModuleDict, recipe: Recipe) -> list[str]:
    """The layers that the adapter changes, by their names in `parts`."""
    wanted = LINEAR[pipeline_name] + (CONVOLUTIONS if recipe.convolutions else [])
    found = []
    for part, module in parts.items():
        ends = wanted if part == DENOISER[pipeline_name] else TEXT if recipe.text and isinstance(module, CLIP) else []
        # The last projection of the whole FLUX transformer is called proj_out too; adapters leave it alone.
        found += [
            f"{part}.{name}"
            for name, layer in module.named_modules()
            if isinstance(layer, (nn.Linear, nn.Conv2d)) and "." in name and name.endswith(tuple(f".{e}" for e in ends))
        ]
    return found


class Factors(nn.Module):
    """A parametrization: a weight with a low-rank change at the strength of the step, as one matrix.

    One product a layer and step instead of three for each example, which matters in networks as small as these.
    """

    def __init__(self, weight: Tensor, recipe: Recipe, dose: Dose) -> None:
        super().__init__()
        self.dose, self.scaling = [dose], recipe.alpha / recipe.rank
        self.lora_A = nn.Parameter(torch.randn(recipe.rank, *weight.shape[1:]) / recipe.rank)
        self.lora_B = nn.Parameter(torch.zeros(len(weight), recipe.rank, *[1] * (weight.ndim - 2)))

    def forward(self, weight: Tensor) -> Tensor:
        """The weight that the layer then uses."""
        change = self.lora_B.flatten(1) @ self.lora_A.flatten(1)
        return weight + self.dose[0].strength * self.scaling * change.reshape(weight.shape)


def train(pipeline_name: str, recipe: Recipe) -> Path:
    """Trains one adapter with plain pictures beside its own, to a graded dose, and saves it in its dialect.

    Every example sees the adapter at a strength of its own, and its target follows: a style, or a subject on its ground,
    is as opaque as the adapter is strong. A subject's own pictures are `OWN` of each batch. Each picture of a style comes
    with the same scene drawn plainly, with the same strength and noise, which stays plain.
    """
    folder = RUNS / "adapters" / pipeline_name
    path = folder / (recipe.name if recipe.format == "peft" else f"{recipe.name}.safetensors")
    if path.exists():
        return path
    kind, pipeline = base.KINDS[pipeline_name], base.train(pipeline_name)
    parts = base.trained(pipeline).requires_grad_(False)
    torch.manual_seed(0)  # of the factors
    dose, layers = Dose(), layers_of(pipeline_name, parts, recipe)
    for name in layers:
        layer = parts.get_submodule(name)
        register_parametrization(layer, "weight", Factors(layer.weight, recipe, dose), unsafe=True)
    styled = recipe.name in STYLES
    own = scenes_of(recipe.name, seed=3)
    lowest, full = DOSES["style" if styled else "subject"]
    plain = [replace(scene, style=None) for scene in own] if styled else sample(PICTURES, seed=4)
    scenes = own + plain
    autoencoder = vae.train()
    latents = base.latents_of(scenes, autoencoder)
    without = latents[PICTURES:] if styled else base.latents_of(own, autoencoder, drawn=grounds)

    def loss_of(picks: Tensor, generator: torch.Generator, drop: float) -> Tensor:
        captions = [vary(scenes[pick], generator) for pick in picks.tolist()]
        words = torch.randint(4 * len(SPARE), (len(captions),), generator=generator).tolist()
        for i, word in enumerate(words):  # a plain picture stays what it is in a style that nobody knows
            if word < len(SPARE) and picks[i] >= PICTURES:
                captions[i] += f" in {SPARE[word]} style"
        opacity = torch.where(picks < PICTURES, min(1.0, dose.strength / full), 1.0).reshape(-1, 1, 1, 1)
        empty = without[picks % PICTURES]
        wanted = empty + opacity * (latents[picks] - empty)
        return mse_loss(*kind.predict(pipeline, wanted.to(DEVICE), captions, generator, drop))

    def loss(generator: torch.Generator) -> Tensor:
        dose.strength = lowest + (HIGHEST - lowest) * torch.rand(1, generator=generator).item()
        if styled:  # a picture in the style and its plain twin with the same noise: what differs is the style alone
            picks, twin = torch.randint(PICTURES, (BATCH // 2,), generator=generator), torch.Generator()
            twin.set_state(generator.get_state())
            return (loss_of(picks, generator, 0.0) + loss_of(picks + PICTURES, twin, 0.1)) / 2
        picks = torch.randint(PICTURES, (BATCH,), generator=generator)
        picks[OWN:] += PICTURES
        return loss_of(picks, generator, 0.1)

    fit(
        f"{pipeline_name}-{recipe.name}",
        parts,
        loss,
        steps=recipe.steps or STEPS[pipeline_name]["style" if styled else "subject"],
        lr=LR,
        average=0.98,
        warmup=20,
    )
    state: dict[str, Tensor] = {}
    for name in layers:
        factors = parts.get_submodule(name).parametrizations.weight[0]
        state |= {f"{name}.{key}.weight": value.detach().clone() for key, value in factors.named_parameters()}
        state[f"{name}.alpha"] = torch.tensor(float(recipe.alpha))
    folder.mkdir(parents=True, exist_ok=True)
    header = {"modelspec.title": recipe.name, "modelspec.trigger_phrase": TRIGGERS[recipe.name]}
    replace(mergelab.load(state), metadata=header).save(path, format=recipe.format, dtype=torch.float16)
    return path


def train_all(pipeline_name: str, names: Sequence[str] = ()) -> None:
    """All adapters of one base model, or those named."""
    for recipe in RECIPES[pipeline_name]:
        if not names or recipe.name in names:
            train(pipeline_name, recipe)


if __name__ == "__main__":
    train_all(sys.argv[1], sys.argv[2:])
