"""The factors of an adapter that is being trained, at a strength of their own, and the file they become."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import register_parametrization
from transformers import CLIPTextModel, CLIPTextModelWithProjection

import mergelab
from experiments.miniature.training import RUNS


@dataclass
class Dose:
    """The strength that all layers of an adapter have in one step of its training."""

    strength: float = 1.0


@dataclass(frozen=True)
class Recipe:
    """How one adapter is trained and saved.

    `within` is the one style that the pictures of a subject show, whose captions do not name it; `steps` are those of
    an adapter that needs others than its kind has; `plain` is the weight of the pictures that a style leaves plain,
    where its own have the weight 1: above 1 for one that comes uncalled.
    """

    name: str
    rank: int
    alpha: int
    format: str
    convolutions: bool = False
    text: bool = False
    within: str | None = None
    steps: int | None = None
    plain: float = 1.0


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


def path_of(pipeline_name: str, recipe: Recipe) -> Path:
    """Where the finished adapter is."""
    folder = RUNS / "adapters" / pipeline_name
    return folder / (recipe.name if recipe.format == "peft" else f"{recipe.name}.safetensors")


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


def start_from(adapter: mergelab.Adapter, parts: nn.ModuleDict) -> None:
    """Gives the factors the change of an adapter of the same layers and ranks, whatever alpha its file has."""
    # Files name the layers of every text encoder as older versions of transformers did.
    known = {name.replace(".text_model.", "."): layer for name, layer in parts.named_modules()}
    for name, layer in adapter.layers.items():
        factors = known[name.replace(".text_model.", ".")].parametrizations.weight[0]
        lora_B = layer.lora_B.float() * (layer.scaling / factors.scaling)  # diffusers' files have no alpha
        factors.load_state_dict({"lora_A": layer.lora_A, "lora_B": lora_B})


def attach(pipeline_name: str, parts: nn.ModuleDict, recipe: Recipe) -> Dose:
    """Gives every layer that the adapter changes its factors; what it returns sets their strength."""
    torch.manual_seed(0)
    dose = Dose()
    for name in layers_of(pipeline_name, parts, recipe):
        layer = parts.get_submodule(name)
        register_parametrization(layer, "weight", Factors(layer.weight, recipe, dose), unsafe=True)
    return dose


def save(parts: nn.ModuleDict, recipe: Recipe, path: Path, header: Mapping[str, str]) -> None:
    """Writes the factors in the recipe's dialect."""
    state: dict[str, Tensor] = {}
    for name, factors in parts.named_modules():
        if isinstance(factors, Factors):
            layer = name.removesuffix(".parametrizations.weight.0")
            state |= {f"{layer}.{key}.weight": value.detach().clone() for key, value in factors.named_parameters()}
            state[f"{layer}.alpha"] = torch.tensor(float(recipe.alpha))
    path.parent.mkdir(parents=True, exist_ok=True)
    header = {"modelspec.title": recipe.name, **header}
    replace(mergelab.load(state), metadata=header).save(path, format=recipe.format, dtype=torch.float16)
