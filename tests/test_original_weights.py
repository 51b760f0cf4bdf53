"""The tables of names against diffusers' own conversion of original checkpoints: every row ends where theirs does."""

from __future__ import annotations

from functools import cache
from typing import Any

import diffusers
import pytest
import torch
from diffusers.loaders import single_file_utils
from torch import nn

from mergelab.formats.architectures import ARCHITECTURES, Architecture
from mergelab.formats.architectures.fused import OriginalModule
from mergelab.layer import LoraLayer

CONVERTERS = {
    "flux": "convert_flux_transformer_checkpoint_to_diffusers",
    "chroma": "convert_chroma_transformer_checkpoint_to_diffusers",
    "flux2-dev": "convert_flux2_transformer_checkpoint_to_diffusers",
    "flux2-klein-9b": "convert_flux2_transformer_checkpoint_to_diffusers",
    "flux2-klein-4b": "convert_flux2_transformer_checkpoint_to_diffusers",
    "sd3": "convert_sd3_transformer_checkpoint_to_diffusers",
    "sd35-medium": "convert_sd3_transformer_checkpoint_to_diffusers",
    "sd35-large": "convert_sd3_transformer_checkpoint_to_diffusers",
    "hunyuan-video": "convert_hunyuan_video_transformer_to_diffusers",
}
LINEAR = (nn.Linear, nn.Conv2d, nn.Conv3d)


class Checkpoint(dict[str, torch.Tensor]):
    """An original checkpoint of weights, which has biases and norms where a conversion asks for them."""

    def __init__(self, weights: dict[str, torch.Tensor]) -> None:
        super().__init__(weights)
        self.rows = {key.replace(".weight", ".bias"): weight[:, 0] for key, weight in weights.items()}

    def pop(self, key: str, *default: Any) -> torch.Tensor:
        """A bias has the rows of its weight."""
        return super().pop(key, *default) if key in self or default else self.rows.get(key, torch.zeros(2))


@cache
def shapes(architecture: Architecture) -> dict[str, tuple[int, ...]]:
    """Shape of the weight of every layer of diffusers' model of the published size."""
    with torch.device("meta"):
        model = getattr(diffusers, architecture.model_class).from_config(dict(architecture.model_config))
    return {path: tuple(m.weight.shape) for path, m in model.named_modules() if isinstance(m, LINEAR)}


def originals(architecture: Architecture) -> dict[str, OriginalModule]:
    """The modules of the original model that hold all layers."""
    places = (architecture.naming.place(path) for path in shapes(architecture))
    return {place.module.path: place.module for place in places if place}


@pytest.mark.parametrize("id", CONVERTERS)
def test_rows_go_where_diffusers_puts_them(id: str) -> None:
    """Weights with numbered rows, one column each: names, the order of fused modules and swapped halves are theirs."""
    architecture = ARCHITECTURES[id]
    sizes = shapes(architecture)
    weights = {
        path: torch.arange(sum(sizes[part][0] for part in module.parts), dtype=torch.float32)[:, None]
        for path, module in originals(architecture).items()
    }
    checkpoint = Checkpoint({f"{path}.weight": weight for path, weight in weights.items()})
    converted = getattr(single_file_utils, CONVERTERS[id])(checkpoint)
    layers = {key.removesuffix(".weight"): weight for key, weight in converted.items() if key.endswith(".weight")}
    assert sizes.keys() <= layers.keys()
    assert converted is checkpoint or not checkpoint
    for path, module in originals(architecture).items():
        columns = sizes[module.parts[0]][1]
        down = torch.ones(1, columns) if len(sizes[module.parts[0]]) == 2 else torch.ones(1, columns, 1, 1)
        up = weights[path] if down.dim() == 2 else weights[path][..., None, None]
        for part, layer in module.split(LoraLayer(down, up)).items():
            assert torch.equal(layer.lora_B.flatten(), layers[part].flatten()), part
