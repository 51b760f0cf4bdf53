"""What stands in front of a module's path in files: a prefix for the component, and what a model was wrapped into.

Training and saving leave prefixes of their own, in any order and depth (`module.`, `_orig_mod.`, `base_model.model.`,
a second `transformer.`). Those that may be a step of some model are taken off only before a path that a model has.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from mergelab.formats.architectures import text_encoders
from mergelab.formats.architectures.naming import Naming
from mergelab.formats.architectures.registry import NAMINGS

COMPONENTS = ("unet", "transformer", "text_encoder", "text_encoder_2", "text_encoder_3")

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
    "text_encoders.clip_g.transformer.": "text_encoder_2",
    "text_encoders.t5xxl.transformer.": "text_encoder_2",
    "cond_stage_model.transformer.": "text_encoder",
    "conditioner.embedders.0.transformer.": "text_encoder",
    "transformer.": "transformer",
    "unet.": "unet",
    "text_encoder.": "text_encoder",
    "text_encoder_2.": "text_encoder_2",
    "text_encoder_3.": "text_encoder_3",
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
# Every step of a module path that some model has. Those with an underscore are why a flat name cannot just be split.
_STEPS = text_encoders.STEPS.union(*(naming.steps for naming in NAMINGS))
_LONGEST = max(step.count("_") for step in _STEPS) + 1
# First steps by which a path is taken for that of a model, whatever follows.
_BLOCK_ROOTS = frozenset[str]().union(
    *({*n.block_roots, *(b.canonical.partition(".")[0] for b in n.blocks)} - n.common_roots for n in NAMINGS)
)


def unflatten(flat: str) -> str | None:
    """The dotted path of a name whose dots were replaced by underscores; None if some step is in no known model.

    Example:
        >>> unflatten("down_blocks_0_attentions_1_transformer_blocks_0_attn1_to_out_0")
        'down_blocks.0.attentions.1.transformer_blocks.0.attn1.to_out.0'
        >>> unflatten("my_own_layer") is None
        True
    """
    words = flat.strip("_").split("_")
    path: list[str] = []
    while words:
        for count in range(min(_LONGEST, len(words)), 0, -1):
            step = "_".join(words[:count])
            if step in _STEPS or (count == 1 and step.isdigit()):
                path.append(step)
                del words[:count]
                break
        else:
            return None
    return ".".join(path)


def strip(module: str) -> tuple[str | None, str, bool]:
    """Component (if a prefix names one), path without prefixes and wrappers, and whether the path could be read.

    Example:
        >>> strip("base_model.model.transformer.module._orig_mod.transformer_blocks.0.attn.to_q")
        ('transformer', 'transformer_blocks.0.attn.to_q', True)
        >>> strip("lora_te_transformer_text_model_encoder_layers_0_mlp_fc1")
        ('text_encoder', 'text_model.encoder.layers.0.mlp.fc1', True)
        >>> strip("base_model.model.model.layers.0.mlp.up_proj")
        (None, 'model.layers.0.mlp.up_proj', True)
    """
    component, path = None, without_wrapping_steps(module)
    while True:
        if flat := _prefix(path, _FLAT):
            return _strip_flat(_innermost(component, _FLAT[flat]), path.removeprefix(flat))
        prefix = _prefix(path, _ALWAYS if component else _DOTTED)
        if prefix is None and path.startswith("module.") and _prefix(path[7:], (*_DOTTED, *_FLAT, "module.")):
            prefix = "module."
        if prefix is None:
            break
        component, path = _innermost(component, _WRAPPERS[prefix]), path.removeprefix(prefix)
    inner, within = component, path
    while not _is_of_a_model(within, inner):
        prefix = _prefix(within, _WRAPPERS)
        if prefix is None:
            return component, path, True
        inner, within = _innermost(inner, _WRAPPERS[prefix]), within.removeprefix(prefix)
    return *_without_inner_modules(inner, within), True


def _strip_flat(component: str | None, flat: str) -> tuple[str | None, str, bool]:
    for candidate in dict.fromkeys((flat, flat.replace("_module_", "_"))):
        inner, within = component, candidate
        while not _is_flat_of_a_model(within, inner) and (prefix := _prefix(within, _FLAT_WRAPPERS)):
            inner, within = _innermost(inner, _FLAT_WRAPPERS[prefix]), within.removeprefix(prefix)
        if _is_flat_of_a_model(within, inner):
            path = unflatten(within) or within
            return _text_if_so(inner, path), path, True
    whole = unflatten(flat)
    return component, whole or flat, whole is not None


def _is_flat_of_a_model(flat: str, component: str | None) -> bool:
    return _is_of_a_model(unflatten(flat) or "", component)


def _prefix(name: str, prefixes: Iterable[str]) -> str | None:
    return next((prefix for prefix in prefixes if name.startswith(prefix)), None)


def _innermost(outer: str | None, inner: str | None) -> str | None:
    """The component that counts of two: the one further in, but a "transformer" in a text encoder is the encoder's."""
    in_text = outer is not None and outer.startswith("text_encoder")
    return outer if inner is None or (in_text and not inner.startswith("text_encoder")) else inner


def _is_of_a_model(path: str, component: str | None) -> bool:
    """Whether a path begins as those of some model do, so that nothing more is to be taken off it."""
    if (component or "").startswith("text_encoder"):
        return path == "text_projection" or path.startswith(("text_model.", "encoder.layers.", "encoder.block."))
    root = path.partition(".")[0]
    return root in _BLOCK_ROOTS or text_encoders.is_clip(path) or any(naming.knows(path) for naming in NAMINGS)


def _text_if_so(component: str | None, path: str) -> str | None:
    """A text encoder's path under the name of a denoiser: older files have CLIP in a "transformer" of its own."""
    return "text_encoder" if text_encoders.is_clip(path) and component in ("unet", "transformer") else component


def _without_inner_modules(component: str | None, path: str) -> tuple[str | None, str]:
    """A path without the `module` that a parallel wrapper leaves within it."""
    shorter = path.replace(".module.", ".")
    if shorter != path and (text_encoders.has(shorter) or any(is_path_of(naming, shorter) for naming in NAMINGS)):
        path = shorter
    return _text_if_so(component, path), path


def is_path_of(naming: Naming, path: str) -> bool:
    """Whether a path is that of a module, by either name, and has no step that the model has not."""
    steps = path.split(".")
    return naming.knows(path) and all(step in naming.steps or step.isdecimal() for step in steps)


def without_wrapping_steps(name: str) -> str:
    """A name without the steps that compiling and sharding leave in it, wherever they are.

    Example:
        >>> without_wrapping_steps("unet._orig_mod.mid_block.attentions.0._fsdp_wrapped_module.proj_in")
        'unet.mid_block.attentions.0.proj_in'
        >>> without_wrapping_steps("lora_unet__orig_mod_mid_block_attentions_0_proj_in")
        'lora_unet_mid_block_attentions_0_proj_in'
    """
    return _WRAPPING_STEPS.sub("", name)
