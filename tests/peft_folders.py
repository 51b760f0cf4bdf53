"""The files of small PEFT folders, to be put anywhere."""

from __future__ import annotations

from safetensors.torch import save

from tests.files import lora

_MODULES = {"unet": "mid_block.attentions.0.proj_in", "text_encoder": "text_model.encoder.layers.0.self_attn.q_proj"}


def peft_folder(component: str = "unet") -> dict[str, bytes]:
    """Name -> content of an adapter of rank 2 and alpha 6."""
    return {
        "adapter_config.json": b'{"peft_type": "LORA", "r": 2, "lora_alpha": 6}',
        "adapter_model.safetensors": save(lora(f"base_model.model.{_MODULES[component]}")),
    }


def component_folders() -> dict[str, bytes]:
    """One for each component, as diffusers' examples write them."""
    return {f"{part}/{name}": body for part in _MODULES for name, body in peft_folder(part).items()}
