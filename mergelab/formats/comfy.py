"""The format "comfy": `diffusion_model.` and the original model's names, lora_A and lora_B.

Without alphas: what they say is folded into lora_B. ComfyUI reads both, but diffusers' conversions (0.42) of such names
fail on alphas (FLUX.2, Krea 2), or pass them over in silence (HiDream, LTX-Video, LTX-2, Anima).
"""

from __future__ import annotations

from functools import partial

from torch import Tensor

from mergelab.errors import ArchitectureError
from mergelab.formats.architectures.architecture import Architecture
from mergelab.formats.architectures.naming import Place
from mergelab.formats.architectures.registry import ARCHITECTURES
from mergelab.formats.architectures.text_encoders import is_t5
from mergelab.formats.layout import Layout
from mergelab.formats.names import is_module_of
from mergelab.formats.original import alone, differences_in, modules_of, others_of
from mergelab.formats.writers import SAY_WHICH, folded_layer, remedy
from mergelab.layer import AdapterData


def comfy(data: AdapterData, layout: Layout) -> dict[str, Tensor]:
    """The tensors of a file for ComfyUI.

    Raises:
        ArchitectureError: the base model is unknown, or a layer is of none of its modules.
    """
    architecture = ARCHITECTURES.get(data.architecture or "")
    if architecture is None:
        raise ArchitectureError(
            f"the base model is unknown, and format 'comfy' has the names of the original model; {SAY_WHICH}, or write "
            "format='same'"
        )
    modules = modules_of(data, partial(_place, architecture, layout))
    layers = {name: module.layer() for name, module in modules.items() if module.layers}
    tensors = others_of(data, "comfy")
    for name, layer in layers.items():
        folded = folded_layer(layer)
        tensors[f"{name}.lora_A.weight"] = folded.lora_A
        tensors[f"{name}.lora_B.weight"] = folded.lora_B
    return tensors | differences_in(modules, layers)


def _place(architecture: Architecture, layout: Layout, name: str) -> tuple[str, Place]:
    component, _, path = name.partition(".")
    if naming := architecture.naming_of(component):
        if place := naming.place(path):
            place = place if layout.original_names else alone(path)
            return f"diffusion_model.{place.module.path}", place
        if norm := naming.original_norm(path):
            return f"diffusion_model.{norm if layout.original_names else path}", alone(path)
    elif encoder := _encoder(architecture, component, path):
        return f"text_encoders.{encoder}.transformer.{path}", alone(path)
    raise ArchitectureError(f"layer {name} is no module of {architecture.title} that ComfyUI has; {remedy(name)}")


def _encoder(architecture: Architecture, component: str, path: str) -> str | None:
    """What ComfyUI calls a text encoder; None for what is no module of the model's."""
    if not is_module_of(architecture, f"{component}.{path}"):
        return None
    if is_t5(path):
        return "t5xxl"
    return {"text_encoder": "clip_h" if architecture.v2 else "clip_l", "text_encoder_2": "clip_g"}.get(component)
