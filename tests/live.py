"""What tests of live pipelines share: small pipelines, adapters of text encoders, base weights changed by hand."""

from __future__ import annotations

import copy
import inspect
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import mergelab as ml
from mergelab import miniature
from mergelab.pipelines.adapters import models_of, place_of
from mergelab.pipelines.opening import quietly

PROMPT = "a large sks on a navy background in szn style"
TEXT_LAYERS = {
    "sdxl": (
        "text_encoder.text_model.encoder.layers.0.self_attn.q_proj",
        "text_encoder.text_model.encoder.layers.1.mlp.fc1",
        "text_encoder_2.text_model.encoder.layers.0.self_attn.v_proj",
    ),
    "flux": (
        "text_encoder.text_model.encoder.layers.0.self_attn.q_proj",
        "text_encoder_2.encoder.block.0.layer.0.SelfAttention.q",
        "text_encoder_2.encoder.block.0.layer.1.DenseReluDense.wo",
    ),
}


def opened(name: str) -> Any:
    """A small pipeline without bars, after its first image: transformers and diffusers install hooks of their own."""
    pipe = miniature.pipeline(name)
    pipe.set_progress_bar_config(disable=True)
    latents(pipe, name, steps=1)
    return pipe


def latents(pipe: Any, name: str, steps: int = 2, **keywords: Any) -> Tensor:
    """What the denoiser ends with, from one seed: no pixel hides a difference."""
    given = miniature.settings(name) | {"num_inference_steps": steps, "output_type": "latent"} | keywords
    return pipe(PROMPT, generator=torch.Generator().manual_seed(0), **given).images.float()


def module_of(pipe: Any, layer: str) -> Any:
    """The module of a pipeline with this canonical name."""
    place = place_of(models_of(pipe), layer)
    assert place is not None
    return place[0].get_submodule(place[1])


def stack(pipe: Any, adapters: Sequence[ml.Adapter]) -> None:
    """diffusers' own way: files, loaded, all active at strength 1; none of them: the base model again."""
    resets = "reset_to_overwritten_params" in inspect.signature(pipe.unload_lora_weights).parameters
    pipe.unload_lora_weights(**({"reset_to_overwritten_params": True} if resets else {}))
    names = [f"adapter_{index}" for index in range(len(adapters))]
    with tempfile.TemporaryDirectory() as folder, quietly():
        for name, adapter in zip(names, adapters):
            pipe.load_lora_weights(str(adapter.save(Path(folder) / f"{name}.safetensors")), adapter_name=name)
    if names:
        pipe.set_adapters(names, [1.0] * len(names))


def text_adapter(pipe: Any, name: str, rank: int = 2) -> ml.Adapter:
    """Random changes of the text encoders, at a scaling that is not one."""
    generator = torch.Generator().manual_seed(1)
    layers = {}
    for layer in TEXT_LAYERS[name]:
        out, inside = module_of(pipe, layer).weight.shape
        lora_a, lora_b = torch.randn(rank, inside, generator=generator), torch.randn(out, rank, generator=generator)
        layers[layer] = ml.LoraLayer(0.1 * lora_a, lora_b, scaling=0.5)
    return ml.Adapter(layers, architecture=name, source="text")


@contextmanager
def changed_by_hand(
    pipe: Any, adapters: Sequence[ml.Adapter], weights: Sequence[Mapping[str, float]]
) -> Iterator[None]:
    """Base weights plus dense changes in float64; of the patterns of layer names the last that matches counts."""
    before: dict[nn.Module, Tensor] = {}
    for adapter, own in zip(adapters, weights):
        for layer, change in adapter.layers.items():
            module = module_of(pipe, layer)
            before.setdefault(module, copy.deepcopy(module.weight.data))
            weight = [value for pattern, value in own.items() if fnmatchcase(layer, pattern)][-1]
            delta = change.scaling * change.lora_B.double().flatten(1) @ change.lora_A.double().flatten(1)
            module.weight.data = (module.weight.double() + weight * delta.reshape(module.weight.shape)).to(
                module.weight.dtype
            )
    try:
        yield
    finally:
        for module, data in before.items():
            module.weight.data = data


def state(pipe: Any) -> dict[str, Any]:
    """Everything that a trace could be left in: modules, attributes, hooks, parameters, who asks for gradients."""
    return {
        f"{component}.{path}": (
            id(module),
            sorted(vars(module)),
            [list(getattr(module, kind)) for kind in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks")],
            [(key, id(p), p.requires_grad) for key, p in module.named_parameters(recurse=False)],
            {key: value for key, value in vars(module).items() if isinstance(value, (bool, str, type(None)))},
        )
        for component, part in pipe.components.items()
        if isinstance(part, nn.Module)
        for path, module in part.named_modules()
    }
