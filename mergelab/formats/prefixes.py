"""What stands in front of a module's path in files: a prefix for the component, and what a model was wrapped into.

Training and saving leave prefixes of their own, in any order and depth (`module.`, `_orig_mod.`, `base_model.model.`,
a second `transformer.`). Those that may be a step of some model are taken off only before a path that the model has by
whose names (`Naming`) a file is read; None stands for a model that is not known.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cache, lru_cache

from mergelab.formats.architectures import text_encoders
from mergelab.formats.architectures.naming import Naming

COMPONENTS = (
    "unet",
    "transformer",
    "text_encoder",
    "text_encoder_2",
    "text_encoder_3",
    "text_conditioner",
    "connectors",
)
T5 = "t5"
"""Stands for the component that the T5 is, which differs between base models."""

# Prefix of a flat (kohya) or a dotted name -> component; None: the rest of the name tells. Of two that begin alike the
# longer is first.
_FLAT = {
    "lora_unet_": "unet",
    "lora_transformer_": "transformer",
    "lora_te1_": "text_encoder",
    "lora_te2_": "text_encoder_2",
    "lora_te3_": "text_encoder_3",
    "lora_te_0_": "text_encoder",
    "lora_te_": "text_encoder",
    "lycoris_": None,
}
_DOTTED = {
    "base_model.model.": None,
    "model.diffusion_model.": None,
    "diffusion_model.": None,
    "text_encoders.clip_l.transformer.": "text_encoder",
    "text_encoders.clip_h.transformer.": "text_encoder",
    "text_encoders.clip_g.transformer.": "text_encoder_2",
    "text_encoders.t5xxl.transformer.": T5,
    "cond_stage_model.transformer.": "text_encoder",
    "conditioner.embedders.0.transformer.": "text_encoder",
    "clip_l.": "text_encoder",
    "clip_g.": "text_encoder_2",
    "t5.": T5,
    "pipe.dit.": None,
    "transformer.": "transformer",
    "unet.": "unet",
    "text_encoder.": "text_encoder",
    "text_encoder_2.": "text_encoder_2",
    "text_encoder_3.": "text_encoder_3",
    "text_conditioner.": "text_conditioner",
    "connectors.": "connectors",
}
# What wraps a model and has no other meaning, at any depth (torch.compile, FSDP, checkpointing), ...
_STEP = "(?:_orig_mod|_fsdp_wrapped_module|_fpw_module|_checkpoint_wrapped_module)"
_WRAPPING_STEPS = re.compile(rf"^(?:{_STEP}[._])+|(?:[._]{_STEP})+(?=[._]|$)")
# ... what has no other meaning in front of a path, after another prefix, too, ...
_ALWAYS = ("base_model.model.", "model.diffusion_model.", "diffusion_model.")
# ... and what is a wrapper only before a path that some model has.
_WRAPPERS = {"module.": None, "model.": None, **_DOTTED}
_FLAT_WRAPPERS = {
    **{f"{name}_": None for name in ("orig_mod", "module", "base_model_model", "model_diffusion_model")},
    **{f"{name}_": None for name in ("diffusion_model", "model")},
    **{f"{name}_": name for name in sorted(COMPONENTS, key=len, reverse=True)},
}


@cache
def _steps(naming: Naming | None) -> tuple[frozenset[str], int]:
    """Every step of a module path, and how many words the longest has.

    Those with an underscore are why a flat name cannot just be split.
    """
    steps = text_encoders.STEPS.union(naming.steps if naming else ())
    return steps, max(step.count("_") for step in steps) + 1


def unflatten(flat: str, naming: Naming | None) -> str | None:
    """The dotted path of a name whose dots were replaced by underscores; None if some step is not the model's.

    Example:
        >>> from mergelab.formats.architectures import ARCHITECTURES
        >>> naming = ARCHITECTURES["sdxl"].naming
        >>> unflatten("down_blocks_0_attentions_1_transformer_blocks_0_attn1_to_out_0", naming)
        'down_blocks.0.attentions.1.transformer_blocks.0.attn1.to_out.0'
        >>> unflatten("my_own_layer", naming) is None
        True
    """
    steps, longest = _steps(naming)
    words = flat.strip("_").split("_")
    path: list[str] = []
    while words:
        for count in range(min(longest, len(words)), 0, -1):
            step = "_".join(words[:count])
            if step in steps or (count == 1 and step.isdigit()):
                path.append(step)
                del words[:count]
                break
        else:
            return None
    return ".".join(path)


def flatten(path: str, naming: Naming | None) -> str | None:
    """A path with underscores for dots, if that can be read back; else None."""
    flat = path.replace(".", "_")
    read = unflatten(flat, naming)
    return flat if read == path or (read is None and "." not in path) else None


def strip(module: str, naming: Naming | None) -> tuple[str | None, str, bool]:
    """Component (if a prefix names one), path without prefixes and wrappers, and whether the path could be read.

    Example:
        >>> from mergelab.formats.architectures import ARCHITECTURES
        >>> naming = ARCHITECTURES["flux"].naming
        >>> strip("base_model.model.transformer.module._orig_mod.transformer_blocks.0.attn.to_q", naming)
        ('transformer', 'transformer_blocks.0.attn.to_q', True)
        >>> strip("lora_te_transformer_text_model_encoder_layers_0_mlp_fc1", naming)
        ('text_encoder', 'text_model.encoder.layers.0.mlp.fc1', True)
        >>> strip("base_model.model.model.layers.0.mlp.up_proj", None)
        (None, 'model.layers.0.mlp.up_proj', True)
    """
    component, path, is_flat = _without_outer(module)
    if is_flat:
        return _strip_flat(component, path, naming)
    inner, within = component, path
    while not _is_of_the_model(within, inner, naming):
        prefix = _prefix(within, _WRAPPERS)
        if prefix is None:
            return component, path, True
        inner, within = _innermost(inner, _WRAPPERS[prefix]), within.removeprefix(prefix)
    return *_without_inner_modules(inner, within, naming), True


@lru_cache(maxsize=1 << 14)  # the same by the names of any model, and a file is read by those of several
def _without_outer(module: str) -> tuple[str | None, str, bool]:
    """Component and path without what is taken off before any path, and whether the path is a flat one."""
    component, path = None, without_wrapping_steps(module)
    while True:
        if flat := _prefix(path, _FLAT):
            return _innermost(component, _FLAT[flat]), path.removeprefix(flat), True
        prefix = _prefix(path, _ALWAYS if component else _DOTTED)
        if prefix is None and path.startswith("module.") and _prefix(path[7:], (*_DOTTED, *_FLAT, "module.")):
            prefix = "module."
        if prefix is None:
            return component, path, False
        component, path = _innermost(component, _WRAPPERS[prefix]), path.removeprefix(prefix)


def _strip_flat(component: str | None, flat: str, naming: Naming | None) -> tuple[str | None, str, bool]:
    for candidate in dict.fromkeys((flat, flat.replace("_module_", "_"))):
        inner, within = component, candidate
        while not _is_of_the_model(unflatten(within, naming) or "", inner, naming):
            prefix = _prefix(within, _FLAT_WRAPPERS)
            if prefix is None:
                break
            inner, within = _innermost(inner, _FLAT_WRAPPERS[prefix]), within.removeprefix(prefix)
        else:
            path = unflatten(within, naming) or within
            return _text_if_so(inner, path), path, True
    whole = unflatten(flat, naming)
    return component, whole or flat, whole is not None


def _prefix(name: str, prefixes: Iterable[str]) -> str | None:
    return next(filter(name.startswith, prefixes), None)


def _innermost(outer: str | None, inner: str | None) -> str | None:
    """The component that counts of two: the one further in, but a "transformer" in a text encoder is the encoder's."""
    in_text = outer is not None and (outer.startswith("text_encoder") or outer == T5)
    return outer if inner is None or (in_text and not inner.startswith("text_encoder")) else inner


def _is_of_the_model(path: str, component: str | None, naming: Naming | None) -> bool:
    """Whether a path begins as the model's do, so that nothing more is to be taken off it."""
    if (component or "").startswith("text_encoder") or component == T5:
        return path == "text_projection" or path.startswith(("text_model.", "encoder.layers.", "encoder.block."))
    if text_encoders.is_clip(path) or naming is None:
        return text_encoders.is_clip(path)
    return path.partition(".")[0] in naming.block_roots or naming.knows(path)


def _text_if_so(component: str | None, path: str) -> str | None:
    """A text encoder's path under the name of a denoiser: older files have CLIP in a "transformer" of its own."""
    return "text_encoder" if text_encoders.is_clip(path) and component in ("unet", "transformer") else component


def _without_inner_modules(component: str | None, path: str, naming: Naming | None) -> tuple[str | None, str]:
    """A path without the `module` that a parallel wrapper leaves within it."""
    shorter = path.replace(".module.", ".")
    if shorter != path and (text_encoders.has(shorter) or (naming and naming.has(shorter))):
        path = shorter
    return _text_if_so(component, path), path


def without_wrapping_steps(name: str) -> str:
    """A name without the steps that compiling and sharding leave in it, wherever they are.

    Example:
        >>> without_wrapping_steps("unet._orig_mod.mid_block.attentions.0._fsdp_wrapped_module.proj_in")
        'unet.mid_block.attentions.0.proj_in'
        >>> without_wrapping_steps("lora_unet__orig_mod_mid_block_attentions_0_proj_in")
        'lora_unet_mid_block_attentions_0_proj_in'
    """
    return _WRAPPING_STEPS.sub("", name)
