"""The format "comfy": `diffusion_model.` and the original model's names, lora_A and lora_B with an alpha."""

from __future__ import annotations

from functools import partial

from torch import Tensor

from mergelab.errors import ArchitectureError
from mergelab.formats.architectures.architecture import Architecture
from mergelab.formats.architectures.naming import Place
from mergelab.formats.architectures.registry import ARCHITECTURES
from mergelab.formats.layout import Layout
from mergelab.formats.original import alone, modules_of, others_of
from mergelab.formats.writers import is_t5, with_alpha
from mergelab.layer import AdapterData


def comfy(data: AdapterData, layout: Layout) -> dict[str, Tensor]:
    """The tensors of a file for ComfyUI.

    Raises:
        ArchitectureError: the base model is unknown, or a layer is of none of its modules.
    """
    architecture = ARCHITECTURES.get(data.architecture or "")
    if architecture is None:
        raise ArchitectureError(
            "the base model is unknown, and format 'comfy' has the names of the original model; say which one it is "
            "(architecture=), or write format='same'"
        )
    modules = modules_of(data, partial(_place, architecture, layout))
    layers = {name: module.layer() for name, module in modules.items() if module.layers}
    tensors = others_of(data, "comfy")
    for name, layer in layers.items():
        written, alpha = with_alpha(layer, layout.alpha_is_rank)
        tensors[f"{name}.lora_A.weight"] = written.lora_A
        tensors[f"{name}.lora_B.weight"] = written.lora_B
        tensors[f"{name}.alpha"] = alpha
    for name, module in modules.items():
        if module.biases:
            tensors[f"{name}.diff_b"] = module.bias(layers.get(name))
    return tensors


def _place(architecture: Architecture, layout: Layout, name: str) -> tuple[str, Place]:
    component, _, path = name.partition(".")
    if naming := architecture.naming_of(component):
        if place := naming.place(path):
            place = place if layout.original_names else alone(path)
            return f"diffusion_model.{place.module.path}", place
    elif encoder := _encoder(architecture, component, path):
        return f"text_encoders.{encoder}.transformer.{path}", alone(path)
    raise ArchitectureError(
        f"layer {name} is no module of {architecture.title} that ComfyUI has; write it as format='diffusers' or 'peft'"
    )


def _encoder(architecture: Architecture, component: str, path: str) -> str | None:
    """What ComfyUI calls a text encoder."""
    if not component.startswith("text_encoder"):
        return None
    if is_t5(path):
        return "t5xxl"
    return {"text_encoder": "clip_h" if architecture.v2 else "clip_l", "text_encoder_2": "clip_g"}.get(component)
