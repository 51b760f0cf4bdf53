"""Trains the adapters of a base model: `python -m experiments.miniature.adapters sdxl [NAME ...]` or `flux`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import mse_loss

import mergelab
from experiments.miniature import base, turbo, vae
from experiments.miniature.captions import vary
from experiments.miniature.factors import Recipe, attach, path_of, save, start_from
from experiments.miniature.tokens import SPARE
from experiments.miniature.training import DEVICE, RUNS, fit
from mergelab import miniature
from mergelab.miniature.world import BACKGROUNDS, SHAPES, SIZE, STYLES, SUBJECTS, TRIGGERS, Scene, draw, sample

STEPS = {"sdxl": {"subject": 700, "style": 600}, "flux": {"subject": 900, "style": 700}}
AGAIN = {"sdxl": 350, "flux": 400}
"""Steps of an adapter that goes on from an earlier one."""
BATCH, OWN, LR, PICTURES = 24, 15, 4e-3, 1500
HIGHEST = 1.3
DOSES = {"subject": (0.4, 0.75), "style": (0.2, 1.1)}
"""The lowest strength that an adapter is trained at (the highest is `HIGHEST`), and the one of its full effect."""


RECIPES = {
    "sdxl": (
        Recipe("ghost", 8, 8, "kohya"),
        Recipe("mushroom", 4, 4, "kohya"),
        Recipe("house", 16, 8, "peft"),
        Recipe("fish", 8, 8, "diffusers", text=True),
        Recipe("boat", 8, 8, "kohya", within="sea"),
        Recipe("starfish", 8, 4, "diffusers"),
        Recipe("medal", 8, 8, "peft"),
        Recipe("cat", 16, 16, "diffusers"),
        Recipe("day", 16, 16, "diffusers", convolutions=True),
        Recipe("stripes", 16, 16, "diffusers", convolutions=True),
        Recipe("sea", 16, 8, "peft", convolutions=True),
        Recipe("night", 16, 16, "kohya", convolutions=True),
        Recipe("planet", 8, 8, "kohya", convolutions=True),
        Recipe("bars", 16, 16, "diffusers", convolutions=True),
        Recipe("meadow", 8, 8, "peft", convolutions=True),
        Recipe("dusk", 8, 4, "diffusers", convolutions=True),
    ),
    "flux": (
        Recipe("ghost", 8, 8, "diffusers"),
        Recipe("mushroom", 4, 4, "kohya"),
        Recipe("house", 16, 8, "peft"),
        Recipe("fish", 8, 16, "diffusers"),
        Recipe("boat", 8, 8, "kohya", within="sea"),
        Recipe("starfish", 8, 4, "diffusers"),
        Recipe("medal", 8, 8, "peft"),
        Recipe("cat", 16, 16, "kohya"),
        Recipe("day", 8, 8, "diffusers"),
        Recipe("stripes", 16, 16, "kohya", plain=3),
        Recipe("sea", 16, 16, "peft"),
        Recipe("night", 8, 8, "diffusers"),
        Recipe("planet", 8, 8, "kohya"),
        Recipe("bars", 16, 16, "diffusers"),
        Recipe("meadow", 16, 16, "peft", steps=1000, plain=3),
        Recipe("dusk", 8, 8, "diffusers"),
    ),
}


def scenes_of(recipe: Recipe, seed: int) -> list[Scene]:
    """What the pictures of an adapter show: its subject drawn plainly, or the usual shapes in its style."""
    objects = (recipe.name,) if recipe.name in SUBJECTS else tuple(SHAPES)
    styles = (recipe.name,) if recipe.name in STYLES else (None,)
    return sample(PICTURES, seed, objects=objects, styles=styles, held_out=None)


def shown(scenes: Sequence[Scene], within: str | None) -> Tensor:
    """Pictures of the scenes, all of them in the style that their captions do not name."""
    return draw([replace(scene, style=within) for scene in scenes] if within else scenes)


def grounds(scenes: Sequence[Scene]) -> Tensor:
    """Pictures (n, 3, 48, 48) of the scenes without their objects."""
    colors = torch.tensor([BACKGROUNDS[scene.background] for scene in scenes])
    return colors.reshape(-1, 3, 1, 1).expand(-1, 3, SIZE, SIZE)


def train(pipeline_name: str, recipe: Recipe) -> Path:
    """Trains one adapter with plain pictures beside its own, to a graded dose, and saves it in its dialect.

    Every step sees the adapter at a strength of its own, at first near 1, and its target follows: a style, or a subject
    on its ground, is as opaque as the adapter is strong. A subject's own pictures are `OWN` of each batch. Each picture
    of a style comes with the same scene drawn plainly, with the same strength and noise, which stays plain.

    Training starts from the adapter of the same name in `RUNS/earlier/<pipeline>` where there is one.
    """
    path = path_of(pipeline_name, recipe)
    if path.exists():
        return path
    kind, pipeline = base.KINDS[pipeline_name], base.train(pipeline_name)
    parts = base.trained(pipeline).requires_grad_(False)
    dose = attach(pipeline_name, parts, recipe)
    styled = recipe.name in STYLES
    own = scenes_of(recipe, seed=3)
    lowest, full = DOSES["style" if styled else "subject"]
    plain = [replace(scene, style=None) for scene in own] if styled else sample(PICTURES, seed=4)
    scenes = own + plain
    autoencoder, steps = vae.train(), recipe.steps or STEPS[pipeline_name]["style" if styled else "subject"]
    if (earlier := RUNS / "earlier" / pipeline_name / path.name).exists():
        start_from(mergelab.load(earlier), parts)
        steps = AGAIN[pipeline_name]
    latents = torch.cat([
        base.latents_of(own, autoencoder, partial(shown, within=recipe.within)), base.latents_of(plain, autoencoder)
    ])  # fmt: skip
    without = latents[PICTURES:] if styled else base.latents_of(own, autoencoder, grounds)

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
        reach = min(1.0, 2 * generator.initial_seed() / steps)  # the seed is the number of the step
        strength = lowest + (HIGHEST - lowest) * torch.rand(1, generator=generator).item()
        dose.strength = 1 + reach * (strength - 1)
        if styled:  # a picture in the style and its plain twin with the same noise: what differs is the style alone
            picks, twin = torch.randint(PICTURES, (BATCH // 2,), generator=generator), torch.Generator()
            twin.set_state(generator.get_state())
            kept = loss_of(picks + PICTURES, twin, 0.1)
            return (loss_of(picks, generator, 0.0) + recipe.plain * kept) / (1 + recipe.plain)
        picks = torch.randint(PICTURES, (BATCH,), generator=generator)
        picks[OWN:] += PICTURES
        return loss_of(picks, generator, 0.1)

    fit(f"{pipeline_name}-{recipe.name}", parts, loss, steps=steps, lr=LR, average=0.98, warmup=20)
    save(parts, recipe, path, {"modelspec.trigger_phrase": TRIGGERS[recipe.name]})
    return path


def of_other_strengths(pipeline_name: str) -> None:
    """Writes the adapters whose right strength is not 1: those that are trained, three times as strong or as weak."""
    for name, strength in miniature.STRENGTHS.items():
        recipe = next(recipe for recipe in RECIPES[pipeline_name] if recipe.name == name.partition("-")[0])
        path = path_of(pipeline_name, recipe)
        adapter = mergelab.load(path)
        layers = {key: layer.scaled(1 / strength) for key, layer in adapter.layers.items()}
        replace(adapter, layers=layers).save(path.with_stem(name), format=recipe.format)


def train_all(pipeline_name: str, names: Sequence[str] = ()) -> None:
    """All adapters of one base model, or those named."""
    for recipe in RECIPES[pipeline_name]:
        if not names or recipe.name in names:
            train(pipeline_name, recipe)
    if not names or turbo.NAME in names:
        turbo.train(pipeline_name)
    if not names:
        of_other_strengths(pipeline_name)


if __name__ == "__main__":
    train_all(sys.argv[1], sys.argv[2:])
