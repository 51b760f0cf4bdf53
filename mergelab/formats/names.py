"""Module names of files -> canonical names, `<component>.<diffusers module path>`.

The dialects differ in a prefix (which component), a separator ("." or "_") and the model whose modules they name
(diffusers', Black Forest Labs', Stability's). What is said here is all that mergelab knows about that.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from mergelab.formats import flux, unet

COMPONENTS = ("unet", "transformer", "text_encoder", "text_encoder_2", "text_encoder_3")

# Prefix of a flat (kohya) or a dotted name -> component; None: the rest of the name tells.
_FLAT = {
    "lora_unet_": "unet",
    "lora_transformer_": "transformer",
    "lora_te1_": "text_encoder",
    "lora_te2_": "text_encoder_2",
    "lora_te3_": "text_encoder_3",
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
    "transformer.": "transformer",
    "unet.": "unet",
    "text_encoder.": "text_encoder",
    "text_encoder_2.": "text_encoder_2",
    "text_encoder_3.": "text_encoder_3",
}
_ROOTS = {
    "down_blocks": "unet",
    "up_blocks": "unet",
    "mid_block": "unet",
    "transformer_blocks": "transformer",
    "single_transformer_blocks": "transformer",
    "text_model": "text_encoder",
    **dict.fromkeys(flux.BFL_ROOTS, "transformer"),
    **dict.fromkeys(unet.SGM_ROOTS, "unet"),
}

_FLUX_ROOTS = frozenset(
    "transformer_blocks single_transformer_blocks x_embedder context_embedder time_text_embed norm_out proj_out".split()
)

# Every step of a module path in the models above. Those with an underscore are why a flat name cannot just be split.
_STEPS = frozenset(
    """
    down_blocks up_blocks mid_block resnets attentions downsamplers upsamplers transformer_blocks conv conv1 conv2
    conv_in conv_out conv_shortcut conv_norm_out time_emb_proj time_embedding add_embedding linear_1 linear_2
    proj_in proj_out proj norm norm1 norm2 norm3 attn1 attn2 to_q to_k to_v to_out ff net
    input_blocks middle_block output_blocks in_layers out_layers emb_layers skip_connection op time_embed label_emb out
    single_transformer_blocks attn add_q_proj add_k_proj add_v_proj to_add_out ff_context norm1_context linear
    proj_mlp x_embedder context_embedder time_text_embed timestep_embedder guidance_embedder text_embedder norm_out
    norm_q norm_k norm_added_q norm_added_k
    double_blocks single_blocks img_attn txt_attn qkv img_mlp txt_mlp img_mod txt_mod lin linear1 linear2 modulation
    img_in txt_in time_in vector_in guidance_in in_layer out_layer final_layer adaLN_modulation query_norm key_norm
    text_model encoder layers self_attn q_proj k_proj v_proj out_proj mlp fc1 fc2 text_projection embeddings
    token_embedding position_embedding final_layer_norm layer_norm1 layer_norm2
    block layer SelfAttention DenseReluDense q k v o wi wi_0 wi_1 wo layer_norm shared
    """.split()
)
_LONGEST = max(step.count("_") for step in _STEPS) + 1


@dataclass(frozen=True)
class Located:
    """Where a module of a file is.

    Attributes:
        component: "unet", "transformer", "text_encoder", ... or "model" where the architecture is unknown.
        path: the module's path in the diffusers model, or in the BFL model where `is_bfl`.
        is_bfl: whether the module is one of the BFL model, which may hold several of diffusers'.
        known: False where a flat name could not be read; the path is then the flat name as it was.
    """

    component: str
    path: str
    is_bfl: bool = False
    known: bool = True


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


def locate(modules: Iterable[str]) -> dict[str, Located]:
    """Locate all modules of one file; a name that says nothing of its component follows those that do."""
    parsed = {module: _strip(module) for module in modules}
    # kohya numbers text encoders; the T5 of FLUX is te3, without a te2, and the second encoder of diffusers' pipeline.
    if not any(component == "text_encoder_2" for component, _, _ in parsed.values()):
        second = {"text_encoder_3": "text_encoder_2"}
        parsed = {m: (second.get(c or "", c), path, known) for m, (c, path, known) in parsed.items()}
    strong = {_component_of(path) for _, path, known in parsed.values() if known} - {None}
    fallback = next(iter(strong)) if len(strong) == 1 else None
    return {module: _located(*parts, fallback) for module, parts in parsed.items()}


def _strip(module: str) -> tuple[str | None, str, bool]:
    """Component (if the prefix names one), path, and whether the path could be read."""
    for prefix, component in _FLAT.items():
        if module.startswith(prefix):
            path = unflatten(module.removeprefix(prefix))
            return component, path or module.removeprefix(prefix), path is not None
    for prefix, component in _DOTTED.items():
        if module.startswith(prefix):
            rest = module.removeprefix(prefix)
            return (component, rest, True) if component else _strip(rest)
    return None, module, True


def _component_of(path: str) -> str | None:
    root = path.split(".", 1)[0]
    if path.startswith("encoder.block."):
        return "text_encoder_2"
    return "text_encoder" if path.startswith("encoder.layers.") else _ROOTS.get(root)


def _located(component: str | None, path: str, known: bool, fallback: str | None) -> Located:
    root = path.split(".", 1)[0]
    strange = root in ("double_blocks", "single_blocks") and not flux.parts_of(path)
    if not known or strange:
        return Located(component or "model", path, known=False)
    if root in flux.BFL_ROOTS and component in (None, "unet", "transformer") and flux.parts_of(path):
        return Located("transformer", path, is_bfl=True)
    if root in unet.SGM_ROOTS and component in (None, "unet") and (found := unet.diffusers_of(path)):
        return Located("unet", found)
    if component == "unet" and root in _FLUX_ROOTS:  # some trainers call every denoiser a UNet
        component = "transformer"
    component = component or _component_of(path) or fallback or "model"
    if component.startswith("text_encoder") and path.startswith("encoder.layers."):
        path = f"text_model.{path}"
    if component == "unet" and path.endswith(".to_out"):
        path += ".0"
    return Located(component, path)


def flatten(path: str) -> str | None:
    """A path with underscores for dots, if that can be read back; else None."""
    flat = path.replace(".", "_")
    read = unflatten(flat)
    return flat if read == path or (read is None and "." not in path) else None


def bare(module: str) -> str:
    """A module name without what older trainers put into it: the attention processor.

    Example:
        >>> bare("unet.mid_block.attentions.0.transformer_blocks.0.attn1.processor.to_q")
        'unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q'
    """
    return re.sub(r"\.processor(?=\.)", "", module)
