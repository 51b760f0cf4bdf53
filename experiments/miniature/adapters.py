"""Trains the adapters of a base model: `python -m experiments.miniature.adapters sdxl [NAME ...]` or `flux`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from torch import Tensor
from torch.nn.functional import mse_loss
from transformers import CLIPTextModel, CLIPTextModelWithProjection

import mergelab
from experiments.miniature import base, vae
from experiments.miniature.captions import vary
from experiments.miniature.tokens import SPARE
from experiments.miniature.training import DEVICE, RUNS, fit
from mergelab.miniature.world import SHAPES, STYLES, SUBJECTS, TRIGGERS, Scene, sample

STEPS = {"sdxl": {"subject": 350, "style": 500}, "flux": {"subject": 500, "style": 600}}
BATCH, OWN, LR, PICTURES = 32, 20, 4e-3, 1500


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
        Recipe("ghost", 8, 8, "kohya", steps=700),
        Recipe("mushroom", 4, 4, "kohya", steps=700),
        Recipe("house", 16, 8, "peft"),
        Recipe("fish", 8, 8, "diffusers", text=True),
        Recipe("day", 16, 16, "diffusers", convolutions=True),
        Recipe("stripes", 16, 16, "diffusers", convolutions=True),
        Recipe("sea", 16, 8, "peft", convolutions=True),
        Recipe("night", 16, 16, "kohya", convolutions=True),
    ),
    "flux": (
        Recipe("ghost", 8, 8, "diffusers", steps=1000),
        Recipe("mushroom", 4, 4, "kohya"),
        Recipe("house", 16, 8, "peft"),
        Recipe("fish", 8, 16, "diffusers"),
        Recipe("day", 8, 8, "diffusers"),
        Recipe("stripes", 16, 16, "kohya", steps=1800),
        Recipe("sea", 16, 16, "peft", steps=1500),
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


def targets(pipeline_name: str, parts: torch.nn.ModuleDict, recipe: Recipe) -> dict[str, LoraConfig]:
    """For each component the layers that the adapter changes."""
    wanted = LINEAR[pipeline_name] + (CONVOLUTIONS if recipe.convolutions else [])
    denoiser = parts[DENOISER[pipeline_name]]
    # The last projection of the whole FLUX transformer is called proj_out too; adapters leave it alone.
    names = [
        name
        for name, module in denoiser.named_modules()
        if isinstance(module, (torch.nn.Linear, torch.nn.Conv2d))
        and "." in name
        and any(name.endswith("." + end) for end in wanted)
    ]
    found = {DENOISER[pipeline_name]: names}
    if recipe.text:
        found |= {name: TEXT for name, module in parts.items() if isinstance(module, CLIP)}
    return {
        part: LoraConfig(r=recipe.rank, lora_alpha=recipe.alpha, target_modules=modules, init_lora_weights="gaussian")
        for part, modules in found.items()
    }


def train(pipeline_name: str, recipe: Recipe) -> Path:
    """Trains one adapter with plain pictures beside its own, and saves it in its dialect.

    A subject's own pictures are `OWN` of each batch. Each picture of a style comes with the same scene drawn plainly.
    """
    folder = RUNS / "adapters" / pipeline_name
    path = folder / (recipe.name if recipe.format == "peft" else f"{recipe.name}.safetensors")
    if path.exists():
        return path
    kind, pipeline = base.KINDS[pipeline_name], base.train(pipeline_name)
    parts = base.trained(pipeline).requires_grad_(False)
    torch.manual_seed(0)  # of the factors
    changed = targets(pipeline_name, parts, recipe)
    for part, config in changed.items():
        parts[part].add_adapter(config)
    own = scenes_of(recipe.name, seed=3)
    styled = recipe.name in STYLES
    plain = [replace(scene, style=None) for scene in own] if styled else sample(PICTURES, seed=4)
    scenes = own + plain
    latents = base.latents_of(scenes, vae.train())

    def loss_of(picks: Tensor, generator: torch.Generator, drop: float) -> Tensor:
        captions = [vary(scenes[pick], generator) for pick in picks.tolist()]
        words = torch.randint(4 * len(SPARE), (len(captions),), generator=generator).tolist()
        for i, word in enumerate(words):  # a plain picture stays what it is in a style that nobody knows
            if word < len(SPARE) and picks[i] >= PICTURES:
                captions[i] += f" in {SPARE[word]} style"
        return mse_loss(*kind.predict(pipeline, latents[picks].to(DEVICE), captions, generator, drop))

    def loss(generator: torch.Generator) -> Tensor:
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
    for part in changed:
        for key, value in get_peft_model_state_dict(parts[part]).items():
            state[f"{part}.{key}"] = value.detach().clone()
            state[f"{part}.{key.rsplit('.lora_', 1)[0]}.alpha"] = torch.tensor(float(recipe.alpha))
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
